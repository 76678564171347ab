"""Small CSV files that people write: a header, then one row per picture, region or point."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from stainbridge.errors import DataCorrupt, DataUnavailable, nearest


def read_columns(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the named columns of a CSV, spaces cut off; further columns are passed over, and so are empty lines.

    Returns
    -------
    list
        One mapping per row, with the number of its line under "line".

    Raises
    ------
    DataUnavailable
        If there is no such file.
    DataCorrupt
        If it is not a CSV in UTF-8, or lacks a column; names the nearest.
    """
    path = Path(path)
    try:
        # Spreadsheets put a mark at the start of UTF-8.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header, columns)
            return [_row(path, reader.line_num, row, columns) for row in reader]
    except FileNotFoundError:
        raise DataUnavailable(f"{str(path)!r} does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataCorrupt(f"{str(path)!r} cannot be read as CSV: {error}.") from error


def read_subsets(path: str | Path, key: str, names: Sequence[str]) -> dict[str, str]:
    """Read which subset each of `names` belongs to, from a CSV with the columns `key` and "subset".

    Raises
    ------
    DataUnavailable, DataCorrupt
        As `read_columns`, and where a name is missing, unknown, or there twice.
    """
    subsets: dict[str, str] = {}
    for row in read_columns(path, (key, "subset")):
        name = row[key]
        if name not in set(names):
            raise DataCorrupt(f"{str(path)!r}, line {row['line']}: no {key} is named {name!r}.{nearest(name, names)}")
        if name in subsets:
            raise DataCorrupt(f"{str(path)!r}, line {row['line']}: {name!r} is there twice; a {key} has one subset.")
        if not row["subset"]:
            raise DataCorrupt(f"{str(path)!r}, line {row['line']}: {name!r} has no subset.")
        subsets[name] = row["subset"]
    without = [name for name in names if name not in subsets]
    if without:
        raise DataCorrupt(f"{str(path)!r} names no subset for {len(without)} of {len(names)}, such as {without[0]!r}.")
    return subsets


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise DataCorrupt(
                f"{str(path)!r} has no column {column!r}.{nearest(column, header)}\n"
                f"Its first line must name {', '.join(columns)}; it is: {', '.join(header) or 'empty'}."
            )


def _row(path: Path, line: int, row: dict[str, str | None], columns: Sequence[str]) -> dict[str, str]:
    short = [column for column in columns if row[column] is None]
    if short or None in row:
        raise DataCorrupt(f"{str(path)!r}, line {line}, has {'fewer' if short else 'more'} fields than the header.")
    return {"line": str(line), **{column: str(row[column]).strip() for column in columns}}
