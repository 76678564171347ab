"""The command `train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Inputs = list[Path] | None


def train(
    plugin: Annotated[str, typer.Argument(help="What is trained: cyclegan, ugatit, hovernet, ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints, models, tables and grids.")],
    ihc: Annotated[Inputs, typer.Option(help="Pictures or slides of IHC, or folders of them; may be repeated.")] = None,
    he: Annotated[Inputs, typer.Option(help="The same of H&E, which need not be of the same tissue.")] = None,
    pictures: Annotated[Inputs, typer.Option(help="Folders of pictures with labels, for a segmenter.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings by name, such as paper or original.")] = None,
    config: Annotated[Path | None, typer.Option(help="A training as TOML; options given here win.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the patches, and of pictures that do not say.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often all patches are gone through.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as batch_size=2 or learner.lambda_identity=0.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: cpu.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes of this machine that train together, one for each GPU.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    tracking: Annotated[bool | None, typer.Option("--mlflow/--no-mlflow", help="Log to MLflow; default: yes.")] = None,
) -> None:
    """Train a plugin on your own pictures; what comes out is used by --translator FOLDER."""
    from .training.group import started_by_torchrun

    if processes > 1 and not started_by_torchrun():
        from .training.launch import supervise

        raise typer.Exit(supervise(sys.argv[1:], out, processes=processes))
    options: dict[str, Any] = {
        "preset": preset,
        "ihc": ihc,
        "he": he,
        "pictures": pictures,
        "mpp": mpp,
        "epochs": epochs,
        "device": device,
        "tracking": tracking,
    }
    given = {key: value for key, value in options.items() if value is not None and value != []}
    _train(plugin, out, given, config, settings or [], resume=resume)


def _train(
    plugin: str, out: Path, options: dict[str, Any], file: Path | None, settings: list[str], *, resume: bool
) -> None:
    from . import training
    from .training.settings import put_together
    from .training.subject import find_trainable

    presets = find_trainable(plugin).cls.presets
    chosen = put_together(plugin, presets, file=file, options=options, settings=settings)
    try:
        with _progress() as tell:
            found = training.train(chosen, out, resume=resume, tell=tell)
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. The same command with --resume goes on from the last checkpoint in {out}.", err=True)
        raise typer.Exit(130) from None
    _say_how_to_use(found, out)


def _say_how_to_use(found: Any, out: Path) -> None:
    registry = found.model / "registry.toml"
    use = ["stainbridge", "run", "PICTURES", "-o", "RESULTS", f"--{found.kind}"]
    typer.echo(f"Trained {found.name}; the best of {found.epochs} epochs is {found.best['epoch']:.0f}.")
    typer.echo(f"Use it:  {shlex.join([*use, str(out)])}")
    typer.echo(f"By name: {shlex.join([*use, found.name, '--registry', str(registry)])}")
    typer.echo(f"For a registry file of your own, beside {', '.join(_weights(found.model))}:\n")
    typer.echo(registry.read_text("utf-8"), nl=False)


def _weights(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "registry.toml")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """Show on stderr what a training is at; messages stay."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def told(what: str, done: int, total: int, message: str) -> None:
            if total or not message:
                bars.update(task, description=escape(what), completed=done, total=total or None)
            if message:
                bars.console.print(escape(message), soft_wrap=True, highlight=False)

        yield told
