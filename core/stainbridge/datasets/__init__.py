"""Data sets with truth: found or fetched by their cards, listed as light items, read one picture at a time."""

from .fetching import Fetch, fetch_split
from .item import Dataset, Item
from .opening import DatasetTable, open_dataset

__all__ = ["Dataset", "DatasetTable", "Fetch", "Item", "fetch_split", "open_dataset"]
