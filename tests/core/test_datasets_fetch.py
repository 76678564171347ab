"""Fetching a data set from a real server on loopback: resumed, checked before unpacking, whole or not there at all."""

import hashlib
import importlib.util
import io
import stat
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stainbridge.cards import DataCard
from stainbridge.datasets import Fetch, fetch_split, open_dataset
from stainbridge.datasets.unpacking import unpack
from stainbridge.errors import DataCorrupt, DataUnavailable, UnknownDataset, WriteFailed

_spec = importlib.util.spec_from_file_location("weights_server", Path(__file__).parent / "weights" / "conftest.py")
_weights = sys.modules["weights_server"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_weights)
server, tree = _weights.server, _weights.tree

NOISE = np.random.default_rng(7).bytes(300_000)


def zip_of(*members, compression=zipfile.ZIP_DEFLATED):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return raw.getvalue()


def tar_of(*members, mode="w:gz"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def card_of(body, *urls, **facts):
    hashed = {"sha256": hashlib.sha256(body).hexdigest()} if not {"sha256", "md5"} & facts.keys() else {}
    return DataCard(
        summary="Noise",
        layout="pictures",
        stain="ihc",
        mpp=0.25,
        licence="CC0-1.0",
        commercial=True,
        homepage="https://example.org/noise",
        archives=({"split": "test", "urls": urls, **hashed, **facts},),
    )


GOOD = zip_of(("Set/", b""), ("Set/a.png", NOISE), ("Set/deep/b.txt", b"text"))


@pytest.fixture
def how(tmp_path):
    return Fetch(tmp_path, notice=lambda text: None, timeout_s=5)


class TestFetching:
    def test_it_appears_whole_and_is_not_asked_for_again(self, server, how, tmp_path, tree):
        card = card_of(GOOD, server.put("noise.zip", GOOD))
        folder = fetch_split("noise", card, "test", how=how)
        assert folder == tmp_path / "datasets" / "noise" / "test"
        assert tree(tmp_path) == ["datasets/noise/test/Set/a.png", "datasets/noise/test/Set/deep/b.txt"]
        assert (folder / "Set" / "a.png").read_bytes() == NOISE
        assert fetch_split("noise", card, how=how) == folder
        assert len(server.asked) == 1

    def test_an_interrupted_download_goes_on_where_it_stopped(self, server, how):
        card = card_of(GOOD, server.put("noise.zip", GOOD, cut_after=200_000))
        fetch_split("noise", card, "test", how=how)
        assert [wanted for _, wanted in server.asked] == ["", "bytes=200000-"]
        assert server.bytes_served == len(GOOD)

    def test_a_download_goes_on_in_the_next_process_too(self, server, how, tmp_path):
        card = card_of(GOOD, server.put("noise.zip", GOOD, cut_after=1000))
        with pytest.raises(DataUnavailable, match=r"(?s)noise/test could not be fetched.*what has come so far is kept"):
            fetch_split("noise", card, "test", how=how)
        assert not (tmp_path / "datasets" / "noise" / "test").exists()
        server.put("noise.zip", GOOD)
        fetch_split("noise", card, "test", how=how)
        assert server.asked[-1][1] == "bytes=5000-"

    def test_an_archive_that_was_whole_when_its_process_died_is_not_asked_for_again(self, server, how, tmp_path):
        url = server.put("noise.zip", GOOD)
        part = tmp_path / "datasets/noise/unverified/test" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(GOOD)
        assert fetch_split("noise", card_of(GOOD, url), how=how).is_dir()
        assert server.asked == []

    def test_a_wrong_half_is_thrown_away_and_everything_asked_for_again(self, server, how, tmp_path):
        url = server.put("noise.zip", GOOD)
        part = tmp_path / "datasets/noise/unverified/test" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 1000)
        assert fetch_split("noise", card_of(GOOD, url), how=how).is_dir()
        assert [wanted for _, wanted in server.asked] == ["bytes=1000-", ""]

    @pytest.mark.parametrize("kind", ["sha256", "md5"])
    def test_another_hash_is_an_error_and_leaves_nothing(self, server, how, tmp_path, tree, kind):
        wrong = hashlib.new(kind, b"other").hexdigest()
        card = card_of(GOOD, server.put("noise.zip", GOOD), **{kind: wrong})
        with pytest.raises(DataCorrupt, match=f"delivered something else: {kind} .* instead of {wrong}"):
            fetch_split("noise", card, "test", how=how)
        assert tree(tmp_path) == []

    def test_a_hash_of_third_parties_is_said_where_it_does_not_fit(self, server, how):
        card = card_of(GOOD, server.put("noise.zip", GOOD), sha256=hashlib.sha256(b"other").hexdigest())
        card = card.model_copy(update={"hashes": "third party: somebody's script"})
        with pytest.raises(DataCorrupt, match="The hash is not from the source itself: third party: somebody's script"):
            fetch_split("noise", card, how=how)

    def test_two_at_once_ask_for_it_once(self, server, how):
        card = card_of(GOOD, server.put("noise.zip", GOOD, delay_s=0.2))
        with ThreadPoolExecutor(2) as pool:
            folders = list(pool.map(lambda _: fetch_split("noise", card, how=how), range(2)))
        assert folders[0] == folders[1]
        assert len(server.asked) == 1

    def test_md5_serves_where_there_is_no_sha256(self, server, how):
        card = card_of(GOOD, server.put("noise.zip", GOOD), md5=hashlib.md5(GOOD).hexdigest())
        assert fetch_split("noise", card, how=how).is_dir()

    def test_sha256_decides_where_both_are_known(self, server, how):
        both = {"sha256": hashlib.sha256(b"other").hexdigest(), "md5": hashlib.md5(GOOD).hexdigest()}
        with pytest.raises(DataCorrupt, match="sha256"):
            fetch_split("noise", card_of(GOOD, server.put("noise.zip", GOOD), **both), how=how)

    def test_the_second_address_serves_where_the_first_fails(self, server, how):
        card = card_of(GOOD, f"{server.url}/gone.zip", server.put("noise.zip", GOOD))
        assert fetch_split("noise", card, how=how).is_dir()

    def test_no_server_names_each_address_and_why(self, server, how):
        card = card_of(GOOD, f"{server.url}/gone.zip?token=secret")
        with pytest.raises(DataUnavailable, match=r"(?s)gone.zip: HTTP 404") as caught:
            fetch_split("noise", card, how=how)
        assert "secret" not in str(caught.value)

    def test_offline_asks_nobody(self, server, tmp_path):
        card = card_of(GOOD, server.put("noise.zip", GOOD))
        with pytest.raises(
            DataUnavailable, match=r"(?s)was not fetched: offline.*https://example.org/noise.*--archive FILE"
        ):
            fetch_split("noise", card, how=Fetch(tmp_path, offline=True))
        assert server.asked == []

    def test_without_a_hash_nothing_is_fetched(self, server, how):
        card = card_of(GOOD, server.put("noise.zip", GOOD), sha256=None)
        with pytest.raises(DataUnavailable, match="no hash of its archive is known, so it is not unpacked unchecked"):
            fetch_split("noise", card, how=how)
        assert server.asked == []

    def test_an_archive_brought_by_hand_is_checked_and_stays(self, how, tmp_path):
        (tmp_path / "mine.zip").write_bytes(GOOD)
        assert fetch_split("noise", card_of(GOOD), how=how, by_hand=tmp_path / "mine.zip").is_dir()
        assert (tmp_path / "mine.zip").read_bytes() == GOOD

    def test_a_wrong_archive_brought_by_hand_is_refused(self, how, tmp_path):
        (tmp_path / "mine.zip").write_bytes(GOOD + b"x")
        with pytest.raises(DataCorrupt, match=r"mine.zip' is not the published archive: sha256"):
            fetch_split("noise", card_of(GOOD), how=how, by_hand=tmp_path / "mine.zip")
        with pytest.raises(DataUnavailable, match=r"none.zip' does not exist"):
            fetch_split("noise", card_of(GOOD), how=how, by_hand=tmp_path / "none.zip")

    def test_the_licence_is_said_before_a_download(self, server, tmp_path):
        said = []
        card = card_of(GOOD, server.put("noise.zip", GOOD))
        fetch_split("noise", card, how=Fetch(tmp_path, notice=said.append))
        assert said == ["noise: its pictures are under this licence: CC0-1.0"]

    def test_splits_may_share_an_archive(self, server, how, tmp_path):
        url = server.put("noise.zip", GOOD)
        shared = {"urls": (url,), "sha256": hashlib.sha256(GOOD).hexdigest(), "into": "both"}
        card = card_of(GOOD).model_copy(update={"archives": ()})
        card = DataCard(**{**card.model_dump(), "archives": [{"split": one, **shared} for one in ("a", "b")]})
        assert fetch_split("noise", card, "a", how=how) == fetch_split("noise", card, "b", how=how)
        assert len(server.asked) == 1
        with pytest.raises(UnknownDataset, match="noise has no split 'c'"):
            fetch_split("noise", card, "c", how=how)

    def test_a_folder_that_cannot_be_written_is_named(self, server, tmp_path):
        (tmp_path / "datasets").write_text("a file in the way")
        card = card_of(GOOD, server.put("noise.zip", GOOD))
        with pytest.raises(WriteFailed, match="--data-dir"):
            fetch_split("noise", card, how=Fetch(tmp_path, notice=lambda text: None))

    def test_open_dataset_fetches_what_is_not_there(self, server, tmp_path, capsys):
        from PIL import Image as Pillow

        raw = io.BytesIO()
        Pillow.fromarray(np.full((6, 8, 3), 9, np.uint8)).save(raw, "png")
        body = zip_of(("Set/a.png", raw.getvalue()))
        archive = f'{{ split = "test", folder = "Set", sha256 = "{hashlib.sha256(body).hexdigest()}"'
        archive += f', urls = ["{server.put("noise.zip", body)}"] }}'
        lines = ["[datasets.noise]", 'summary = "Noise"', 'layout = "pictures"', 'stain = "ihc"', "mpp = 0.25"]
        lines += ['licence = "CC0-1.0"', "commercial = true", f"archives = [{archive}]"]
        (tmp_path / "cards.toml").write_text("\n".join(lines))
        dataset = open_dataset("noise", data_dir=tmp_path, registries=[tmp_path / "cards.toml"])
        assert [item.name for item in dataset.items] == ["a"]
        assert dataset.folder == tmp_path / "datasets" / "noise" / "test" / "Set"
        assert "CC0-1.0" in capsys.readouterr().err


