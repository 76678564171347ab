"""Write so that a reader sees the whole old thing or the whole new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def check_vacant(folder: Path, *, overwrite: bool, mark: str) -> None:
    """Raise `OutputExists` unless `folder` is free, or is an older result that may be replaced."""
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
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have a file or the names in a folder on the disk; Windows opens no folder, and flushes only what may be written."""
    if _WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
