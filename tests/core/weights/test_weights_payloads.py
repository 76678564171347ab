"""Loaders: nothing that is in a file is ever run."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from stainbridge.errors import WeightsCorrupt
from stainbridge.weights import load_state_dict, load_torchscript, read_npz
from stainbridge.weights.archives import take_member

# Making TorchScript, which torch deprecates, is only done here.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Touch:
    """Creates a file when it is unpickled, by one of several callables."""

    def __init__(self, way, path):
        self.way, self.path = way, str(path)

    def __reduce__(self):
        import os
        import subprocess

        touch = f"touch {self.path}"
        code = f"open({self.path!r}, 'w').close()"
        return {
            "system": (os.system, (touch,)),
            "popen": (subprocess.call, (["touch", self.path],)),
            "exec": (exec, (code,)),
            "eval": (eval, (code,)),
            "open": (open, (self.path, "w")),
        }[self.way]


WAYS = ("system", "popen", "exec", "eval", "open")


def pickled(payload, protocol=2):
    return pickle.dumps(payload, protocol)


def torch_zip(data):
    """A torch checkpoint, whose pickle is replaced by `data`."""
    import torch

    real, forged = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(2)}, real)
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return forged.getvalue()


def script_zip(data):
    """A TorchScript archive, whose pickle is replaced by `data`."""
    import torch

    real, forged = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), real)
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return forged.getvalue()


def tar_of(name, data):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def zip_of(name, data):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr(name, data)
    return raw.getvalue()


def object_npy(payload):
    raw = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = payload
    np.save(raw, array, allow_pickle=True)
    return raw.getvalue()


# Each line: what the file is called, how the payload is packed, and who is asked to read it. With the five ways: 20 and more.
PLAIN = {
    "npz with an object array": ("a.npz", lambda evil: zip_of("w.npy", object_npy(evil)), read_npz),
    "npz that is a bare pickle": ("b.npz", pickled, read_npz),
    "npz that is an npy with an object": ("c.npz", object_npy, read_npz),
}
TORCH = {
    "torch zip": ("a.pt", lambda evil: torch_zip(pickled({"w": evil})), load_state_dict),
    "torch zip, protocol 4": ("b.pth", lambda evil: torch_zip(pickled(evil, 4)), load_state_dict),
    "bare pickle": ("c.pth", lambda evil: pickled({"w": evil}), load_state_dict),
    "old tar": ("d.t7", lambda evil: tar_of("pickle", pickled(evil)), load_state_dict),
    "TorchScript": ("e.pt", lambda evil: script_zip(pickled(evil)), load_torchscript),
    "pickle called safetensors": ("f.safetensors", lambda evil: pickled({"w": evil}), load_state_dict),
}


def attack(tmp_path, way, name, pack, load):
    """Let a loader read the payload; return whether it ran."""
    witness = tmp_path / "executed"
    path = tmp_path / name
    path.write_bytes(pack(Touch(way, witness)))
    with pytest.raises(WeightsCorrupt, match=name):
        load(path)
    return witness.exists()


def test_the_payloads_do_run_when_they_are_unpickled(tmp_path):
    for way in WAYS:
        opened = pickle.loads(pickled(Touch(way, tmp_path / way)))
        if way == "open":
            opened.close()
        assert (tmp_path / way).exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", PLAIN)
def test_no_payload_runs_from_numpy_files(tmp_path, kind, way):
    assert not attack(tmp_path, way, *PLAIN[kind])


@pytest.mark.parametrize("way", WAYS)
def test_no_payload_runs_when_a_member_is_taken(tmp_path, way):
    data = pickled(Touch(way, tmp_path / "executed"))
    (tmp_path / "a.zip").write_bytes(zip_of("m", data))
    take_member(tmp_path / "a.zip", "m", tmp_path / "out", size=len(data))
    assert not (tmp_path / "executed").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TORCH)
def test_no_payload_runs_from_torch_files(tmp_path, kind, way):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert not attack(tmp_path, way, *TORCH[kind])
