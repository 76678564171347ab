"""How much memory a piece of work took."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Largest resident memory of this process since it was made.

    Linux can start its high-water mark anew; elsewhere, and where that is not permitted, it is the peak since the process began.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            _CLEAR.write_text("5")

    @property
    def mb(self) -> float | None:
        """10^6 bytes; None where the system does not tell."""
        try:
            line = next(one for one in _STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024 / 1e6
        except (OSError, StopIteration, ValueError):
            return _since_start_mb()


def _since_start_mb() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
