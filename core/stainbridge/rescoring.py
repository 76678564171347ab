"""Score stored nuclei again with other thresholds: the folders that a run wrote, without their pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import NoPictures
from .io import load_nuclei, open_picture, rewrite_scores
from .records import Source
from .scoring import rescore

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Rescored:
    """One folder after rescoring.

    Parameters
    ----------
    scores : as in `Result.scores`
    note : what could not be brought up to date, empty if nothing
    """

    folder: Path
    scores: Mapping[str, Any]
    note: str


def rescore_folder(
    out: str | Path,
    *,
    by: str = "p_positive",
    threshold: float | None = None,
    grade_cuts: tuple[float, float, float] | None = None,
) -> list[Rescored]:
    """Call, grade and score the nuclei below `out` anew; tables, GeoJSON, overlay and summary are rewritten.

    Parameters
    ----------
    out : the folder of one picture, or the folder of a whole run
    by : column that decides: ``p_positive`` or a feature such as ``dab_od_mean``
    threshold : a nucleus is positive where `by` is at or above it; None keeps the calls
    grade_cuts : mean DAB optical density from which a nucleus is 1+, 2+, 3+; None keeps the grades

    Raises
    ------
    NoPictures
        If there is no result below `out`.
    ConfigError
        If the column is not stored, or a threshold or cut is missing or out of range.
    """
    folders = [Path(out)] if (Path(out) / SUMMARY).is_file() else sorted(_results(Path(out)))
    if not folders:
        raise NoPictures(
            f"{out} holds no result (no {SUMMARY} in it or in a folder below). Name a folder that `run` wrote."
        )
    return [_rescore_one(folder, by, threshold, grade_cuts) for folder in folders]


def _results(out: Path) -> Iterator[Path]:
    return (path.parent for path in out.glob(f"*/{SUMMARY}") if not path.parent.name.startswith("."))


def _rescore_one(
    folder: Path, by: str, threshold: float | None, grade_cuts: tuple[float, float, float] | None
) -> Rescored:
    nuclei, summary = load_nuclei(folder)
    config, source = summary["provenance"]["config"], summary["provenance"]["input"]
    nuclei, scores = rescore(
        nuclei,
        by=by,
        threshold=threshold,
        grade_cuts=grade_cuts,
        area_mm2=summary["scores"]["area_mm2"],
        mpp=source["mpp"],
        seed=config["seed"],
        bootstraps=config["bootstraps"],
    )
    outcome = rewrite_scores(folder, nuclei, scores, summary["provenance"], source=_picture(source))
    note = f"removed, as it showed the old calls: {', '.join(outcome.removed)}" if outcome.removed else ""
    return Rescored(folder, scores, note)


def _picture(facts: Mapping[str, Any]) -> Source | None:
    """Return the picture that was run, if it is still where it was and unchanged."""
    path = Path(facts.get("path", ""))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            return None
    return open_picture(path, mpp=facts["mpp"])
