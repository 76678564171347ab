"""A benchmark as data: which translators, segmenters and classifiers, on which data sets, by which metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from .config import Choice, RunConfig, explain, read_model

COMPARED = (
    "dice/dice_pooled",
    "matching/accuracy@0.50",
    "matching/precision@0.50",
    "matching/recall@0.50",
    "matching/f1@0.50",
    "panoptic/pq",
    "detection/f1",
)
"""Values of which paired differences are given where the suite names none."""

_Choice = Annotated[Choice, BeforeValidator(Choice.of)]
_Choices = Annotated[tuple[_Choice, ...], Field(min_length=1)]
_PATHS = ("path", "truth", "subsets")


class TrackingTable(BaseModel):
    """Where the runs are logged.

    Parameters
    ----------
    uri : of the MLflow store; None takes MLFLOW_TRACKING_URI, else a database in the folder of the results
    experiment : its name; None takes MLFLOW_EXPERIMENT_NAME, else the suite's name
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = None
    experiment: str | None = None


class RunTable(BaseModel):
    """What all runs share; as in `RunConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile_px: int | None = Field(None, gt=0)
    halo_px: int | None = Field(None, ge=0)
    grade_cuts: tuple[float, float, float] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    device: str = "cpu"
    offline: bool = False


class Suite(BaseModel):
    """Everything that decides a benchmark.

    Parameters
    ----------
    name : shown in MLflow and in the report
    datasets : names of cards, or tables; see `datasets.DatasetTable`
    translators, segmenters, classifiers : plugins or models, with settings where they differ
    metrics : names; empty takes every installed metric
    controls : add the identity translator, the baseline segmenter, the truth itself and an empty prediction
    use : what the results are for; weights and data that are barred from it are flagged
    strict : refuse what would be flagged
    seed, bootstraps : of the intervals over pictures
    compared : values of which paired differences are given
    reference : the translator that the others are compared with, for each segmenter; or several, each compared with those before it
    figure_pictures : how many pictures Figure 2 shows of each data set
    run : settings that all runs share
    tracking : where the runs are logged
    registries : further registry files
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    datasets: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    translators: _Choices
    segmenters: _Choices
    classifiers: _Choices = (Choice("hsi"),)
    metrics: tuple[str, ...] = ()
    controls: bool = True
    use: Literal["research", "commercial"] = "research"
    strict: bool = False
    seed: int = Field(0, ge=0)
    bootstraps: int = Field(2000, ge=1)
    compared: tuple[str, ...] = COMPARED
    reference: tuple[str, ...] = ("identity",)
    figure_pictures: int = Field(3, ge=0)
    run: RunTable = Field(default_factory=lambda: RunTable.model_validate({}))
    tracking: TrackingTable = Field(default_factory=TrackingTable)
    registries: tuple[Path, ...] = ()

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise explain(error, Suite) from None

    @field_validator("reference", mode="before")
    @classmethod
    def _one_or_several(cls, reference: object) -> object:
        return (reference,) if isinstance(reference, str) else reference

    @field_validator("datasets")
    @classmethod
    def _tables_have_names(cls, datasets: tuple[str | dict[str, Any], ...]) -> tuple[str | dict[str, Any], ...]:
        for one in datasets:
            if isinstance(one, dict) and not isinstance(one.get("name"), str):
                raise ValueError(f"must each have a name; found {one}")
        return datasets

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        named = {
            "datasets": [_shown(one) for one in self.datasets],
            **{
                key: [repr(one.to_dict()) for one in getattr(self, key)]
                for key in ("translators", "segmenters", "classifiers")
            },
        }
        for key, entries in named.items():
            twice = next((one for one in entries if entries.count(one) > 1), None)
            if twice is not None:
                raise ValueError(f"{key} holds {twice} twice")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML file; paths in it are relative to it.

        Raises
        ------
        ConfigError
            If the file cannot be read, is not TOML, or has an unknown key or a value out of range.
        """
        path = Path(path)
        return read_model(cls, path).beside(path.resolve().parent)

    def beside(self, folder: Path) -> Self:
        """Return a copy whose relative paths start at `folder`."""
        datasets = [one if isinstance(one, str) else _anchored(one, folder) for one in self.datasets]
        return self.replace(datasets=datasets, registries=[folder / path for path in self.registries])

    def replace(self, **values: Any) -> Self:
        """Return a copy with other values, checked."""
        return type(self)(**{**self.to_dict(), **values})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `Suite(**values)` gives the same suite."""
        values = self.model_dump(mode="json", exclude={"translators", "segmenters", "classifiers"})
        for key in ("translators", "segmenters", "classifiers"):
            values[key] = [one.to_dict() for one in getattr(self, key)]
        return values

    def run_config(self, translator: Choice, segmenter: Choice, classifier: Choice) -> RunConfig:
        """Return the run of one combination; its scores of the slide need no intervals."""
        shared = self.run.model_dump()
        return RunConfig(
            translator=translator,
            segmenter=segmenter,
            classifier=classifier,
            seed=self.seed,
            bootstraps=0,
            registries=self.registries,
            **shared,
        )


def _shown(dataset: str | Mapping[str, Any]) -> str:
    return repr(dataset) if isinstance(dataset, str) else repr(dataset["name"])


def _anchored(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        key: str(folder / Path(value).expanduser()) if key in _PATHS and isinstance(value, str) else value
        for key, value in table.items()
    }
