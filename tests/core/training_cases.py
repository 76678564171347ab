"""What tests of trainings share: the plugin that is trained, pictures of both stains, and a training that may be stopped in a step."""

import pytest
import training_fakes as fakes

import stainbridge
from stainbridge import discovery


@pytest.fixture(autouse=True)
def tint(monkeypatch):
    """The plugin that is trained, and nothing of the user's MLflow."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    undo = discovery.register(fakes.TintPlugin())
    yield
    undo()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with pictures of both stains."""
    folder = tmp_path_factory.mktemp("pictures")
    for stain in ("ihc", "he"):
        fakes.write_pictures(folder / stain, stain)
    return folder


def train_into(folder, settings, *, resume=False, stop_after=None):
    """Train, stopped in a step if asked; return the folder and what was told."""
    told, steps = [], 0

    def tell(what, done, total, message):
        nonlocal steps
        if message:
            told.append(message)
        steps += what.startswith("epoch") and "validating" not in what
        if steps == stop_after:
            raise KeyboardInterrupt

    stainbridge.train("tint", folder, resume=resume, tell=tell, **settings)
    return folder, told
