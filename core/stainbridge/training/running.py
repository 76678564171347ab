"""Train a plugin: `train`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ContractViolation
from ..interfaces import Learner, PluginConfig
from ..loading import Found
from ..torchkit import resolve_device
from .checkpoints import Checkpoints, Standing
from .data import SKIPPED, Data, check_same, open_data, write_lists
from .epochs import MODEL, Finish, Watching
from .exporting import ModelFacts
from .group import Membership, joined
from .lock import alone_in
from .logging import Log, open_log
from .loop import Loop
from .mending import bring_back, has_model
from .pulse import alive
from .record import RECORD, RESULT, Record, claim, damaged, make_folder, read_json, write_json
from .resolving import resolved
from .settings import TrainConfig
from .shortage import TAKES_MORE, Advice, within_memory
from .sources import Told


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Parameters
    ----------
    folder : of the run; `--translator FOLDER` takes the model in it
    model : folder of the best epoch's weights, with their registry file
    name : of the model in that registry
    kind : "translator", "segmenter", ...
    epochs : trained
    best : values of the best epoch, `epoch` among them
    """

    folder: Path
    model: Path
    name: str
    kind: str
    epochs: int
    best: Mapping[str, float]


def train(
    config: TrainConfig | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    tell: Told | None = None,
    **settings: Any,
) -> Trained:
    """Train a plugin on pictures, and leave the best of its epochs in `out` as a model that a run takes.

    Parameters
    ----------
    config : a `TrainConfig`; the name of a plugin, such as "cyclegan"; or the path of a TOML file that names one
    out : folder for checkpoints, models, tables and grids
    resume : go on with the training in `out`, from its last checkpoint; from the beginning where there is none
    tell : told (what, steps done, of how many, a message or an empty string)
    settings : `preset`, and keys of `TrainConfig` over it, such as ``ihc="ihc/", he="he/", epochs=30, learner={"channels": 32}``

    Raises
    ------
    ConfigError
        If a setting is wrong, or differs from those that the training to be gone on with was started with.
    NoPictures, ScaleUnknown, DataCorrupt
        If a side is empty, a picture has no scale, or pictures are not those of before.
    OutputExists
        If `out` holds something already, and `resume` is False; a training that has left no checkpoint is begun anew.
    FolderInUse
        If another process trains into `out`.
    OutOfMemory
        If a step, or what is looked at after an epoch, does not fit into the memory of the device.
    UnknownPlugin, MissingExtra, DeviceUnavailable
        If the plugin, its library or the device is not there.
    TrainingDiverged
        If a loss is no finite number.
    WriteFailed
        If the disk is full.
    """
    found, config = resolved(config, settings)
    if config.device != "cpu":
        resolve_device(config.device)
    with joined(config.device) as group:
        quiet: Told = lambda *_: None  # noqa: E731
        return _Training(found, config, Path(out), group, tell if tell and group.rank == 0 else quiet).run(
            resume=resume
        )


