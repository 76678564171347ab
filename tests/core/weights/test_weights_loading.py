"""Loaders: what is wrong with a file is a typed error that names it."""

import builtins
import hashlib
import re
import sys

import numpy as np
import pytest

from stainbridge.errors import MissingExtra, WeightsCorrupt, WeightsUnavailable
from stainbridge.weights import fill, load_state_dict, load_torchscript, loading, read_h5, read_npz

# Making TorchScript, which torch deprecates, is only done here.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.arange(6.0).reshape(2, 3), n=np.arange(3))
    return path


def test_plain_arrays_are_read(npz):
    arrays = read_npz(npz, sha(npz))
    assert arrays.keys() == {"w", "n"}
    np.testing.assert_array_equal(arrays["w"], np.arange(6.0).reshape(2, 3))


def test_another_hash_is_refused_with_both_hashes(npz):
    with pytest.raises(WeightsCorrupt) as failure:
        read_npz(npz, "0" * 64)
    assert sha(npz) in str(failure.value)
    assert "expected sha256 " + "0" * 64 in str(failure.value)


def test_the_hashed_bytes_are_the_loaded_ones(npz, monkeypatch):
    """Whoever swaps the file while it is being loaded gets nowhere."""
    real, expected = hashlib.sha256, sha(npz)

    def swap_after_hashing(data):
        digest = real(data)
        np.savez(npz, w=np.full((2, 3), 666.0))
        return digest

    monkeypatch.setattr(hashlib, "sha256", swap_after_hashing)
    assert read_npz(npz, expected)["w"].max() == 5


def test_files_above_the_limit_are_hashed_by_path(npz, monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 1000)
    padded = npz.read_bytes() + bytes(2000)
    npz.write_bytes(padded)
    with pytest.raises(WeightsCorrupt, match="its sha256 is"):
        read_npz(npz, "0" * 64)
    assert isinstance(loading._checked(npz, sha(npz)), type(npz))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_that_are_not_finite_are_refused(npz, value):
    np.savez(npz, w=np.array([1.0, value]))
    with pytest.raises(WeightsCorrupt, match="'w' holds NaN or infinity"):
        read_npz(npz)
    assert read_npz(npz, finite=False)["w"].size == 2


def test_an_npz_bomb_is_refused_before_it_is_unpacked(npz, monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 100_000)
    np.savez_compressed(npz, w=np.zeros(100_000))
    assert npz.stat().st_size < 2000
    with pytest.raises(WeightsCorrupt, match="unpacks to 800,128 bytes"):
        read_npz(npz)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_arrays_are_refused(npz, fraction):
    npz.write_bytes(npz.read_bytes()[: int(fraction * npz.stat().st_size)])
    with pytest.raises(WeightsCorrupt, match=r"w\.npz"):
        read_npz(npz)


@pytest.mark.parametrize("load", [read_npz, load_state_dict])
def test_a_file_that_is_not_there_is_unavailable(tmp_path, load):
    with pytest.raises(WeightsUnavailable, match=r"no weight file .*missing\.npz"):
        load(tmp_path / "missing.npz")


def hide(monkeypatch, hidden):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name.split(".")[0] == hidden:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_torch_the_pip_line_is_said(npz, monkeypatch):
    hide(monkeypatch, "torch")
    with pytest.raises(MissingExtra, match=r"pip install 'stainbridge\[torch\]'"):
        load_state_dict(npz)


def test_an_old_torch_is_refused(npz, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.9.1+cpu"))
    with pytest.raises(MissingExtra, match=r"needs torch 2\.10 or newer; found 2\.9\.1"):
        load_state_dict(npz)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def net(torch):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))


