"""The paper's own numbers, as a reference beside those of a suite."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stainbridge.scores import Combination


@dataclass(frozen=True)
class PublishedRow:
    """One row as printed.

    Parameters
    ----------
    method : as the paper writes it
    translator, segmenter : names of plugins without variant; translator "" for a segmenter on the IHC itself
    values : two decimals; in Table 1 by "METRIC/KEY", in Table 2 by part of the data set
    notes : what is wrong or doubtful about a value, by the same keys
    """

    method: str
    translator: str
    segmenter: str
    values: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedTable:
    """One table as printed, and why its numbers are not comparable with those of a suite."""

    title: str
    dataset: str
    not_comparable: str
    citation: str
    rows: tuple[PublishedRow, ...]

    def row_of(self, combination: Combination) -> PublishedRow | None:
        """Return the row made of the same plugins, whatever their weights; None where the paper has no such row."""
        key = _plugin(combination.translator), _plugin(combination.segmenter)
        return next((row for row in self.rows if (row.translator, row.segmenter) == key), None)


def published(table: Literal["table1", "table2"]) -> PublishedTable:
    """Return a table of the paper."""
    facts = tomllib.loads(Path(__file__).with_name("published.toml").read_text("utf-8"))
    chosen = dict(facts[table])
    rows = tuple(PublishedRow(**row) for row in chosen.pop("rows"))
    return PublishedTable(citation=facts["citation"], rows=rows, **chosen)


def _plugin(name: str | None) -> str:
    """Return the name without the variant; "" for no translation, however it is written."""
    plugin = (name or "").split("/")[0]
    return "" if plugin == "identity" else plugin
