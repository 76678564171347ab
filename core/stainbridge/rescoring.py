"""Score stored nuclei again with other thresholds: the folders that a run wrote, without their pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, NoPictures, StainbridgeError
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
    by : column that `threshold` is about: ``p_positive`` or a feature such as ``dab_od_mean``
    threshold : a nucleus is positive where `by` is at or above it; None keeps the last column and threshold
    grade_cuts : mean DAB optical density from which a nucleus is 1+, 2+, 3+; None keeps the last cuts

    Returns
    -------
    list
        One entry a folder. ``scores["rescored"]`` holds what is in force now: given here, by an earlier rescoring, or by
        the run.

    Raises
    ------
    NoPictures
        If there is no result below `out`.
    ConfigError
        If nothing is to be changed, the column is not stored, or a threshold or cut is missing or out of range.
    """
    folders = [Path(out)] if (Path(out) / SUMMARY).is_file() else sorted(_results(Path(out)))
    if not folders:
        raise NoPictures(
            f"{out} holds no result (no {SUMMARY} in it or in a folder below). Name a folder that `run` wrote."
        )
    if threshold is None and grade_cuts is None and by == "p_positive":
        raise ConfigError(
            "Rescoring needs something to change; nothing was given.\n"
            "Pass --threshold (with --by COLUMN for another column than p_positive), --grade-cuts, or both."
        )
    return [_rescore_one(folder, by, threshold, grade_cuts) for folder in folders]


def _results(out: Path) -> Iterator[Path]:
    return (path.parent for path in out.glob(f"*/{SUMMARY}") if not path.parent.name.startswith("."))


def _rescore_one(
    folder: Path, by: str, threshold: float | None, grade_cuts: tuple[float, float, float] | None
) -> Rescored:
    nuclei, summary = load_nuclei(folder)
    config, source = summary["provenance"]["config"], summary["provenance"]["input"]
    force = _in_force(summary)
    if threshold is not None or by != "p_positive":
        force |= {"by": by, "threshold": threshold}
    if grade_cuts is not None:
        force["grade_cuts"] = grade_cuts
    nuclei, scores = rescore(
        nuclei,
        **force,
        area_mm2=summary["scores"]["area_mm2"],
        mpp=source["mpp"],
        seed=config["seed"],
        bootstraps=config["bootstraps"],
    )
    outcome = rewrite_scores(folder, nuclei, scores, summary["provenance"], source=_picture(source))
    return Rescored(folder, scores, _note(outcome.outdated))


def _in_force(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the column, threshold and cuts of the last rescoring, or else of the run."""
    last = summary["scores"].get("rescored")
    if last is not None:
        return dict(last)
    provenance = summary["provenance"]
    return {
        "by": "p_positive",
        "threshold": provenance["segmentation"]["threshold"],
        "grade_cuts": provenance["segmentation"]["grade_cuts"],
    }


def _note(outdated: tuple[str, ...]) -> str:
    if not outdated:
        return ""
    return f"the picture was not found as it was; the old calls are still shown by {', '.join(outdated)}"


def _picture(facts: Mapping[str, Any]) -> Source | None:
    """Return the picture that was run, if it is still where it was, unchanged, and can be read."""
    path = Path(facts.get("path", ""))
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]
        return None if changed else open_picture(path, mpp=facts["mpp"])
    except (OSError, StainbridgeError):  # not readable here any more: no permission, or a reader is missing
        return None
