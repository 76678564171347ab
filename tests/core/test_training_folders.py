"""The folder of a training: mistakes leave it free, what is damaged or removed is said or mended, and one process has it at a time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import training_cases as cases
import training_fakes as fakes

import stainbridge
from stainbridge.errors import ConfigError, DataCorrupt, OutputExists
from stainbridge.provenance import software
from stainbridge.training import lock
from stainbridge.training.lock import LOCK, FolderInUse, alone_in
from stainbridge.training.shortage import Advice, OutOfMemory

STEPS, EPOCHS = 4, 3
HERE = Path(__file__).parent


tint, pictures = cases.tint, cases.pictures


@pytest.fixture
def train(pictures, tmp_path):
    """Train into a folder below tmp_path; see `train_into`."""
    settings = {"mpp": 0.25, "patch_px": 32, "epochs": EPOCHS, "steps": STEPS, "tracking": False, "workers": 1}
    settings |= {"ihc": pictures / "ihc", "he": pictures / "he", "watch": {"every": 0}, "batch_size": 4}

    def call(name="run", *, resume=False, stop_after=None, **changes):
        return cases.train_into(tmp_path / name, {**settings, **changes}, resume=resume, stop_after=stop_after)

    return call


def stopped(train, *arguments, **options):
    with pytest.raises(KeyboardInterrupt):
        train(*arguments, **options)


def gain(folder):
    return fakes.plain_tensors(folder / "model" / fakes.FILE)["gain"]


class TestAMistake:
    """Found late, it does not take the folder."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"watch": {"every": 1, "segmenter": "baselin"}}, "baselin"),
            ({"watch": {"held_out": "nothing*"}}, "held_out"),
            ({"learner": {"lr": 13.0}}, "lr = 13"),
        ],
        ids=["watcher", "pictures", "learner"],
    )
    @pytest.mark.parametrize("resume", [False, True])
    def test_the_corrected_command_trains(self, train, tmp_path, monkeypatch, wrong, message, resume):
        made = fakes.Tint.learner

        def picky(settings, **where):
            if settings.lr == 13.0:
                raise ConfigError("lr = 13 is unlucky.")
            return made(settings, **where)

        monkeypatch.setattr(fakes.Tint, "learner", picky)
        with pytest.raises(stainbridge.errors.StainbridgeError, match=message):
            train(**wrong)
        assert not (tmp_path / "run" / "training.json").exists()
        folder, _ = train(resume=resume)
        assert np.array_equal(gain(folder), gain(train("other")[0]))

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_training_without_a_checkpoint_may_be_begun_anew_with_other_settings(self, train, tmp_path, resume):
        stopped(train, stop_after=2)
        assert (tmp_path / "run" / "training.json").is_file()
        folder, told = train(resume=resume, learner={"lr": 0.2})
        assert f"The training in {folder} has left no checkpoint; it is begun anew." in told
        assert json.loads((folder / "training.json").read_text())["config"]["learner"]["lr"] == 0.2
        assert np.array_equal(gain(folder), gain(train("other", learner={"lr": 0.2})[0]))

    @pytest.mark.heavy
    def test_its_log_is_begun_anew_too(self, train, tmp_path):
        stopped(train, stop_after=2, tracking=True)
        folder, _ = train(tracking=True, learner={"lr": 0.2})
        log = "".join(path.read_text() for path in sorted((folder / "tracking").glob("*.jsonl")))
        assert '"learner.lr"' in log or '"lr"' in log
        assert "resumed." not in log

    @pytest.mark.parametrize("left", ["checkpoints", "model", "latest", "result.json"])
    def test_one_that_has_left_anything_is_not(self, train, left):
        folder, _ = train()
        for path in folder.iterdir():
            if path.name not in ("training.json", left):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(OutputExists, match="holds a training"):
            train(learner={"lr": 0.2})