@pytest.fixture(params=["pt", "safetensors"])
def saved(request, torch, net, tmp_path):
    path = tmp_path / f"net.{request.param}"
    if request.param == "pt":
        torch.save(net.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(
            net.state_dict(), path
        )
    return path


@pytest.mark.heavy
def test_a_state_dict_comes_back_as_it_was_saved(torch, net, saved):
    for state in (load_state_dict(saved), load_state_dict(saved, sha(saved))):
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


@pytest.mark.heavy
def test_200_flipped_bits_in_a_checkpoint_are_never_loaded(saved):
    """Without the hash they load in silence, nearly all of them."""
    data, expected = saved.read_bytes(), sha(saved)
    silent = named = 0
    for bit in np.random.default_rng(1).integers(0, 8 * len(data), 200):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)
        try:
            load_state_dict(saved, expected)
            silent += 1
        except WeightsCorrupt as error:
            named += expected in str(error)
    assert (silent, named) == (0, 200)


@pytest.mark.heavy
def test_a_checkpoint_truncated_anywhere_is_refused_with_and_without_hash(saved):
    data, expected = saved.read_bytes(), sha(saved)
    for length in np.linspace(0, len(data) - 1, 20, dtype=int):
        saved.write_bytes(data[:length])
        for hashed in (None, expected):
            with pytest.raises(WeightsCorrupt, match=saved.name):
                load_state_dict(saved, hashed)


AGAIN = "It may have been cut short or changed on its way: fetch or copy the file again."


@pytest.mark.heavy
def test_a_file_cut_short_is_refused_in_whole_sentences_with_what_to_do(saved):
    data = saved.read_bytes()
    for length in np.linspace(0, len(data) - 1, 20, dtype=int):
        saved.write_bytes(data[:length])
        with pytest.raises(WeightsCorrupt) as failure:
            load_state_dict(saved)
        fault, step, path = str(failure.value).splitlines()
        assert (step, path) == (AGAIN, f"Path: {saved}")
        assert fault.endswith((").", "it is empty."))
        assert not re.search(r"(\b(Thi|is|a|the)|\.)\)\.$", fault), "a sentence breaks off, or ends twice"


def test_an_empty_file_is_said_to_be_empty(npz):
    npz.write_bytes(b"")
    with pytest.raises(WeightsCorrupt, match=rf"'w\.npz' cannot be used as weights: it is empty\.\n{re.escape(AGAIN)}"):
        read_npz(npz)


@pytest.mark.heavy
def test_where_the_file_is_whole_but_another_it_is_not_to_be_fetched_again(torch, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsCorrupt, match="not a tensor") as failure:
        load_state_dict(tmp_path / "x.pt")
    assert AGAIN not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Short.", "Short"),
        ("", "ValueError"),
        ("One line\nand another", "One line"),
        ("First. " + "Second " * 40, "First"),
        ("A first. A second. " + "x" * 300, "A first. A second"),
        ("word " * 60, "word " * 40 + "..."),
        ("x" * 300, "x" * 200 + " ..."),
    ],
)
def test_what_a_library_says_is_cut_where_a_sentence_or_a_word_ends(text, shown):
    assert loading._first_line(ValueError(text)) == shown


@pytest.mark.heavy
def test_an_entry_of_a_larger_checkpoint_is_picked(torch, net, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "model": net.state_dict()}, path)
    assert load_state_dict(path, entry="model").keys() == net.state_dict().keys()
    with pytest.raises(WeightsCorrupt, match="no entry 'state'; found epoch, model"):
        load_state_dict(path, entry="state")
    with pytest.raises(WeightsCorrupt, match="'epoch' is int, not a tensor"):
        load_state_dict(path)


@pytest.mark.heavy
@pytest.mark.parametrize("content", [[1, 2], "text", {}, {1: 2}, None], ids=str)
def test_a_pickle_that_is_not_a_state_dict_is_refused(torch, tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsCorrupt, match=r"'x\.pt' cannot be used as weights: it is not a state dict"):
        load_state_dict(tmp_path / "x.pt")