def link(name, kind=stat.S_IFLNK):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE_ZIPS = {
    "parent": ("../evil", "would leave the folder"),
    "parent inside": ("a/../../evil", "would leave the folder"),
    "absolute": ("/tmp/stainbridge-evil", "would leave the folder"),
    "drive": ("C:evil", "would leave the folder"),
    "backslash": ("..\\evil", "would leave the folder"),
    "symlink": (link("evil"), "is a link or a device"),
    "device": (link("evil", stat.S_IFCHR), "is a link or a device"),
    "fifo": (link("evil", stat.S_IFIFO), "is a link or a device"),
}
HOSTILE_TARS = {
    "parent": member("../evil"),
    "absolute": member("/tmp/stainbridge-evil"),
    "symlink": member("evil", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hardlink": member("evil", type=tarfile.LNKTYPE, linkname="../../evil"),
    "character device": member("evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": member("evil", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "fifo": member("evil", type=tarfile.FIFOTYPE),
}


class TestHostileArchives:
    def refused(self, folder, tree, body, words, **options):
        archive = folder / "given.bin"
        archive.write_bytes(body)
        (folder / "here").mkdir()
        with pytest.raises(DataCorrupt, match=words):
            unpack(archive, folder / "here" / "new", **options)
        assert tree(folder) == ["given.bin"]
        assert list((folder / "here").iterdir()) == []

    @pytest.mark.parametrize("case", HOSTILE_ZIPS)
    def test_a_hostile_member_of_a_zip_writes_nothing_at_all(self, tmp_path, tree, case):
        name, words = HOSTILE_ZIPS[case]
        self.refused(tmp_path, tree, zip_of(("good", b"1"), (name, b"x"), ("last", b"2")), words)

    @pytest.mark.parametrize("case", HOSTILE_TARS)
    def test_a_hostile_member_of_a_tar_leaves_nothing_behind(self, tmp_path, tree, case):
        info = HOSTILE_TARS[case]
        data = b"x" if info.isreg() else b""
        body = tar_of((member("good"), b"1"), (info, data), (member("evil/inner"), b"2"))
        self.refused(tmp_path, tree, body, "would leave the folder|is a link or a device")

    @pytest.mark.parametrize("make", [lambda data: zip_of(("a", data)), lambda data: tar_of((member("a"), data))])
    def test_a_bomb_is_refused_by_what_it_unpacks_to(self, tmp_path, tree, make):
        self.refused(tmp_path, tree, make(bytes(10_000_000)), "unpacks to more than 1,000,000 bytes", limit_bytes=10**6)

    def test_many_small_members_count_together(self, tmp_path, tree):
        body = zip_of(*((f"{index}", bytes(1000)) for index in range(20)))
        self.refused(tmp_path, tree, body, "unpacks to more than 10,000 bytes", limit_bytes=10_000)

    def test_a_member_that_is_longer_than_it_claims_is_refused(self, tmp_path, tree):
        body = bytearray(zip_of(("a", bytes(5000))))
        central = body.rindex(b"PK\x01\x02")
        body[central + 24 : central + 28] = (10).to_bytes(4, "little")
        self.refused(tmp_path, tree, bytes(body), "cannot be unpacked|does not have the 10 bytes")

    @pytest.mark.parametrize(
        "body", [b"", b"no archive at all", GOOD[:100_000], tar_of((member("a"), NOISE))[:100_000]]
    )
    def test_what_is_broken_or_no_archive_is_refused(self, tmp_path, tree, body):
        self.refused(tmp_path, tree, body, "cannot be unpacked")

    def test_members_that_clash_are_refused(self, tmp_path, tree):
        self.refused(tmp_path, tree, tar_of((member("a"), b"1"), (member("a"), b"2")), "'a' is there twice")

    def test_a_file_where_a_folder_is_needed_is_refused(self, tmp_path, tree):
        self.refused(tmp_path, tree, zip_of(("a", b"1"), ("a/b", b"2")), "'a/b' is there twice")

    def test_other_methods_than_deflate_are_refused(self, tmp_path, tree):
        self.refused(tmp_path, tree, zip_of(("a", b"1"), compression=zipfile.ZIP_LZMA), "neither stored nor deflated")

    def test_a_disk_without_room_is_said_before_writing(self, tmp_path, monkeypatch):
        (tmp_path / "a.zip").write_bytes(GOOD)
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(WriteFailed, match="300,000 bytes are to be unpacked and 1,000 are free"):
            unpack(tmp_path / "a.zip", tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_good_tar_is_unpacked(self, tmp_path, tree):
        folders = [(member(name, type=tarfile.DIRTYPE), b"") for name in (".", "e")]
        (tmp_path / "a.tar.gz").write_bytes(tar_of((member("./d/x"), b"1"), *folders))
        unpack(tmp_path / "a.tar.gz", tmp_path / "new")
        assert tree(tmp_path / "new") == ["d/x"]
        assert (tmp_path / "new" / "e").is_dir()