class TestDamage:
    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("{}", "'config' is missing"),
            ("[]", "holds list instead of a table"),
            ('{"config": 1}', "'config' is missing"),
            ("{", "Expecting property name"),
        ],
    )
    def test_of_the_record_is_an_error_of_ours(self, train, text, fault):
        folder, _ = train()
        (folder / "training.json").write_text(text)
        with pytest.raises(ConfigError, match=rf"training\.json' is damaged: .*{fault}.*\n.*another folder"):
            train(resume=True)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"best": {}}', '{"best": {"epoch": null}}'])
    def test_of_the_result_is_an_error_whose_advice_works(self, train, text):
        folder, _ = train()
        before = (folder / "result.json").read_text()
        (folder / "result.json").write_text(text)
        with pytest.raises(ConfigError, match=r"result\.json' is damaged"):
            train(resume=True)
        (folder / "result.json").unlink()
        train(resume=True)
        assert (folder / "result.json").read_text() == before

    def test_of_the_list_of_pictures_is_an_error_of_ours(self, train, tmp_path):
        stopped(train, stop_after=STEPS + 1)
        (tmp_path / "run" / "data.csv").unlink()
        with pytest.raises(DataCorrupt, match=r"data\.csv'.*cannot be read: .*No such file"):
            train(resume=True)


class TestACheckpoint:
    def test_it_says_what_it_was_made_from(self, train):
        folder, _ = train()
        record = json.loads((folder / "training.json").read_text())
        for path in folder.glob("checkpoints/*/state.json"):
            said = json.loads(path.read_text())["state"]["training"]
            assert said == record
            assert said["software"] == software()

    def test_an_older_one_that_does_not_is_taken(self, train, tmp_path):
        from stainbridge.training.checkpoints import _sealed

        stopped(train, stop_after=STEPS + 1)
        (path,) = (tmp_path / "run").glob("checkpoints/*/state.json")
        state = json.loads(path.read_text())["state"]
        del state["training"]
        path.write_text(_sealed(state))
        folder, told = train(resume=True)
        assert not any("refused" in one for one in told)
        assert np.array_equal(gain(folder), gain(train("other")[0]))


class Judge:
    """Finds the second epoch best."""

    remarks = ()

    def __init__(self, folder):
        self.folder = folder

    def watch(self, plugin, learner, epoch):
        return {"score": float(epoch == 2)}

    def is_better(self, values, best):
        return best is None or values["score"] > best["score"]

    def grid(self, epoch):
        return self.folder / f"{epoch}.png"


class TestAMissingModel:
    @pytest.fixture(autouse=True)
    def second_is_best(self, monkeypatch):
        from stainbridge.training import watching

        monkeypatch.setattr(
            watching.Watcher, "open", staticmethod(lambda config, ihc, he, folder, **rest: Judge(folder))
        )

    @pytest.mark.parametrize("stop_after", [None, 3 * STEPS + 2], ids=["finished", "under way"])
    def test_is_made_again_of_the_best_epoch(self, train, stop_after):
        whole = train("whole", epochs=5, watch={"every": 1})[0]
        if stop_after is None:
            train(epochs=5, watch={"every": 1})
        else:
            stopped(train, stop_after=stop_after, epochs=5, watch={"every": 1})
        folder = whole.with_name("run")
        shutil.rmtree(folder / "model")
        _, told = train(resume=True, epochs=5, watch={"every": 1})
        assert "model/ is missing: it is made again from the checkpoint of epoch 2, the best." in told
        assert (folder / "model" / fakes.FILE).read_bytes() == (whole / "model" / fakes.FILE).read_bytes()
        assert 'epoch 2 of 5"' in (folder / "model" / "registry.toml").read_text()
        assert (folder / "latest" / fakes.FILE).read_bytes() == (whole / "latest" / fakes.FILE).read_bytes()
        assert (folder / "epochs.csv").read_bytes() == (whole / "epochs.csv").read_bytes()

    def test_without_the_checkpoint_the_latest_is_taken_and_that_is_said(self, train):
        folder, _ = train(epochs=5, watch={"every": 1})
        shutil.rmtree(folder / "model")
        shutil.rmtree(folder / "checkpoints" / "epoch_0002")
        _, told = train(resume=True, epochs=5, watch={"every": 1})
        assert any(
            "checkpoint of epoch 2, the best, is not kept or not whole: it now holds the latest" in one for one in told
        )
        assert (folder / "model" / fakes.FILE).read_bytes() == (folder / "latest" / fakes.FILE).read_bytes()
        shutil.rmtree(folder / "model")
        shutil.rmtree(folder / "latest")
        with pytest.raises(ConfigError, match="Bring one of them back"):
            train(resume=True, epochs=5, watch={"every": 1})

    def test_one_removed_while_it_trains_is_not_replaced_by_the_latest(self, train, monkeypatch):
        look = Judge.watch

        def remove(self, plugin, learner, epoch):
            if epoch == 4:
                shutil.rmtree(self.folder / "model")
            return look(self, plugin, learner, epoch)

        whole = train("whole", epochs=5, watch={"every": 1})[0]
        monkeypatch.setattr(Judge, "watch", remove)
        folder, _ = train(epochs=5, watch={"every": 1})
        assert (folder / "model" / fakes.FILE).read_bytes() == (whole / "model" / fakes.FILE).read_bytes()


