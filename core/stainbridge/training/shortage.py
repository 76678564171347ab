"""When a training does not fit into the memory of its device: said with what fits, and can be followed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import StainbridgeError
from ..interfaces import PluginConfig
from .settings import TrainConfig

T = TypeVar("T")

TAKES_MORE = "Take a device with more memory, or close what else uses this one."


class OutOfMemory(StainbridgeError, MemoryError):
    """A training needs more memory than the device has; it would the next time too."""


@dataclass(frozen=True)
class Advice:
    """What can be set so that a step takes less memory.

    Parameters
    ----------
    config : of the training
    learner : settings of its learner; what it has no setting for is not advised
    device : that it learns on
    """

    config: TrainConfig
    learner: PluginConfig
    device: str

    def text(self, *, kept: bool) -> str:
        """Return what to do next, where there is a checkpoint (`kept`) or not."""
        parts, others = self._parts(), self._others()
        if not parts and not others:
            return TAKES_MORE
        if not kept:
            return (
                f"Nothing is kept of it: give the same command with {_either([*parts, *others])}, and it begins anew."
            )
        ways = [f"Go on from the last checkpoint: give the same command with --resume and {parts[0]}."] if parts else []
        ways += [f"Begin anew: give another folder, and {_either(others)}."] if others else []
        return "\nOr: ".join(ways)

    def _parts(self) -> list[str]:
        """Return the same learning in more parts, each of which takes less memory."""
        now, most = getattr(self.learner, "accumulate", None), self.config.batch_size
        return [f"--set learner.accumulate={min(2 * now, most)}"] if isinstance(now, int) and now < most else []

    def _others(self) -> list[str]:
        """Return what changes what is learned."""
        config, found = self.config, []
        if config.batch_size > 1:
            found.append(f"--set batch_size={config.batch_size // 2}")
        if self.device != "cpu" and getattr(self.learner, "precision", None) == "fp32":
            found.append("--set learner.precision=bf16")
        if getattr(self.learner, "light", None) is False:
            found.append("--set learner.light=true")
        return found


def within_memory(run: Callable[[], T], what: Callable[[], str], advice: Callable[[], str]) -> T:
    """Return `run()`.

    Parameters
    ----------
    what, advice : what does not fit, and what to do about it

    Raises
    ------
    OutOfMemory
        If the memory of the device, or of the machine, is used up.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not _is_shortage(error):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
    # Raised outside `except`: the first error's traceback would keep everything alive that took the memory.
    raise OutOfMemory(f"{what()} does not fit into memory: {said}\n{advice()}")


def _is_shortage(error: Exception) -> bool:
    """Tell whether memory ran out; torch itself is only known where something has imported it."""
    torch = sys.modules.get("torch")
    known = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, known) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _either(ways: list[str]) -> str:
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
