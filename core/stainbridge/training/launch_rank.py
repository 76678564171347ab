"""``python -m stainbridge.training.launch_rank MODULE ...``: run a module as one rank of a supervised training."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from .launch_line import NOTES, follow_supervisor, note

REFUSED = 2
"""Exit code of an error that we understand, and that would be the same the next time."""


def main() -> None:
    """Run the module named first, with the arguments after it, as ``python -m`` would."""
    rank = int(os.environ["RANK"])
    follow_supervisor()
    note(f"group_{rank}", os.getpid())
    if rank:
        _speak_into(Path(os.environ[NOTES]) / f"output_{rank}")
    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except BaseException as leaving:
        # Noted before the process ends: the others fail when it does, and torchrun may see them first.
        if code := leaving.code if isinstance(leaving, SystemExit) else 1:
            note(f"failed_{rank}", code if isinstance(code, int) else 1)
        raise


def _speak_into(path: Path) -> None:
    """Send what this process and its children print to a file: rank 0 speaks for all."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    main()
