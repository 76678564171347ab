"""The commands of data sets and detections; `cli` hangs them in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

datasets_app = typer.Typer(help="Data sets with truth: what is known, fetched and on the disk.", no_args_is_help=True)
detections_app = typer.Typer(help="Cells as points: export and score them.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where data sets lie or are fetched to; default: the cache.")
]
Registries = Annotated[list[Path] | None, typer.Option("--registry", help="A further registry file; may be repeated.")]
Split = Annotated[str | None, typer.Option(help="train, test, ...; default: the first of the card.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]


@datasets_app.command("list")
def list_datasets(registry: Registries = None, as_json: AsJson = False) -> None:
    """Show every data card: splits, scale, licence, whether it can be fetched."""
    from .registry import load_registry
    from .report.console import print_json, table

    cards = load_registry(registry or ()).datasets
    if as_json:
        print_json({name: card.model_dump(mode="json") for name, card in cards.items()})
        return
    rows = [
        (name, ", ".join(card.splits), card.mpp or "", card.licence, _fetchable(card), card.summary)
        for name, card in sorted(cards.items())
    ]
    table("data sets", ("name", "splits", "um/px", "licence", "fetchable", "summary"), rows)


@datasets_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a data card.")],
    split: Split = None,
    data_dir: DataDir = None,
    archive: Annotated[Path | None, typer.Option(help="An archive downloaded by hand: check and unpack it.")] = None,
    registry: Registries = None,
    offline: Offline = False,
) -> None:
    """Download, check and unpack one split, and print its folder."""
    from .datasets import Fetch, fetch_split
    from .registry import load_registry

    card = load_registry(registry or ()).dataset(name)
    how = Fetch(data_dir, offline, _console())
    typer.echo(fetch_split(name, card, split, how=how, by_hand=archive))


@datasets_app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of a data card, or of the pictures in --path.")],
    split: Split = None,
    path: Annotated[Path | None, typer.Option(help="Folder of the pictures, where they lie somewhere else.")] = None,
    layout: Annotated[str | None, typer.Option(help="For pictures of your own: folder, pictures, ...")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel.")] = None,
    stain: Annotated[str | None, typer.Option(help="ihc or he, for pictures of your own.")] = None,
    data_dir: DataDir = None,
    registry: Registries = None,
) -> None:
    """Read every picture with its truth, without fetching anything; print what is there and what is wrong."""
    from .datasets import open_dataset
    from .datasets.checking import check_dataset

    said: dict[str, Any] = {"path": path, "layout": layout, "mpp": mpp, "stain": stain}
    choice = {"name": name, **{key: value for key, value in said.items() if value is not None}}
    dataset = open_dataset(choice, data_dir=data_dir, split=split, offline=True, registries=registry or ())
    found = check_dataset(dataset)
    typer.echo("\n".join(found.lines()))
    if found.faults:
        raise typer.Exit(1)


@detections_app.command()
def export(
    results: Annotated[list[Path], typer.Argument(help="Folders that `run` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")],
    form: Annotated[str, typer.Option("--format", help="csv, points-json, template or lyon19.")] = "csv",
    template: Annotated[Path | None, typer.Option(help="TOML with file, header, line, units.")] = None,
    negatives: Annotated[bool, typer.Option("--all", help="Take the negative nuclei too.")] = False,
) -> None:
    """Write the positive nuclei of results as points."""
    from .detections import format_named, from_results

    written = format_named(form, template).write(from_results(results, negatives=negatives), out)
    typer.echo("\n".join(map(str, written)))


@detections_app.command()
def score(
    truth: Annotated[Path, typer.Argument(help="CSV roi,x,y of the true points, in pixels.")],
    found: Annotated[Path, typer.Argument(help="CSV roi,x,y of the detections.")],
    radius_um: Annotated[float, typer.Option(help="Largest distance of a pair.")] = 4.0,
    mpp: Annotated[float, typer.Option(help="Micrometres per pixel.")] = 0.25,
    subsets: Annotated[Path | None, typer.Option(help="CSV roi,subset.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Nearest pair first instead of the most pairs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Match detections with true points and count; not the numbers of any challenge."""
    from .detections import score_points
    from .report.console import print_json, table

    scores = score_points(truth, found, radius_um=radius_um, mpp=mpp, subsets=subsets, greedy=greedy)
    if as_json:
        print_json(scores.to_dict())
        return
    columns = ("name", "regions", "tp", "fp", "fn", "precision", "recall", "f1")
    rows = [[_shown(one.to_dict()[column]) for column in columns] for one in scores.subsets]
    table(f"within {radius_um:g} um; {scores.notice}", columns, rows, right=columns[1:])


def _fetchable(card: Any) -> str:
    able = [archive.split for archive in card.archives if archive.fetchable]
    return "yes" if able and len(able) == len(card.archives) else ", ".join(able) or "no"


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _console() -> Any:
    """Return a console on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)
