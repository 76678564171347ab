"""Unpack a zip or tar archive into a new folder: plain files and folders only, nothing outside, bounded."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stainbridge.errors import DataCorrupt, WriteFailed

UNPACKED_LIMIT_BYTES = 64 * 2**30
"""Most bytes that an archive may unpack to; PanNuke's largest fold takes 13 GB."""

MEMBER_LIMIT = 1_000_000
_CHUNK_BYTES = 1 << 20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, ValueError)
_CLASH = (FileExistsError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    fault: str
    open: partial[Any]


def unpack(archive: Path, folder: Path, *, limit_bytes: int = UNPACKED_LIMIT_BYTES) -> None:
    """Write all members below `folder`, which must not exist; it is removed again where that fails.

    Raises
    ------
    DataCorrupt
        If the archive is broken, holds a link, a device, an encrypted member or a name that leaves the folder, or
        unpacks to more than `limit_bytes`.
    WriteFailed
        If there is not enough room.
    """
    folder.mkdir()
    try:
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        _write_all(members(archive), folder, limit_bytes, archive.name)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _BROKEN) and not isinstance(error, DataCorrupt):
            raise DataCorrupt(f"{archive.name!r} cannot be unpacked: {error}.") from error
        raise


def _write_all(members: Iterator[_Member], folder: Path, limit_bytes: int, name: str) -> None:
    left = limit_bytes
    for count, member in enumerate(members):
        left -= member.size
        fault = member.fault or _leaves(member)
        if left < 0 or count >= MEMBER_LIMIT:
            fault = f"it unpacks to more than {limit_bytes:,} bytes or {MEMBER_LIMIT:,} members"
        if fault:
            raise DataCorrupt(f"{name!r} is not unpacked: {fault}.")
        target = folder.joinpath(*PurePosixPath(member.name).parts)
        try:
            _write(member, target)
        except _CLASH as error:
            raise DataCorrupt(f"{name!r} is not unpacked: its member {member.name!r} is there twice.") from error


def _write(member: _Member, target: Path) -> None:
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(target.parent, member.size)
    opened: AbstractContextManager[IO[bytes]] = member.open()
    with opened as inside, target.open("xb") as out:
        left = member.size
        while left and (chunk := inside.read(min(_CHUNK_BYTES, left))):
            out.write(chunk)
            left -= len(chunk)
        if left or inside.read(1):
            raise DataCorrupt(f"The member {member.name!r} does not have the {member.size:,} bytes that it claims.")


def _leaves(member: _Member) -> str:
    path = PurePosixPath(member.name)
    # A colon is a drive or a stream on Windows, a backslash a separator; "./" is the folder itself.
    strange = any(sign in member.name for sign in "\\:\0") or (not path.parts and not member.is_folder)
    if strange or path.is_absolute() or ".." in path.parts:
        return f"its member {member.name!r} would leave the folder"
    return ""


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise WriteFailed(
            f"{str(folder)!r}: {size:,} bytes are to be unpacked and {free:,} are free.\n"
            "Make room, or name a folder on another disk by --data-dir."
        )


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        # All are looked at before the first is written.
        found = [_zip_member(archive, info) for info in archive.infolist()]
        bad = [member for member in found if member.fault or _leaves(member)]
        yield from bad or found


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    fault = ""
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        fault = f"its member {info.filename!r} is a link or a device"
    elif info.flag_bits & 1:
        fault = f"its member {info.filename!r} is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods hand out a whole decompressed block at once, which has no bound.
        fault = f"its member {info.filename!r} is neither stored nor deflated"
    # The name as it is stored: zipfile would cut it at a zero byte.
    return _Member(info.orig_filename, info.file_size, info.is_dir(), fault, partial(archive.open, info))


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, mode="r:*") as archive:
        for info in archive:
            plain = (info.isreg() and not info.issparse()) or info.isdir()
            fault = "" if plain else f"its member {info.name!r} is a link or a device"
            size = info.size if info.isreg() else 0
            yield _Member(info.name, size, info.isdir(), fault, partial(archive.extractfile, info))
