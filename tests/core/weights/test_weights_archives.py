"""Archives: one member comes out, bounded; nothing else is ever written anywhere."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from stainbridge.errors import WeightsCorrupt
from stainbridge.weights.archives import take_member
from stainbridge.weights.transfer import SourceError

GOOD = np.random.default_rng(5).bytes(11_000)


def tar_info(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(*members, squeeze=lambda data: data):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return squeeze(raw.getvalue())


def zip_of(*members, compression=zipfile.ZIP_DEFLATED):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as archive:
        for info, data in members:
            archive.writestr(info, data)
    return raw.getvalue()


def zip_link(name, target):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info, target.encode()


HOSTILE_TAR = {
    "parent": (tar_info("../evil", b"x"), b"x"),
    "absolute": (tar_info("/tmp/stainbridge-evil", b"x"), b"x"),
    "symlink": (tar_info("evil", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
    "symlink that a later member follows": (tar_info("inner", type=tarfile.SYMTYPE, linkname="/tmp"), b""),
    "hardlink": (tar_info("evil", type=tarfile.LNKTYPE, linkname="../../evil"), b""),
    "character device": (tar_info("evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    "block device": (tar_info("evil", type=tarfile.BLKTYPE, devmajor=8, devminor=0), b""),
    "fifo": (tar_info("evil", type=tarfile.FIFOTYPE), b""),
}
HOSTILE_ZIP = {
    "parent": (zipfile.ZipInfo("../evil"), b"x"),
    "absolute": (zipfile.ZipInfo("/tmp/stainbridge-evil"), b"x"),
    "backslash": (zipfile.ZipInfo("..\\evil"), b"x"),
    "symlink": zip_link("evil", "/etc/passwd"),
}
SQUEEZES = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def outside(tmp_path):
    """A folder two levels below a watched one, with the archive to be written into it."""
    folder = tmp_path / "cache" / "scratch"
    folder.mkdir(parents=True)
    return folder


def files(tmp_path):
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("squeeze", SQUEEZES.values(), ids=SQUEEZES)
def test_one_member_of_a_tar_comes_out(outside, squeeze):
    archive = outside / "a.tar"
    archive.write_bytes(tar_of((tar_info("other", b"z"), b"z"), (tar_info("m/net.pt", GOOD), GOOD), squeeze=squeeze))
    take_member(archive, "m/net.pt", outside / "out", size=len(GOOD))
    assert (outside / "out").read_bytes() == GOOD


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_member_of_a_zip_comes_out(outside, compression):
    archive = outside / "a.zip"
    archive.write_bytes(zip_of(("other", b"z"), ("m/net.pt", GOOD), compression=compression))
    take_member(archive, "m/net.pt", outside / "out", size=len(GOOD))
    assert (outside / "out").read_bytes() == GOOD


@pytest.mark.parametrize("hostile", HOSTILE_TAR.values(), ids=HOSTILE_TAR)
def test_hostile_tar_members_write_nothing_outside(tmp_path, outside, hostile):
    archive = outside / "a.tar"
    archive.write_bytes(tar_of(hostile, (tar_info("inner/net.pt", GOOD), GOOD)))
    take_member(archive, "inner/net.pt", outside / "out", size=len(GOOD))
    assert (outside / "out").read_bytes() == GOOD
    assert files(tmp_path) == ["cache/scratch/a.tar", "cache/scratch/out"]


@pytest.mark.parametrize("hostile", HOSTILE_ZIP.values(), ids=HOSTILE_ZIP)
def test_hostile_zip_members_write_nothing_outside(tmp_path, outside, hostile):
    archive = outside / "a.zip"
    archive.write_bytes(zip_of(hostile, ("inner/net.pt", GOOD)))
    take_member(archive, "inner/net.pt", outside / "out", size=len(GOOD))
    assert files(tmp_path) == ["cache/scratch/a.zip", "cache/scratch/out"]


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "character device", "block device", "fifo"])
def test_a_tar_member_that_is_no_file_is_refused(tmp_path, outside, kind):
    archive = outside / "a.tar"
    archive.write_bytes(tar_of(HOSTILE_TAR[kind]))
    with pytest.raises(SourceError, match="is a link, a device or a folder") as failure:
        take_member(archive, "evil", outside / "out", size=0)
    assert failure.value.wrong
    assert files(tmp_path) == ["cache/scratch/a.tar"]


def test_a_zip_member_that_is_a_link_is_refused(outside):
    (outside / "a.zip").write_bytes(zip_of(HOSTILE_ZIP["symlink"]))
    with pytest.raises(SourceError, match="is a link"):
        take_member(outside / "a.zip", "evil", outside / "out", size=11)


@pytest.mark.parametrize("name", ["../evil", "/tmp/stainbridge-evil"])
def test_a_name_that_leads_out_is_only_a_name(tmp_path, outside, name):
    (outside / "a.zip").write_bytes(zip_of((name, GOOD)))
    take_member(outside / "a.zip", name, outside / "out", size=len(GOOD))
    assert files(tmp_path) == ["cache/scratch/a.zip", "cache/scratch/out"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, outside):
    (outside / "a.zip").write_bytes(zip_of(("bomb", bytes(20_000_000))))
    assert (outside / "a.zip").stat().st_size < 30_000
    with pytest.raises(SourceError, match="20,000,000 bytes instead of 1,000"):
        take_member(outside / "a.zip", "bomb", outside / "out", size=1000)
    assert files(tmp_path) == ["cache/scratch/a.zip"]


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_registered(outside):
    honest = zip_of(("bomb", bytes(20_000_000)))
    lying = honest.replace((20_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    (outside / "a.zip").write_bytes(lying)
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"cannot be read|does not have"):
        take_member(outside / "a.zip", "bomb", outside / "out", size=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert not (outside / "out").exists() or (outside / "out").stat().st_size <= 1000


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_unpack_without_bound_are_refused(outside, compression):
    (outside / "a.zip").write_bytes(zip_of(("m", GOOD), compression=compression))
    with pytest.raises(SourceError, match="neither stored nor deflated"):
        take_member(outside / "a.zip", "m", outside / "out", size=len(GOOD))


def test_a_tar_header_that_claims_much_memory_is_refused(outside):
    header = bytearray(tar_info("pax", type=tarfile.XHDTYPE, size=20_000_000).tobuf(tarfile.USTAR_FORMAT))
    (outside / "a.tgz").write_bytes(gzip.compress(bytes(header) + bytes(20_000_000), 1))
    tracemalloc.start()
    with pytest.raises(SourceError, match="header of the archive claims"):
        take_member(outside / "a.tgz", "m", outside / "out", size=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 600, 5000])
@pytest.mark.parametrize("form", ["zip", "tar", "tgz"])
def test_a_truncated_archive_is_refused(outside, form, keep):
    members = (tar_info("m", GOOD), GOOD)
    whole = {"zip": zip_of(("m", GOOD)), "tar": tar_of(members), "tgz": tar_of(members, squeeze=gzip.compress)}[form]
    (outside / "a").write_bytes(whole[:keep])
    with pytest.raises(SourceError) as failure:
        take_member(outside / "a", "m", outside / "out", size=len(GOOD))
    assert failure.value.wrong


def test_a_missing_member_names_one_of_the_same_name(outside):
    (outside / "a.zip").write_bytes(zip_of(("other/net.pt", GOOD)))
    with pytest.raises(SourceError, match=r"no member 'm/net.pt'; it has 'other/net.pt'"):
        take_member(outside / "a.zip", "m/net.pt", outside / "out", size=len(GOOD))


@pytest.mark.parametrize("form", ["zip", "tgz"])
def test_a_member_of_an_archive_is_fetched_over_http(server, store, weight_of, tree, form):
    members = (tar_info("m/net.pt", GOOD), GOOD)
    body = zip_of(("m/net.pt", GOOD)) if form == "zip" else tar_of(members, squeeze=gzip.compress)
    weight = weight_of(GOOD, f"{server.put('a', body, cut_after=max(100, len(body) // 2))}#member=m/net.pt")
    assert store.fetch(weight).read_bytes() == GOOD
    assert server.bytes_served == len(body)
    assert tree(store.folder) == [f"{weight.sha256}/net.pt"]


def test_a_member_with_another_hash_is_refused(server, store, weight_of, tree):
    weight = weight_of(GOOD, f"{server.put('a', zip_of(('m', GOOD[::-1])))}#member=m")
    with pytest.raises(WeightsCorrupt, match="delivered something else: sha256"):
        store.fetch(weight)
    assert tree(store.folder) == []