@dataclass(frozen=True)
class _Training:
    """One call of `train` in one process."""

    found: Found
    config: TrainConfig
    folder: Path
    group: Membership
    tell: Told

    @property
    def _first(self) -> bool:
        return self.group.rank == 0

    def run(self, *, resume: bool) -> Trained:
        with self._alone():
            return self._run(resume=resume)

    def _run(self, *, resume: bool) -> Trained:
        facts = ModelFacts.of(self.config, self.folder)
        record = Record.of(self.config, self.found, world=self.group.world, model=facts.name)
        before = self._claimed(record, resume=resume)
        # What may differ from before is no part of the mark.
        checkpoints = Checkpoints(self.folder, (before or record).mark, self.group, vars(record))
        done = read_json(self.folder / RESULT) if before else None
        if done is not None:
            return self._trained(facts, self._already(done, checkpoints, facts))
        data = self._data(before)
        steps = self.config.steps or math.ceil(data.patches / (self.config.batch_size * self.group.world))
        # The others wait in the first collective operation of the learner, and not for long.
        self.group.meet()
        learner, watcher = self._learner(), self._watcher(data)
        if self._first and before is None:
            # Nothing is written down before all that could be a mistake of the user's is made.
            write_lists(self.folder, data)
            record.write(self.folder)
        with self._log(steps) as log:
            log.params({**record.config, "processes": record.world, "steps_per_epoch": steps})
            finish = Finish(self.folder, self.found, self.config, facts, watcher, log, self.group.device)
            standing = self._learned(learner, data, checkpoints, finish, steps)
            best = standing.best or {"epoch": float(standing.epoch)}
            if self._lacks_model():
                self._mended(best, checkpoints, learner, facts)
            if self._first:
                tags = {"licence": facts.licence, "plugin": facts.plugin, "data": ", ".join(facts.training)}
                tags |= {f"best.{key}": f"{value:g}" for key, value in best.items()}
                with alive(self.folder, standing.epoch, steps, doing="sending the model"):
                    log.model(self.folder / MODEL, facts.name, tags)
                write_json(self.folder / RESULT, {"best": dict(best), "epochs": self.config.epochs})
        self.group.meet()
        return self._trained(facts, best)

    def _already(self, done: Mapping[str, Any], checkpoints: Checkpoints, facts: ModelFacts) -> Mapping[str, float]:
        """Return the best epoch of a finished training, whose model is made again where somebody removed it."""
        best = done.get("best")
        if not isinstance(best, dict) or not isinstance(best.get("epoch"), int | float):
            advice = "Remove the file: the same command with --resume then writes it again from the last checkpoint."
            raise damaged(self.folder / RESULT, "it names no best epoch", advice)
        best = {name: math.nan if value is None else value for name, value in best.items()}
        self.tell("finished", 1, 1, "This training is finished; nothing is left to do.")
        if self._lacks_model():
            self._mended(best, checkpoints, self._learner(), facts)
        with self._log(0):  # which sends what MLflow would not take before
            pass
        return best

    def _lacks_model(self) -> bool:
        return self.group.from_first(not has_model(self.folder))

    def _mended(self, best: Mapping[str, float], checkpoints: Checkpoints, learner: Learner, facts: ModelFacts) -> None:
        """Make the model of the best epoch again; every rank calls it, and finds it there afterwards."""
        self.tell("", 0, 0, bring_back(self.folder, int(best["epoch"]), checkpoints, learner, self.config, facts))
        self.group.meet()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder, on rank 0."""
        if not self._first:
            yield
            return
        make_folder(self.folder)
        with alone_in(self.folder):
            yield

    def _claimed(self, record: Record, *, resume: bool) -> Record | None:
        before = None
        if self._first:
            before = claim(self.folder, resume=resume)
            if before is None and (self.folder / RECORD).is_file():
                self.tell("", 0, 0, f"The training in {self.folder} has left no checkpoint; it is begun anew.")
            if before is not None:
                record.check_same(before, self.folder)
                if changes := record.changes(before):
                    self.tell(
                        "",
                        0,
                        0,
                        f"The training was started with other software or parts ({changes}), so digits may differ.",
                    )
        return self.group.from_first(before)

    def _data(self, before: Record | None) -> Data:
        """Open the pictures; on rank 0, hold them against what was written down."""
        self.tell("reading pictures", 0, 0, "")
        with alive(self.folder, 0, 0, doing="reading pictures", when=self._first):
            data = open_data(self.config, self.found.cls.learns_from, hashed=self._first, out=self.folder)
        if not self._first:
            return data
        if before is not None:
            check_same(self.folder, data)
        counts = {side: sum(one.side == side for one in data.listed) for side in data.sides}
        shown = ", ".join(
            f"{side}: {counts[side]} pictures, {patches.count} patches" for side, patches in data.sides.items()
        )
        out = "; held out: " + ", ".join(f"{side} {len(files)}" for side, files in data.watched.held_out.items())
        left = f"; {len(data.skipped)} files are skipped, see {self.folder / SKIPPED}" if data.skipped else ""
        self.tell("pictures", 0, 0, f"{shown}{out if self.config.watch.held_out else ''}{left}")
        return data

    def _learner(self) -> Learner:
        settings, config = self._settings, self.config
        learner = within_memory(
            lambda: self.found.cls.learner(
                settings, device=self.group.device, seed=config.seed, mpp=config.mpp, patch_px=config.patch_px
            ),
            what=lambda: f"The learner of {self.found.name!r} on {self.group.device!r}",
            advice=lambda: TAKES_MORE,
        )
        if not isinstance(learner, Learner):
            raise ContractViolation(
                f"{self.found.name!r} must give a Learner to train; found {type(learner).__name__}."
            )
        return learner

    @property
    def _settings(self) -> PluginConfig:
        settings: PluginConfig = self.found.cls.Training.model_validate(self.config.learner)
        return settings

    @contextmanager
    def _log(self, steps: int) -> Iterator[Log]:
        """Yield the log of rank 0, and one that logs nothing on the others; tell at the end what could not be sent."""
        config = self.config if self._first else self.config.replace(tracking=False)
        log = open_log(self.folder, config, steps=steps * config.epochs)
        try:
            yield log
        except BaseException as error:
            self._told(log.close("FAILED" if isinstance(error, Exception) else "KILLED"))
            raise
        with alive(self.folder, config.epochs, steps, doing="sending what is left", when=self._first and steps > 0):
            message = log.close()
        self._told(message)

    def _told(self, message: str | None) -> None:
        if message:
            self.tell("MLflow", 0, 0, message)

    def _learned(self, learner: Learner, data: Data, checkpoints: Checkpoints, finish: Finish, steps: int) -> Standing:
        loop = Loop(
            folder=self.folder,
            config=self.config,
            data=data,
            learner=learner,
            group=self.group,
            steps=steps,
            checkpoints=checkpoints,
            finish=finish,
            log=finish.log,
            tell=self.tell,
            advice=Advice(self.config, self._settings, self.group.device),
        )
        with alive(self.folder, 0, 0, doing="reading the checkpoint", when=self._first):
            kept = checkpoints.newest(lambda message: self.tell("", 0, 0, message))
            if kept is not None and kept.standing.best and self._lacks_model():
                self._mended(kept.standing.best, checkpoints, learner, finish.facts)
        return loop.run(kept)

    def _watcher(self, data: Data) -> Watching | None:
        if not self._first or not self.config.watch.every:
            return None
        from .watching import Watcher

        self.tell("looking at the pictures", 0, 0, "")
        shown, config = data.watched, self.config.replace(device=self.group.device)
        with alive(self.folder, 0, 0, doing="looking at the pictures"):
            watcher = Watcher.open(
                config, shown.ihc, shown.he, self.folder, labelled=shown.labelled, held_out=shown.held_out
            )
        for remark in watcher.remarks:
            self.tell("", 0, 0, remark)
        return watcher

    def _trained(self, facts: ModelFacts, best: Mapping[str, float]) -> Trained:
        return Trained(self.folder, self.folder / MODEL, facts.name, self.found.kind, self.config.epochs, best)
