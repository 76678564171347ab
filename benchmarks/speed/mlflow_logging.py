"""Time a logged value through the journal against one log_metric call for each: `python benchmarks/speed/mlflow_logging.py`.

One new SQLite store in a temporary folder; calls taking turns, ratios of medians. "logging" is what the work waits for: the
values are on disk. "in MLflow" adds the making of a run and the sending: 10 metrics x 300 steps as in training; a cell of a suite,
60 pooled values as metrics and 60 of each of 100 pictures as a table; the pooled ones alone. log_metric waits for the disk at each
call, so its time, and the ratios with it, depend on the disk. What arrived is counted, or it stops. Writes
benchmarks/results/mlflow_logging.json.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import mlflow

from stainbridge.tracking import Run, Tracker, open_tracker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import medians, write

STEPS, METRICS, POOLED, PICTURES, PEER = 300, 10, 60, 100, 100


def one_by_one(client: mlflow.MlflowClient, experiment: str) -> None:
    """Log values as MLflow's examples do."""
    run = client.create_run(experiment).info.run_id
    for step in range(PEER):
        client.log_metric(run, f"m{step % METRICS}", step / 7, step=step // METRICS)


def training(run: Run) -> None:
    """Log every step."""
    for step in range(STEPS):
        run.metrics({f"m{number}": step / 7 + number for number in range(METRICS)}, step=step)


def pooled(run: Run) -> None:
    """Log the pooled values of one cell."""
    run.metrics({f"matching/f1@{number / 100:.2f}": number / 7 for number in range(POOLED)})


def cell(run: Run) -> None:
    """Log the pooled values and those of every picture."""
    pooled(run)
    run.table(
        [{f"value/{number}": picture / 7 + number for number in range(POOLED)} for picture in range(PICTURES)], "t"
    )


def main() -> None:
    """Time, count, write."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder, open_tracker(folder) as tracker:
        tracker.run("first", "first")
        tracker.flush()
        client = mlflow.MlflowClient(tracker.uri)
        experiment = client.get_experiment_by_name("stainbridge").experiment_id

        def only(act: Callable[[Run], None]) -> Callable[[], None]:
            return lambda: act(tracker.run(f"r{next(numbers)}", "r"))

        def sent(act: Callable[[Run], None]) -> Callable[[], None]:
            def call() -> None:
                act(tracker.run(f"r{next(numbers)}", "r"))
                flush(tracker)

            return call

        # What only the logging left waiting is sent here, so that the timed calls send their own.
        seconds = medians(
            {
                "log_metric": lambda: one_by_one(client, experiment),
                "logging, training": only(training),
                "(sending it)": lambda: flush(tracker),
                "in MLflow, training": sent(training),
                "in MLflow, cell": sent(cell),
                "in MLflow, pooled alone": sent(pooled),
            }
        )
        rows = sum(len(client.get_metric_history(run.info.run_id, "m0")) for run in client.search_runs([experiment]))
        if rows != 8 * (2 * STEPS + PEER // METRICS):
            raise SystemExit(f"{rows} values arrived.")
    counts = {
        "log_metric": PEER,
        "logging, training": STEPS * METRICS,
        "in MLflow, training": STEPS * METRICS,
        "in MLflow, cell": POOLED * (1 + PICTURES),
        "in MLflow, pooled alone": POOLED,
    }
    each = {name: 1e6 * seconds[name] / count for name, count in counts.items()}
    ratios = {name: each["log_metric"] / value for name, value in each.items() if name != "log_metric"}
    print(
        {name: round(value, 1) for name, value in each.items()},
        {name: round(value, 1) for name, value in ratios.items()},
    )
    write(
        "mlflow_logging",
        "python benchmarks/speed/mlflow_logging.py",
        {"us_per_value": each, "log_metric_over": ratios},
        "mlflow",
    )


def flush(tracker: Tracker) -> None:
    """Send, and stop if something was left."""
    flushed = tracker.flush()
    if flushed.waiting or flushed.refused:
        raise SystemExit(str(flushed))


if __name__ == "__main__":
    main()
