"""Read pictures as `Source`, find them in folders, and write results; heavy libraries wait for the first call."""

from .atomic import atomic_write
from .find import find_pictures
from .open import open_picture
from .results import Rewritten, check_output, load_nuclei, rewrite_scores, save
from .tiff import open_labels

__all__ = [
    "Rewritten",
    "atomic_write",
    "check_output",
    "find_pictures",
    "load_nuclei",
    "open_labels",
    "open_picture",
    "rewrite_scores",
    "save",
]
