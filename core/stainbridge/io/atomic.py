"""Write so that a reader sees the whole old thing or the whole new one, never a part."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from stainbridge.errors import OutputExists, StainbridgeError, WriteFailed

_ADVICE = {
    errno.ENOSPC: "Free some space on that disk, or write to another one.",
    errno.EDQUOT: "Your disk quota is used up: free some space, or write to another disk.",
    errno.EFBIG: "A limit on the size of files stopped it: raise the limit (ulimit -f), or write to another disk.",
    errno.EROFS: "That disk is read-only: write to another folder.",
    errno.EACCES: "You may not write there: write to another folder, or ask for permission.",
    errno.EPERM: "You may not write there: write to another folder, or ask for permission.",
}

_WINDOWS = os.name == "nt"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_ASIDE = re.compile(r"\.(.+)\.old-[0-9a-f]{8}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path` in one step.

    The temporary file keeps the suffix, is hidden, and is removed when the block fails; an older `path` then stays.

    Raises
    ------
    WriteFailed
        If the block or the renaming raises an OSError: disk full, read-only, no permission.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise write_failed(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path, *, overwrite: bool = False, mark: str) -> Iterator[Path]:
    """Yield a new folder beside `folder`; when the block ends well, it becomes `folder` in one step.

    Where the system cannot exchange two folders (elsewhere than on Linux, on some network file systems) an older one is replaced in two
    steps. A process that is killed between them leaves it as ``.NAME.old-*``, from where `take_back` fetches it.

    Parameters
    ----------
    folder : its parents are made where they are missing
    overwrite : replace an older `folder`, which stays until the new one is whole, and for good if the block fails
    mark : name of a file that `folder` must hold, or be empty, before it may be replaced

    Raises
    ------
    OutputExists
        If there is something that may not be replaced.
    WriteFailed
        If the block or the renaming raises an OSError: disk full, read-only, no permission.
    """
    folder = Path(os.path.abspath(folder))
    check_vacant(folder, overwrite=overwrite, mark=mark)
    token = secrets.token_hex(4)
    temporary = folder.with_name(f".{folder.name}.partial-{token}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for name in sorted(os.listdir(temporary)):
            _sync(temporary / name)
        _sync(temporary)
        _swap(temporary, folder, folder.with_name(f".{folder.name}.old-{token}"), overwrite, mark)
    except OSError as error:
        raise write_failed(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def take_back(folder: Path) -> None:
    """Put an older `folder` back in its place if a process was killed while it replaced it."""
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder):
        return
    # Where one may not look or write, there is nothing to be put back.
    with suppress(OSError):
        aside = [path for path in folder.parent.iterdir() if _replaced(path.name) == folder.name]
        if aside:
            # Others may be half removed, since an earlier replacement; the one that was moved last is whole.
            os.rename(max(aside, key=lambda path: path.lstat().st_ctime_ns), folder)


def take_all_back(place: Path) -> None:
    """Do as `take_back` for every folder that was inside `place`."""
    for name in {_replaced(name) for name in os.listdir(place)} - {None}:
        take_back(place / str(name))


def check_vacant(folder: Path, *, overwrite: bool, mark: str) -> None:
    """Raise `OutputExists` unless `folder` is free, or is an older result that may be replaced; after `take_back`."""
    take_back(folder)
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise OutputExists(f"{str(folder)!r} exists already.\nPass --overwrite to replace it, or name another folder.")
    if not folder.is_dir():
        raise OutputExists(f"{str(folder)!r} exists and is not a folder.\nRemove it, or name another folder.")
    if not (folder / mark).is_file() and any(folder.iterdir()):
        raise OutputExists(
            f"{str(folder)!r} exists and is not an older result (it holds no {mark}), so it is not replaced.\n"
            "Name another folder."
        )


def write_failed(target: Path, error: OSError) -> StainbridgeError:
    """Return the error for a person whose `target` could not be written; an error of ours passes unchanged."""
    if isinstance(error, StainbridgeError):
        return error
    advice = _ADVICE.get(error.errno or 0, "Check the folder, or write to another one.")
    return WriteFailed(
        f"{str(target)!r} could not be written: {error.strerror or error}.\nNothing half-written was left. {advice}"
    )


def _swap(new: Path, folder: Path, aside: Path, overwrite: bool, mark: str) -> None:
    # Looked at again: something may have appeared while the result was being made.
    check_vacant(folder, overwrite=overwrite, mark=mark)
    replacing = os.path.lexists(folder)
    if replacing and _exchanged(new, folder):
        _sync(folder.parent)
        return
    if replacing:
        os.rename(folder, aside)
    try:
        os.rename(new, folder)
    except BaseException:
        if replacing:
            os.rename(aside, folder)
        raise
    _sync(folder.parent)
    if replacing:
        # Under a name that `take_back` does not know: what is half removed when a process is killed must not come back.
        os.rename(aside, new)
        shutil.rmtree(new, ignore_errors=True)


def _replaced(name: str) -> str | None:
    """Return the name that a folder had before it was moved aside; None if it was not."""
    found = _ASIDE.fullmatch(name)
    return found[1] if found else None


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; return whether they did: what hinders it but its absence, hinders a renaming too."""
    call = _renameat2()
    return call is not None and not call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


@cache
def _renameat2() -> Callable[..., Any] | None:
    """Return Linux' function of that name, which gives 0 or -1; None where the C library has none."""
    if sys.platform != "linux":
        return None
    import ctypes

    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        call.restype = ctypes.c_int
    return call


def _sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk; Windows opens no folder, and flushes only what may be written."""
    if _WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
