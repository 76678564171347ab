"""Bring one file over HTTP: resumable, bounded, with time-outs. What it brings is unverified."""

from __future__ import annotations

import http.client
import ipaddress
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHIVE_LIMIT_BYTES = 4 * 2**30
"""Most bytes that an archive may have: its own size is not registered, only that of the member taken from it."""

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
_LEAST_BYTES_PER_WAIT = 1024


class SourceError(Exception):
    """One source did not deliver; `wrong` where it answered, but with something other than what is registered."""

    def __init__(self, reason: str, *, wrong: bool = False) -> None:
        super().__init__(reason)
        self.wrong = wrong


class _InterruptedError(SourceError):
    """The transfer ended early; what came so far is kept."""


@dataclass(frozen=True)
class Transfer:
    """One file to bring.

    Parameters
    ----------
    url : https, or http where the host is this machine or `plain` is set
    part : where the bytes are collected; kept when the transfer is interrupted, continued from there the next time
    size : its registered size in bytes; None for an archive, which may have up to `ARCHIVE_LIMIT_BYTES`
    timeout_s : longest wait in seconds for the server to answer or to go on
    report : called with the number of bytes present so far
    plain : http to any host is allowed (a mirror that the user named; the hash is checked all the same)
    """

    url: str
    part: Path
    size: int | None
    timeout_s: float
    report: Callable[[int], None]
    plain: bool = False

    @property
    def note(self) -> Path:
        """File beside the part that holds the server's ETag or date, by which a change in between is seen."""
        return self.part.with_suffix(".validator")

    @property
    def present(self) -> int:
        """Bytes of the part that are already here."""
        return self.part.stat().st_size if self.part.exists() else 0


def shown(url: str) -> str:
    """Return the address without user name, password and query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    if not parts.netloc:
        return url
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def download(transfer: Transfer) -> Path:
    """Bring the file and return its path, going on after interruptions as long as each try brings more.

    Raises `SourceError`; an OSError means that the part could not be written.
    """
    for attempt in range(_ATTEMPTS - 1):
        had = transfer.present
        try:
            return _receive(transfer)
        except _InterruptedError:
            if transfer.present <= had:
                raise
            time.sleep(0.2 * attempt)
    return _receive(transfer)


def _receive(transfer: Transfer) -> Path:
    limit = ARCHIVE_LIMIT_BYTES if transfer.size is None else transfer.size
    if transfer.size is not None and transfer.present == transfer.size:
        return transfer.part
    if transfer.present > limit:
        transfer.part.unlink()
    with _ask(transfer) as response:
        start, total = _extent(response, transfer)
        if total is not None and (total > limit if transfer.size is None else total != limit):
            transfer.part.unlink(missing_ok=True)
            raise SourceError(f"the server's file has {total:,} bytes instead of {limit:,}", wrong=True)
        _append(response, transfer, start, limit)
    if total is not None and transfer.present < total:
        raise _InterruptedError(f"ended after {transfer.present:,} of {total:,} bytes, which are kept")
    return transfer.part


def _append(response: Any, transfer: Transfer, start: int, limit: int) -> None:
    done = start
    with transfer.part.open("ab" if start else "wb") as out:
        transfer.note.write_text(_validator(response))
        for chunk in _chunks(response, transfer):
            done += len(chunk)
            if done > limit:
                break
            out.write(chunk)
            transfer.report(done)
    if done > limit:
        transfer.part.unlink()
        raise SourceError(f"the server sends more than {limit:,} bytes; stopped", wrong=True)


def _chunks(response: Any, transfer: Transfer) -> Iterator[bytes]:
    since, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(
                f"{_reason(error, transfer)} after {transfer.present:,} bytes, which are kept"
            ) from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        # A time-out alone would let a server that drips single bytes hold the line for ever.
        if time.monotonic() - since > transfer.timeout_s:
            if received < _LEAST_BYTES_PER_WAIT:
                raise SourceError(f"sent only {received} bytes in {transfer.timeout_s:g} s")
            since, received = time.monotonic(), 0


def _ask(transfer: Transfer) -> Any:
    """Open the address, asking for the missing rest where there is a part."""
    _check_scheme(transfer.url, plain=transfer.plain)
    request = urllib.request.Request(transfer.url, headers={"Accept-Encoding": "identity", "User-Agent": "stainbridge"})
    if transfer.present:
        request.add_header("Range", f"bytes={transfer.present}-")
        validator = transfer.note.read_text() if transfer.note.exists() else ""
        if validator:
            request.add_header("If-Range", validator)
    opener = urllib.request.build_opener(_Redirects(plain=transfer.plain))
    try:
        return opener.open(request, timeout=transfer.timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and transfer.present:  # our part is longer than the server's file
            transfer.part.unlink()
            return _ask(transfer)
        raise SourceError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceError(_reason(error, transfer)) from error


def _extent(response: Any, transfer: Transfer) -> tuple[int, int | None]:
    """Return at which byte the answer starts and how long the whole file is, if the server says so."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, int(length) if length.isdigit() else None
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if span.partition("-")[0] != str(transfer.present):
        transfer.part.unlink(missing_ok=True)
        raise SourceError(f"answered with the bytes {span or '?'} where {transfer.present}- was asked for")
    return transfer.present, int(total) if total.isdigit() else None


def _validator(response: Any) -> str:
    """Return what If-Range may hold: a strong ETag, else the date of the last change, else nothing."""
    tag = str(response.headers.get("ETag", ""))
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _reason(error: Exception, transfer: Transfer) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {transfer.timeout_s:g} s"
    return str(cause) or type(cause).__name__


def _check_scheme(url: str, *, plain: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and (plain or _is_this_machine(parts.hostname or ""))):
        return
    raise SourceError(f"{shown(url)} is not https")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not to an address that could not have been asked for directly."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request for the new address; raises SourceError where it is not https."""
        try:
            _check_scheme(newurl, plain=self._plain)
        except SourceError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)
