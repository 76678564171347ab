"""The command line: the Python functions spoken aloud. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from .cli_benchmark import benchmark
from .cli_datasets import datasets_app, detections_app
from .cli_train import train
from .errors import StainbridgeError

app = typer.Typer(
    name="stainbridge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(help="What is installed, and why something is not.", invoke_without_command=True)
models_app = typer.Typer(help="Pinned configurations with their weights.", invoke_without_command=True)
app.add_typer(plugins_app, name="plugins")
app.add_typer(models_app, name="models")
app.add_typer(datasets_app, name="datasets")
app.add_typer(detections_app, name="detections")
app.command()(benchmark)
app.command()(train)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Registries = Annotated[list[Path] | None, typer.Option("--registry", help="A further registry file; may be repeated.")]
PluginKind: TypeAlias = Literal["translator", "segmenter", "classifier", "metric"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _print_version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """IHC to virtual H&E to scored nuclei, by plugins."""


@app.command()
def run(
    pictures: Annotated[
        list[str], typer.Argument(help="Pictures, folders, or quoted patterns such as 'slides/*.tif'.")
    ],
    out: Out,
    mpp: Annotated[float | None, typer.Option(help="Micrometres per pixel, where the picture does not say.")] = None,
    translator: Annotated[
        str | None, typer.Option(help="Plugin or model; default: what goes best with the segmenter.")
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="Plugin or model; default: the best installed, see `models`.")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="Plugin or model; default: hsi.")] = None,
    config: Annotated[Path | None, typer.Option(help="A run as TOML; options given here win.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as classifier.threshold=0.4; may be repeated.")
    ] = None,
    registry: Registries = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: cpu.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished pictures, do the others.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find, classify and score the nuclei of IHC pictures."""
    from .config import RunConfig
    from .discovery import resolved

    base = RunConfig.load(config) if config else RunConfig()
    named: dict[str, Any] = {
        "mpp": mpp,
        "translator": translator,
        "segmenter": segmenter,
        "classifier": classifier,
        "device": device,
        "offline": offline or None,
        "registries": [*base.registries, *registry] if registry else None,
    }
    chosen = base.replace(**{key: value for key, value in named.items() if value is not None})
    _run_pictures(pictures, out, resolved(chosen, settings or ()), _existing(overwrite, resume), as_json)


@app.command()
def demo(
    out: Out = Path("demo"),
    translator: Annotated[str, typer.Option(help="Plugin or model.")] = "deconvolution/cytoplasmic",
    segmenter: Annotated[str | None, typer.Option(help="Plugin or model; default: the best installed.")] = None,
    classifier: Annotated[str, typer.Option(help="Plugin or model.")] = "hsi/cytoplasmic",
) -> None:
    """Score scikit-image's real IHC picture (colon, DAB), which is installed with it."""
    from .demonstration import demonstrate
    from .report.console import print_scores

    result, folder = demonstrate(out, translator=translator, segmenter=segmenter, classifier=classifier)
    print_scores(result, folder)


