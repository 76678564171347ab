"""The table of nuclei as Parquet and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stainbridge.errors import UnreadablePicture
from stainbridge.records import Nuclei


def write_parquet(path: Path, nuclei: Nuclei) -> None:
    """Write the columns of `Nuclei.columns` as Parquet."""
    from pyarrow import parquet

    parquet.write_table(_table(nuclei), path, compression="zstd")


def write_csv(path: Path, nuclei: Nuclei) -> None:
    """Write the columns of `Nuclei.columns` as CSV, with the shortest digits that give each number back."""
    from pyarrow import csv

    csv.write_csv(_table(nuclei), path)


def read_parquet(path: Path) -> Nuclei:
    """Read what `write_parquet` wrote.

    Raises
    ------
    UnreadablePicture
        If the file is missing, damaged, or lacks a column.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with open(path, "rb") as file:
            table = parquet.read_table(file)
        return Nuclei.from_columns({name: table[name].to_numpy() for name in table.column_names})
    except FileNotFoundError:
        raise UnreadablePicture(
            f"{str(path.parent)!r} holds no result: {path.name} is missing.\nName a folder that a run has written."
        ) from None
    except KeyError as error:
        raise UnreadablePicture(f"{str(path)!r} has no column {error}.\nRun the picture again.") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadablePicture(f"{str(path)!r} is damaged: {error}.\nRun the picture again.") from error


def _table(nuclei: Nuclei) -> Any:
    import pyarrow

    return pyarrow.table({name: np.ascontiguousarray(column) for name, column in nuclei.columns().items()})
