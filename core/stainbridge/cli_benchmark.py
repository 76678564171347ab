"""The command `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    suite: Annotated[Path, typer.Argument(help="What is combined on which data, as TOML.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; what is finished in it is kept.")],
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie, or are fetched to.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="inline, local, a number of workers, tcp://HOST:PORT or a scheduler file.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Local worker processes.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: the suite's.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse leakage and weights barred from the use.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    tracking: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Log to MLflow.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run every translator with every segmenter of a suite, score, compare, and log to MLflow."""
    from .benchmarking import benchmark as run
    from .report.console import benchmark_progress, print_benchmark
    from .suite import Suite

    chosen = Suite.load(suite)
    shared = {"device": device or chosen.run.device, "offline": offline or chosen.run.offline}
    chosen = chosen.replace(strict=strict or chosen.strict, run={**chosen.run.model_dump(), **shared})
    with benchmark_progress() as tell:
        found = run(chosen, out, data_dir=data_dir, scheduler=scheduler, workers=workers, tracking=tracking, tell=tell)
    print_benchmark(found, as_json=as_json)
    raise typer.Exit(1 if any(cell.failed for cell in found.cells) else 0)