@pytest.mark.heavy
def test_a_whole_pickled_model_is_refused(torch, net, tmp_path):
    torch.save(net, tmp_path / "x.pt")
    with pytest.raises(WeightsCorrupt, match="refuses it as plain weights") as failure:
        load_state_dict(tmp_path / "x.pt")
    for advice in ("weights_only", "safe_globals"):
        assert advice not in str(failure.value), "torch advises to load it unsafely"


@pytest.mark.heavy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused(torch, tmp_path, value):
    torch.save({"good": torch.ones(2), "bad": torch.tensor([1.0, value])}, tmp_path / "x.pt")
    with pytest.raises(WeightsCorrupt, match="'bad' holds NaN or infinity"):
        load_state_dict(tmp_path / "x.pt")
    assert load_state_dict(tmp_path / "x.pt", finite=False).keys() == {"good", "bad"}


@pytest.mark.heavy
def test_weights_of_another_architecture_are_named_and_leave_the_module_alone(torch, net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state["2.weight"] = state.pop("1.bias")
    state["0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(WeightsCorrupt) as failure:
        fill(net, state, file="other.pt")
    for said in (
        "'other.pt'",
        "1 missing: 1.bias",
        "1 not known: 2.weight",
        "0.weight has (8, 3, 3, 3) instead of (4, 3, 3, 3)",
    ):
        assert said in str(failure.value)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.heavy
def test_fitting_weights_fill_the_module(torch, net, saved):
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    fill(fresh, load_state_dict(saved), file=saved.name)
    assert torch.equal(fresh[0].weight, net[0].weight)


@pytest.mark.heavy
def test_torchscript_runs_as_it_was_saved(torch, net, tmp_path):
    path = tmp_path / "net.pt"
    picture = torch.rand(1, 3, 8, 8)
    torch.jit.trace(net.eval(), picture).save(str(path))
    for module in (load_torchscript(path), load_torchscript(path, sha(path))):
        assert torch.equal(module(picture), net(picture))
        assert not module.training
    with pytest.raises(WeightsCorrupt, match="its sha256 is"):
        load_torchscript(path, "0" * 64)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["sparse", "meta", "float8"])
def test_tensors_that_are_no_plain_weights_are_refused_or_read(torch, tmp_path, kind):
    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.empty(3, device="meta"),
        "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    }[kind]()
    torch.save({"w": made}, tmp_path / "odd.pt")
    if kind == "float8":
        assert load_state_dict(tmp_path / "odd.pt")["w"].dtype is torch.float8_e4m3fn
        return
    with pytest.raises(WeightsCorrupt, match="'w' is a sparse, nested, quantised or empty tensor"):
        load_state_dict(tmp_path / "odd.pt")


@pytest.mark.heavy
def test_torchscript_with_nan_and_a_plain_checkpoint_are_refused(torch, net, tmp_path):
    with torch.no_grad():
        net[0].bias[1] = float("nan")
    torch.jit.script(net).save(str(tmp_path / "nan.pt"))
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(WeightsCorrupt, match=r"'0\.bias' holds NaN"):
        load_torchscript(tmp_path / "nan.pt")
    with pytest.raises(WeightsCorrupt, match="is not a TorchScript module"):
        load_torchscript(tmp_path / "plain.pt")


@pytest.mark.heavy
def test_h5_data_sets_are_read_and_links_to_other_files_are_not(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    secret, path = tmp_path / "secret.h5", tmp_path / "net.h5"
    with h5py.File(secret, "w") as file:
        file["s"] = np.ones(3)
    with h5py.File(path, "w") as file:
        file["layer/kernel"] = np.arange(4.0)
        file["link"] = h5py.ExternalLink(str(secret), "/s")
    for arrays in (read_h5(path), read_h5(path, sha(path))):
        assert list(arrays) == ["layer/kernel"]
        np.testing.assert_array_equal(arrays["layer/kernel"], np.arange(4.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsCorrupt, match="not an HDF5 file"):
        read_h5(path)


def test_without_h5py_the_pip_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(MissingExtra, match="h5py"):
        read_h5(tmp_path / "net.h5")
