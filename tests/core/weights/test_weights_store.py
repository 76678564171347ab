"""The cache: every call checks, offline, mirror, licence, read-only, full, several processes."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from stainbridge.errors import RegistryError, WeightsCorrupt, WeightsUnavailable
from stainbridge.weights import Store, default_folder, fetch


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_200_flipped_bits_are_never_loaded(store, local, content, tmp_path):
    path = store.fetch(local)
    (tmp_path / "copy.pt").unlink()
    silent = named = 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 200):
        flip(path, bit)
        try:
            store.fetch(local)
            silent += 1
        except WeightsUnavailable as error:
            named += local.sha256 in str(error)
        path.write_bytes(content)
    assert (silent, named) == (0, 200)
    assert store.fetch(local) == path


def test_a_flipped_bit_in_the_registry_is_never_loaded(store, local):
    silent = 0
    for bit in range(0, 8 * 64, 3):
        digits = bytearray(local.sha256.encode())
        digits[bit // 8] ^= 1 << bit % 8
        entry = SimpleNamespace(**{**local.model_dump(), "sha256": digits.decode("latin-1")})
        try:
            store.fetch(entry)
            silent += 1
        except (RegistryError, WeightsCorrupt):
            continue
    assert silent == 0


def test_a_wrong_cached_file_is_fetched_again(store, local, content):
    path = store.fetch(local)
    flip(path, 12_345)
    assert store.fetch(local).read_bytes() == content


def test_a_wrong_cached_file_is_removed_when_no_source_delivers(store, local, tmp_path):
    path = store.fetch(local)
    flip(path, 0)
    (tmp_path / "copy.pt").unlink()
    with pytest.raises(WeightsUnavailable, match="the cached file is not the registered one: sha256"):
        store.fetch(local)
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 1, 299_999, 300_001])
def test_a_cached_file_of_another_size_is_never_used(store, local, content, size):
    path = store.fetch(local)
    path.write_bytes((content + b"x")[:size])
    assert not store.has(local)
    assert store.fetch(local).read_bytes() == content


def test_each_call_hashes_the_file_once(store, local, monkeypatch):
    hashed = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    store.fetch(local)
    assert len(hashed) == 1
    store.fetch(local)
    assert len(hashed) == 2


def test_verify_says_whether_the_cached_file_is_the_registered_one(store, local):
    with pytest.raises(WeightsUnavailable, match="is not in the cache"):
        store.verify(local)
    assert not store.has(local)
    path = store.fetch(local)
    store.verify(local)
    assert store.has(local)
    flip(path, 7)
    with pytest.raises(WeightsCorrupt, match=f"sha256 [0-9a-f]{{64}} instead of {local.sha256}"):
        store.verify(local)


def test_offline_the_cache_serves_and_nothing_is_asked(server, store, content, weight_of):
    weight = weight_of(content, server.put("net.pt", content))
    offline = Store(store.folder, offline=True)
    with pytest.raises(WeightsUnavailable, match="not tried: offline") as failure:
        offline.fetch(weight)
    assert "run once without --offline" in str(failure.value)
    assert server.asked == []
    assert not store.folder.exists()
    store.fetch(weight)
    assert offline.fetch(weight).read_bytes() == content
    assert len(server.asked) == 1


def test_offline_a_wrong_cached_file_is_corrupt_with_both_hashes(server, store, content, weight_of):
    weight = weight_of(content, server.put("net.pt", content))
    path = store.fetch(weight)
    flip(path, 99)
    with pytest.raises(WeightsCorrupt) as failure:
        Store(store.folder, offline=True).fetch(weight)
    assert weight.sha256 in str(failure.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(failure.value)


def test_offline_a_local_file_still_serves(tmp_path, local, content):
    assert Store(tmp_path / "cache", offline=True).fetch(local).read_bytes() == content


def test_a_mirror_is_asked_first_by_hash_and_then_by_name(server, tmp_path, content, weight_of):
    weight = weight_of(content, server.put("origin/net.pt", content))
    server.put("mirror/net.pt", content)
    Store(tmp_path, mirror=f"{server.url}/mirror/").fetch(weight)
    assert [path for path, _ in server.asked] == [f"/mirror/{weight.sha256}/net.pt", "/mirror/net.pt"]


def test_a_mirror_without_the_file_leaves_the_sources(server, tmp_path, content, weight_of):
    weight = weight_of(content, server.put("origin/net.pt", content))
    assert Store(tmp_path, mirror=f"{server.url}/mirror").fetch(weight).read_bytes() == content


@pytest.mark.parametrize("offline", [False, True])
def test_another_cache_folder_is_a_mirror(tmp_path, store, local, content, offline):
    store.fetch(local)
    (tmp_path / "copy.pt").unlink()
    elsewhere = Store(tmp_path / "elsewhere", mirror=str(store.folder), offline=offline)
    assert elsewhere.fetch(local).read_bytes() == content


def test_a_mirror_is_not_trusted(server, tmp_path, content, weight_of):
    weight = weight_of(content, f"{server.url}/nowhere.pt")
    server.put(f"{weight.sha256}/net.pt", bytes(len(content)))
    with pytest.raises(WeightsUnavailable, match="delivered something else"):
        Store(tmp_path / "cache", mirror=server.url).fetch(weight)


def test_the_licence_is_said_once_per_model(tmp_path, local):
    said = []
    for _ in range(3):
        Store(tmp_path / "cache", notice=said.append).fetch(local, licence="Apache-2.0", model="toy/net")
    assert said == ["toy/net: its weights are under this licence: Apache-2.0"]
    Store(tmp_path / "cache", notice=said.append).fetch(local, licence="MIT", model="toy/net")
    Store(tmp_path / "cache", notice=said.append).fetch(local, licence="MIT", model="toy/other")
    assert len(said) == 3


def test_the_licence_goes_to_standard_error(tmp_path, local, capsys):
    Store(tmp_path / "cache").fetch(local, licence="Apache-2.0")
    captured = capsys.readouterr()
    assert captured.err == "net.pt: its weights are under this licence: Apache-2.0\n"
    assert captured.out == ""


def test_the_default_cache_is_the_variable_or_the_platforms_folder(monkeypatch, tmp_path, local, content):
    monkeypatch.setenv("STAINBRIDGE_CACHE", str(tmp_path / "mine"))
    assert fetch(local) == tmp_path / "mine" / local.sha256 / "net.pt"
    monkeypatch.delenv("STAINBRIDGE_CACHE")
    assert default_folder().name == "stainbridge"


@pytest.mark.parametrize("name", ["../net.pt", "/net.pt", "a/b.pt", "..", ".hidden", "", "a\\b.pt", "net.pt\n"])
def test_a_file_name_that_could_leave_the_cache_is_refused(store, local, name):
    entry = SimpleNamespace(**{**local.model_dump(), "file": name})
    with pytest.raises(RegistryError, match="bare file name"):
        store.fetch(entry)
