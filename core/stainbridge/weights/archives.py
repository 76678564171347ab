"""Take one member out of an archive, bounded, to a file that the caller names; no name in it is ever used as a path."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .transfer import ARCHIVE_LIMIT_BYTES, SourceError

_CHUNK_BYTES = 1 << 20
_MEMBER_LIMIT = 100_000
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError)
_OPENERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def take_member(archive: Path, member: str, target: Path, *, size: int) -> None:
    """Write the member of a zip (wheel) or tar archive to `target`.

    Raises `SourceError` where the archive is broken, has no such member, or where the member is a link, a device,
    encrypted or not of exactly `size` bytes; never writes more than `size` bytes.
    """
    take = _from_zip if zipfile.is_zipfile(archive) else _from_tar
    with _broken_is_wrong(archive.name), archive.open("rb") as raw:
        take(raw, member, target, size)


@contextmanager
def _broken_is_wrong(name: str) -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, gzip.BadGzipFile) as error:
        raise SourceError(f"the archive cannot be read: {error}", wrong=True) from error


def _from_zip(raw: IO[bytes], member: str, target: Path, size: int) -> None:
    with zipfile.ZipFile(raw) as archive:
        if member not in archive.namelist():
            raise _absent(member, archive.namelist())
        info = archive.getinfo(member)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise _not_a_file(member)
        if info.flag_bits & 1:
            raise SourceError(f"its member {member!r} is encrypted", wrong=True)
        # The other methods hand out a whole decompressed block at once, which has no bound.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SourceError(f"its member {member!r} is neither stored nor deflated", wrong=True)
        _check_size(member, info.file_size, size)
        with archive.open(info) as inside:
            _copy(inside, target, size, member)


def _from_tar(raw: IO[bytes], member: str, target: Path, size: int) -> None:
    opener = _OPENERS.get(raw.read(2))
    raw.seek(0)
    plain: Any = opener(raw) if opener else raw
    seen: list[str] = []
    with tarfile.open(fileobj=_Bounded(plain), mode="r:") as archive:  # type: ignore[call-overload]
        for info in archive:
            seen.append(info.name)
            if info.name == member:
                if not info.isreg() or info.issparse():
                    raise _not_a_file(member)
                _check_size(member, info.size, size)
                inside = archive.extractfile(info)
                assert inside is not None
                return _copy(inside, target, size, member)
            if len(seen) > _MEMBER_LIMIT:
                raise SourceError(f"the archive has more than {_MEMBER_LIMIT:,} members", wrong=True)
    raise _absent(member, seen)


def _copy(inside: IO[bytes], target: Path, size: int, member: str) -> None:
    left = size
    with target.open("wb") as out:
        while left and (chunk := inside.read(min(_CHUNK_BYTES, left))):
            out.write(chunk)
            left -= len(chunk)
    if left or inside.read(1):
        target.unlink()
        raise SourceError(f"its member {member!r} does not have the {size:,} bytes that it claims", wrong=True)


def _check_size(member: str, found: int, size: int) -> None:
    if found != size:
        raise SourceError(f"its member {member!r} has {found:,} bytes instead of {size:,}", wrong=True)


def _not_a_file(member: str) -> SourceError:
    return SourceError(f"its member {member!r} is a link, a device or a folder, not a file", wrong=True)


def _absent(member: str, names: list[str]) -> SourceError:
    last = member.rpartition("/")[2]
    alike = next((name for name in names if name.rpartition("/")[2] == last), "")
    hint = f"; it has {alike!r}" if alike else ""
    return SourceError(f"the archive has no member {member!r}{hint}", wrong=True)


class _Bounded:
    """A decompressed stream that refuses to be read in unbounded pieces or past the limit of an archive.

    tarfile reads a header's extension in one piece of the size that the header claims.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _CHUNK_BYTES:
            raise SourceError(f"a header of the archive claims {size:,} bytes", wrong=True)
        return bytes(self._stream.read(size))

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position > ARCHIVE_LIMIT_BYTES:
            raise SourceError(f"the archive unpacks to more than {ARCHIVE_LIMIT_BYTES:,} bytes", wrong=True)
        return int(self._stream.seek(position))

    def tell(self) -> int:
        return int(self._stream.tell())