class TestMemory:
    @pytest.fixture
    def small_device(self, monkeypatch):
        """Let steps fail from a given one on unless their batch goes through in parts; "at" says from which."""
        real, device = fakes.TintLearner.step, {"at": 1}

        def step(self, batch):
            if self.steps + 1 >= device["at"] and len(batch.ihc) / self.settings.accumulate > 2:
                raise MemoryError("Unable to allocate 2.00 GiB")
            return real(self, batch)

        monkeypatch.setattr(fakes.TintLearner, "step", step)
        return device

    def test_validation_that_does_not_fit_says_so(self, train, monkeypatch):
        def export(self):
            raise MemoryError("Unable to allocate 2.00 GiB")

        monkeypatch.setattr(fakes.TintLearner, "export", export)
        with pytest.raises(
            OutOfMemory, match="Validating epoch 1 on 'cpu' does not fit into memory: Unable to allocate"
        ):
            train()

    @pytest.mark.usefixtures("small_device")
    @pytest.mark.parametrize("advised", [{"learner": {"accumulate": 2}}, {"batch_size": 2}])
    def test_without_a_checkpoint_the_advice_begins_anew(self, train, advised):
        with pytest.raises(OutOfMemory) as caught:
            train()
        assert str(caught.value) == (
            "Step 1 of epoch 1 on 'cpu' does not fit into memory: Unable to allocate 2.00 GiB\n"
            "Nothing is kept of it: give the same command with --set learner.accumulate=2 or --set batch_size=2, and it begins anew."
        )
        assert caught.value.__context__ is None
        train(**advised)

    def test_with_a_checkpoint_the_same_steps_go_on_in_parts(self, train, small_device):
        small_device["at"] = STEPS + 2
        with pytest.raises(OutOfMemory) as caught:
            train()
        advice = str(caught.value).splitlines()[1:]
        assert advice == [
            "Go on from the last checkpoint: give the same command with --resume and --set learner.accumulate=2.",
            "Or: Begin anew: give another folder, and --set batch_size=2.",
        ]
        folder, told = train(resume=True, learner={"accumulate": 2})
        assert any("learner.accumulate: 1 before, 2 now" in one for one in told)
        small_device["at"] = 1000
        assert np.array_equal(gain(folder), gain(train("whole")[0]))
        train(resume=True)

    def test_another_batch_is_refused_on_the_way(self, train):
        stopped(train, stop_after=STEPS + 1)
        with pytest.raises(ConfigError, match="batch_size: 4 before, 2 now"):
            train(resume=True, batch_size=2)

    def test_other_errors_pass_as_they_are(self, train, monkeypatch):
        def step(self, batch):
            raise RuntimeError("a bug")

        monkeypatch.setattr(fakes.TintLearner, "step", step)
        with pytest.raises(RuntimeError, match="a bug"):
            train()

    def test_only_what_the_learner_has_is_advised(self, pictures):
        config = stainbridge.TrainConfig(plugin="any", batch_size=1)

        class Bare(stainbridge.PluginConfig):
            pass

        class Light(stainbridge.PluginConfig):
            light: bool = False
            precision: str = "fp32"

        nothing = "Take a device with more memory, or close what else uses this one."
        assert Advice(config, Bare(), "cuda").text(kept=True) == nothing
        assert Advice(config, Light(), "cpu").text(kept=True) == (
            "Begin anew: give another folder, and --set learner.light=true."
        )
        assert "--set learner.precision=bf16 or --set learner.light=true" in Advice(config, Light(), "cuda").text(
            kept=False
        )

    @pytest.mark.heavy
    def test_torch_is_known_where_it_runs_out_and_a_cyclegan_goes_on_in_parts(self, pictures, tmp_path, monkeypatch):
        torch = pytest.importorskip("torch")
        from stainbridge_plugins.cyclegan.learner import CycleGANLearner

        small = {"channels": 4, "blocks": 1, "layers": 2}
        settings = {
            **{side: pictures / side for side in ("ihc", "he")},
            **{"mpp": 0.25, "patch_px": 32, "epochs": 2, "steps": 2, "batch_size": 2, "flips": "none"},
            **{"tracking": False, "workers": 1, "watch": {"every": 0}},
        }
        stainbridge.train("cyclegan", tmp_path / "whole", learner=small, **settings)
        real, done = CycleGANLearner.step, []

        def step(self, batch):
            done.append(1)
            if len(done) >= 3 and self.settings.accumulate == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it")
            return real(self, batch)

        monkeypatch.setattr(CycleGANLearner, "step", step)
        with pytest.raises(
            OutOfMemory, match=r"CUDA out of memory\. .*GiB\.\nGo on .*--resume and --set learner\.accum"
        ):
            stainbridge.train("cyclegan", tmp_path / "parts", learner=small, **settings)
        more = {**small, "accumulate": 2}
        stainbridge.train("cyclegan", tmp_path / "parts", resume=True, learner=more, **settings)
        whole, parts = (
            fakes.plain_tensors(tmp_path / one / "model" / "generator.safetensors") for one in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        for name, tensor in whole.items():
            # A bias before instance normalisation has no gradient but rounding, which Adam makes a whole step of.
            if name.endswith("weight"):
                assert np.median(np.abs(parts[name] - tensor)) < 1e-6, name


class TestOneAtATime:
    def test_a_second_training_is_refused_and_the_first_is_named(self, train, tmp_path):
        stopped(train, stop_after=STEPS + 1)
        with alone_in(tmp_path / "run"):
            for resume in (False, True):
                with pytest.raises(FolderInUse, match=rf"run' is being trained into by process {os.getpid()} on "):
                    train(resume=resume)
        train(resume=True)
        assert not (tmp_path / "run" / LOCK).exists()

    def test_a_killed_process_holds_nothing(self, train, tmp_path):
        (tmp_path / "run").mkdir()
        code = (
            "import os, signal, sys; from pathlib import Path; from stainbridge.training.lock import alone_in\n"
            "with alone_in(Path(sys.argv[1])): print(flush=True); sys.stdin.read(1); os.kill(os.getpid(), signal.SIGKILL)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        with pytest.raises(FolderInUse, match=f"process {process.pid} on "):
            train()
        process.communicate(b"x")
        assert (tmp_path / "run" / LOCK).exists()
        train()

    def test_a_training_that_ended_with_an_error_holds_nothing(self, train, tmp_path):
        stopped(train, stop_after=1)
        assert not (tmp_path / "run" / LOCK).exists()

    def test_without_locks_it_trains(self, train, monkeypatch):
        fcntl = pytest.importorskip("fcntl")

        def no_locks(*_):
            raise OSError(37, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        train()

    def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(self, tmp_path, monkeypatch):
        fcntl = pytest.importorskip("fcntl")
        real, calls = fcntl.flock, []

        def removed(*arguments):
            calls.append(1)
            if len(calls) == 1:
                (tmp_path / LOCK).unlink()
            real(*arguments)

        monkeypatch.setattr(fcntl, "flock", removed)
        with alone_in(tmp_path):
            assert len(calls) == 2
            assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
            with pytest.raises(FolderInUse), alone_in(tmp_path):
                pass


def test_the_lock_of_another_process_is_left_where_it_took_ones_place(tmp_path):
    pytest.importorskip("fcntl")
    with alone_in(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def test_what_is_no_number_is_null_in_json(tmp_path):
    from stainbridge.training.record import write_json

    write_json(tmp_path / "values.json", {"best": {"kid": float("nan"), "epoch": 2.0}, "rest": [float("inf"), 1]})
    text = (tmp_path / "values.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"best": {"kid": None, "epoch": 2.0}, "rest": [None, 1]}
