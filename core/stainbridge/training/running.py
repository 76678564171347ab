"""Train a plugin: `train`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ContractViolation
from ..interfaces import Learner, PluginConfig
from ..loading import Found
from ..torchkit import resolve_device
from .checkpoints import Checkpoints, Standing
from .data import SKIPPED, Data, check_same, open_data, write_lists
from .epochs import MODEL, Finish, Watching
from .exporting import ModelFacts
from .group import Membership, joined
from .logging import Log, open_log
from .loop import Loop
from .pulse import alive
from .record import RESULT, Record, claim, read_json, write_json
from .settings import TrainConfig, put_together
from .sources import Told
from .subject import find_trainable, lesson_settings


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
        If `out` holds something already, and `resume` is False.
    UnknownPlugin, MissingExtra, DeviceUnavailable
        If the plugin, its library or the device is not there.
    TrainingDiverged
        If a loss is no finite number.
    WriteFailed
        If the disk is full.
    """
    found, config = _resolved(config, settings)
    if config.device != "cpu":
        resolve_device(config.device)
    with joined(config.device) as group:
        quiet: Told = lambda *_: None  # noqa: E731
        return _Training(found, config, Path(out), group, tell if tell and group.rank == 0 else quiet).run(
            resume=resume
        )


def resolve(config: TrainConfig) -> TrainConfig:
    """Return a training with every default of its learner written out; errors as `train`."""
    found = find_trainable(config.plugin)
    return config.replace(learner=lesson_settings(found, config).model_dump(mode="json"))


def _resolved(config: TrainConfig | str | Path, settings: Mapping[str, Any]) -> tuple[Found, TrainConfig]:
    if isinstance(config, TrainConfig):
        config = config.replace(**settings) if settings else config
    else:
        file = Path(config) if str(config).endswith(".toml") else None
        plugin = _named_in(file) if file else str(config)
        config = put_together(plugin, find_trainable(plugin).cls.presets, file=file, options=settings)
    return find_trainable(config.plugin), resolve(config)


def _named_in(file: Path) -> str:
    from ..config import read_toml

    plugin = read_toml(file, ConfigError).get("plugin")
    if not isinstance(plugin, str):
        raise ConfigError(f"{file} does not say what is trained: it lacks the key 'plugin'.")
    return plugin


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
        facts = ModelFacts.of(self.config, self.folder)
        record = Record.of(self.config, self.found, world=self.group.world, model=facts.name)
        before = self._claimed(record, resume=resume)
        done = read_json(self.folder / RESULT)
        if done is not None:
            self.tell("finished", 1, 1, "This training is finished; nothing is left to do.")
            with self._log(0):  # which sends what MLflow would not take before
                pass
            return self._trained(facts, done["best"])
        data = self._data(record, before)
        steps = self.config.steps or math.ceil(data.patches / (self.config.batch_size * self.group.world))
        # The others wait in the first collective operation of the learner, and not for long.
        self.group.meet()
        learner = self._learner()
        with self._log(steps) as log:
            log.params({**record.config, "processes": record.world, "steps_per_epoch": steps})
            standing = self._learned(
                learner, data, facts, Checkpoints(self.folder, record.mark, self.group), (steps, log)
            )
            best = standing.best or {"epoch": float(standing.epoch)}
            if self._first:
                tags = {"licence": facts.licence, "plugin": facts.plugin, "data": ", ".join(facts.training)}
                tags |= {f"best.{key}": f"{value:g}" for key, value in best.items()}
                with alive(self.folder, standing.epoch, steps, doing="sending the model"):
                    log.model(self.folder / MODEL, facts.name, tags)
                write_json(self.folder / RESULT, {"best": dict(best), "epochs": self.config.epochs})
        self.group.meet()
        return self._trained(facts, best)

    def _claimed(self, record: Record, *, resume: bool) -> Record | None:
        before = None
        if self._first:
            before = claim(self.folder, resume=resume)
            if before is not None:
                record.check_same(before, self.folder)
                if changes := record.changes(before):
                    self.tell(
                        "", 0, 0, f"The training was started by other software ({changes}), so digits may differ."
                    )
        self.group.meet()
        return before

    def _data(self, record: Record, before: Record | None) -> Data:
        """Open the pictures; on rank 0, write down what they are or hold them against what was written down."""
        self.tell("reading pictures", 0, 0, "")
        with alive(self.folder, 0, 0, doing="reading pictures", when=self._first):
            data = open_data(self.config, self.found.cls.learns_from, hashed=self._first)
        if not self._first:
            return data
        if before is not None:
            check_same(self.folder, data)
        else:
            write_lists(self.folder, data)
            record.write(self.folder)
        counts = {side: sum(one.side == side for one in data.listed) for side in data.sides}
        held = ", ".join(
            f"{side}: {counts[side]} pictures, {patches.count} patches" for side, patches in data.sides.items()
        )
        left = f"; {len(data.skipped)} files are skipped, see {self.folder / SKIPPED}" if data.skipped else ""
        self.tell("pictures", 0, 0, f"{held}{left}")
        return data

    def _learner(self) -> Learner:
        settings: PluginConfig = self.found.cls.Training.model_validate(self.config.learner)
        config = self.config
        learner = self.found.cls.learner(
            settings, device=self.group.device, seed=config.seed, mpp=config.mpp, patch_px=config.patch_px
        )
        if not isinstance(learner, Learner):
            raise ContractViolation(
                f"{self.found.name!r} must give a Learner to train; found {type(learner).__name__}."
            )
        return learner

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

    def _learned(
        self, learner: Learner, data: Data, facts: ModelFacts, checkpoints: Checkpoints, rest: tuple[int, Log]
    ) -> Standing:
        steps, log = rest
        finish = Finish(self.folder, self.found, self.config, facts, self._watcher(data), log, self.group.device)
        loop = Loop(
            folder=self.folder,
            config=self.config,
            data=data,
            learner=learner,
            group=self.group,
            steps=steps,
            checkpoints=checkpoints,
            finish=finish,
            log=log,
            tell=self.tell,
        )
        with alive(self.folder, 0, 0, doing="reading the checkpoint", when=self._first):
            kept = checkpoints.newest(lambda message: self.tell("", 0, 0, message))
        return loop.run(kept)

    def _watcher(self, data: Data) -> Watching | None:
        if not self._first or not self.config.watch.every:
            return None
        from .watching import Watcher

        self.tell("looking at the pictures", 0, 0, "")
        shown, config = data.watched, self.config.replace(device=self.group.device)
        with alive(self.folder, 0, 0, doing="looking at the pictures"):
            watcher = Watcher.open(config, shown.ihc, shown.he, self.folder, labelled=shown.labelled)
        for remark in watcher.remarks:
            self.tell("", 0, 0, remark)
        return watcher

    def _trained(self, facts: ModelFacts, best: Mapping[str, float]) -> Trained:
        return Trained(self.folder, self.folder / MODEL, facts.name, self.found.kind, self.config.epochs, best)