@app.command()
def rescore(
    out: Annotated[Path, typer.Argument(help="A folder that `run` wrote: of one picture or of many.")],
    by: Annotated[str, typer.Option(help="Column that decides: p_positive, dab_od_mean, ...")] = "p_positive",
    threshold: Annotated[float | None, typer.Option(help="Positive at or above this value of --by.")] = None,
    grade_cuts: Annotated[
        tuple[float, float, float] | None, typer.Option(help="DAB optical density from which a nucleus is 1+, 2+, 3+.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a threshold without segmenting again."""
    from .batch import refresh_ledger
    from .report.console import print_rescored
    from .rescoring import rescore_folder

    rescored = rescore_folder(out, by=by, threshold=threshold, grade_cuts=grade_cuts)
    folders = [one.folder.absolute() for one in rescored]
    refresh_ledger(folders[0].parent, folders)
    print_rescored(rescored, as_json=as_json)


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Lower-case name of the plugin.")],
    folder: Annotated[Path | None, typer.Option(help="Where to make it; default: stainbridge-NAME here.")] = None,
) -> None:
    """Start a plugin of your own: a whole distribution with a working segmenter and its tests."""
    from .scaffold import new_plugin as make

    made = make(name, folder)
    typer.echo(made)
    typer.echo(f"Next: pip install -e '{made}' && stainbridge plugins check {name}", err=True)


@plugins_app.callback()
def list_plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List every plugin that can be used, and those that cannot."""
    if context.invoked_subcommand is None:
        from .discovery import catalog
        from .report.console import print_plugins

        print_plugins(catalog(), as_json=as_json)


@plugins_app.command()
def doctor() -> None:
    """Say why a plugin did not load; exit code 1 if any did not."""
    from .discovery import catalog
    from .report.console import print_problems

    problems = catalog().problems
    print_problems(problems)
    raise typer.Exit(1 if problems else 0)


@plugins_app.command()
def check(
    name: Annotated[str, typer.Argument(help="A plugin, as `stainbridge plugins` lists it, or a model of it.")],
    kind: Annotated[PluginKind | None, typer.Option(help="Where one name is of several kinds.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as path=FILE or segmenter.path=FILE; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a plugin against its contract; exit code 1 if a check fails."""
    from .report.console import print_checks
    from .testing import check_plugin

    reports = check_plugin(name, kind=kind, settings=settings or ())
    print_checks(reports, as_json=as_json)
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


@models_app.callback()
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@models_app.command("list")
def list_models(registry: Registries = None, as_json: AsJson = False) -> None:
    """List the models of every registry: plugin, licence, training data, weights."""
    from .registry import load_registry
    from .report.console import print_models

    print_models(load_registry(registry or ()), as_json=as_json)


@models_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A model, such as plugin/variant.")],
    registry: Registries = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look into the cache.")] = False,
    mirror: Annotated[
        str | None, typer.Option(help="URL that is tried first: MIRROR/SHA256/FILE, MIRROR/FILE.")
    ] = None,
) -> None:
    """Bring a model's weights into the cache, checked; print their paths."""
    from rich.console import Console

    from .weights import Store

    store = Store(offline=offline, mirror=mirror, console=Console(stderr=True))
    model = _model(name, registry)
    if not model.weights:
        typer.echo(f"{name} has no weights to fetch: {model.summary}", err=True)
    for weight in model.weights:
        typer.echo(store.fetch(weight, licence=model.licence, model=name))


@models_app.command()
def verify(name: Annotated[str, typer.Argument(help="A model.")], registry: Registries = None) -> None:
    """Hold the cached weights of a model against their registered size and sha256."""
    from .weights import Store

    for weight in _model(name, registry).weights:
        Store(offline=True).verify(weight)
        typer.echo(f"{weight.file}: ok")


@models_app.command()
def where(name: Annotated[str, typer.Argument(help="A model.")], registry: Registries = None) -> None:
    """Print where the weights of a model lie, or would lie, in the cache."""
    from .weights import Store

    for weight in _model(name, registry).weights:
        typer.echo(Store(offline=True).where(weight))


def _model(name: str, registries: list[Path] | None) -> Any:
    from .registry import load_registry

    return load_registry(registries or ()).model(name)


def _existing(overwrite: bool, resume: bool) -> str:
    if overwrite and resume:
        raise typer.BadParameter("--overwrite and --resume exclude each other.")
    return "overwrite" if overwrite else "resume" if resume else "refuse"


def _run_pictures(inputs: list[str], out: Path, config: Any, existing: str, as_json: bool) -> None:
    from .batch import printable, run_batch
    from .io import find_pictures
    from .report.console import batch_progress, print_entries

    pictures, entries = find_pictures(inputs), []
    try:
        with batch_progress(len(pictures)) as shown:
            for entry in run_batch(pictures, out, config, existing=existing, on_start=shown.start):
                shown.finish(entry)
                entries.append(entry)
    except KeyboardInterrupt:
        finished = sum(entry.status != "failed" for entry in entries)
        typer.echo(
            f"Interrupted: {finished} of {len(pictures)} pictures are finished, in {printable(out)}. "
            "Run it again with --resume to keep them and do the others.",
            err=True,
        )
        raise typer.Exit(130) from None
    print_entries(entries, Path(printable(out)), as_json=as_json)
    raise typer.Exit(1 if any(entry.status == "failed" for entry in entries) else 0)


def main() -> None:
    """Run the command line; an error that we understand is one message on stderr and exit code 2."""
    # Looking for plugins of its own, pydantic reads the metadata of every distribution, and one broken file would end each command.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app()
    except StainbridgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
