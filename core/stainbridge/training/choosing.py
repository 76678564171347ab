"""Which epoch is best, by a rule that is written down beside the values it was applied to.

Of a translation two things are asked: that it keeps the nuclei, and that it looks like H&E. The IHC itself keeps every nucleus, so the
second is a limit and the first is the score under it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .domain import LEAST_WINDOWS, SUBSET_SIZE, SUBSETS, WINDOW_PX, Distance
from .record import write_json

Values = Mapping[str, float]

LIMIT_SHARE = 0.25
"""Where the automatic limit lies between H&E against H&E (0) and the untranslated IHC (1): the distance is a square, so at half of it."""


class Rule(Protocol):
    """Says which of two epochs is better, and describes itself."""

    def is_better(self, values: Values, best: Values | None) -> bool:
        """Tell whether an epoch beats the best of those before it; None: there is none."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return the rule and what it was made from: plain JSON values."""
        ...


def preservation_score(values: Values) -> float:
    """Return how well the nuclei are kept, as one number: the mean of those parts that are defined.

    Parts: `density_agreement`, at least 0; `centroid_recall`; `brown_retention`; and the smaller of `count_ratio` and its inverse.

    Returns
    -------
    0..1; NaN where no part is defined
    """
    count = values["count_ratio"]
    parts = [
        max(values["density_agreement"], 0.0),  # NaN stays NaN: it is the first argument
        values["centroid_recall"],
        values["brown_retention"],
        min(count, 1 / count) if count > 0 else count,
    ]
    defined = [part for part in parts if not math.isnan(part)]
    return sum(defined) / len(defined) if defined else math.nan


@dataclass(frozen=True)
class UnderLimit:
    """Highest `preservation` among epochs whose `kid` is at most the limit; while there is none, lowest `kid`.

    Where the distance cannot be measured the latest epoch is best: preservation alone would choose a translator that does nothing.

    Parameters
    ----------
    identity : distance of the untranslated IHC from the H&E side
    own : distance of one half of the H&E side from the other
    limit_given : the user's limit; None takes the automatic one
    """

    identity: Distance
    own: Distance
    limit_given: float | None = None

    @property
    def limit(self) -> float:
        """The limit of `kid`; NaN where none can be set, and then no epoch is under it."""
        if self.limit_given is not None:
            return self.limit_given
        if not self.own.kid < self.identity.kid:
            return math.nan
        return self.own.kid + LIMIT_SHARE * (self.identity.kid - self.own.kid)

    @property
    def remark(self) -> str:
        """What the user should know about the rule, or an empty string."""
        if self.identity.reason:
            return (
                f"The distance to H&E cannot be measured ({self.identity.reason}); the latest epoch is taken as best."
            )
        if math.isnan(self.limit):
            why = (
                self.own.reason
                or "the pictures of the H&E side differ as much among themselves as the IHC does from them"
            )
            return f"No limit can be set for the distance to H&E ({why}); the epoch nearest to H&E is taken as best."
        return ""

    def is_better(self, values: Values, best: Values | None) -> bool:
        """Tell whether an epoch, with `kid` and `preservation`, beats the best before it."""
        if best is None or math.isnan(values["kid"]):
            return True
        under, was_under = (one["kid"] <= self.limit for one in (values, best))
        if under != was_under:
            return under
        if under:
            return _number(values["preservation"]) > _number(best["preservation"])
        return not values["kid"] >= best["kid"]

    def facts(self) -> dict[str, Any]:
        """Return the limit, the two distances it lies between, and the rule."""
        return {
            "rule": (
                "highest preservation among epochs with kid <= limit; while there is none, lowest kid; "
                "where kid cannot be measured, the latest epoch"
            ),
            "preservation": (
                "mean of density_agreement (at least 0), centroid_recall, brown_retention and min(count_ratio, 1 / count_ratio), "
                "those that are defined"
            ),
            "limit": self.limit,
            "limit_is": "given" if self.limit_given is not None else f"he + {LIMIT_SHARE} (identity - he)",
            "kid_of_identity": self.identity._asdict(),
            "kid_of_he": self.own._asdict(),
            "kid": (
                f"unbiased polynomial MMD^2, mean of {SUBSETS} drawings of at most {SUBSET_SIZE} windows of {WINDOW_PX} px "
                f"(at least {LEAST_WINDOWS}), on computed features; not comparable with Inception KID"
            ),
            "remark": self.remark,
        }


@dataclass(frozen=True)
class Highest:
    """Highest value of the first name, and of the second among equals."""

    names: tuple[str, ...]

    def is_better(self, values: Values, best: Values | None) -> bool:
        """Tell whether an epoch beats the best before it; NaN is lower than any number."""
        return best is None or [_number(values[one]) for one in self.names] > [_number(best[one]) for one in self.names]

    def facts(self) -> dict[str, Any]:
        """Return the rule."""
        return {"rule": "highest " + ", then ".join(self.names)}


class Selection:
    """The epochs of a training with their values, and the best of them, kept in a file.

    Parameters
    ----------
    path : "selection.json"; epochs that it holds already are kept, so that a training can go on
    rule : how the best is found
    facts : further facts for the file: plain JSON values
    """

    def __init__(self, path: Path, rule: Rule, facts: Mapping[str, Any]) -> None:
        self.path, self.rule, self._facts = path, rule, dict(facts)
        self.epochs: list[dict[str, float]] = _read(path)

    def add(self, epoch: int, values: Values) -> None:
        """Put in an epoch and write the file; this epoch and later ones of an earlier process are replaced.

        Raises
        ------
        WriteFailed
            If the file cannot be written; the older one stays.
        """
        self.epochs = [one for one in self.epochs if one["epoch"] < epoch] + [{"epoch": epoch, **values}]
        record = {**self.rule.facts(), **self._facts, "best_epoch": self.best["epoch"], "epochs": self.epochs}
        write_json(self.path, record)

    @property
    def best(self) -> Mapping[str, float]:
        """The best epoch's values, `epoch` among them."""
        best: Mapping[str, float] | None = None
        for one in self.epochs:
            if self.rule.is_better(one, best):
                best = one
        assert best is not None
        return best


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _read(path: Path) -> list[dict[str, float]]:
    """Return the epochs of an older file; none where it is missing or damaged, for it is only a record."""
    try:
        rows: Sequence[Mapping[str, Any]] = json.loads(path.read_text("utf-8"))["epochs"]
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
