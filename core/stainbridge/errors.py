"""Errors for the person at the keyboard: what was asked, what was found, what to do next.

Every error is a `StainbridgeError` and also the builtin that a caller would expect, so `except ValueError` needs no import of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StainbridgeError(Exception):
    """Base of every error that stainbridge raises on purpose."""

    def __str__(self) -> str:
        # KeyError would print the repr of its message.
        return str(self.args[0]) if self.args else ""


class ScaleUnknown(StainbridgeError, ValueError):
    """A picture has no pixel size, and a stage needs micrometres per pixel."""


class UnreadablePicture(StainbridgeError, OSError):
    """A picture is missing, truncated, or not a picture."""


class UnsupportedPicture(StainbridgeError, ValueError):
    """A picture was read but is not 8-bit RGB: grey, 16-bit, several planes."""


class PictureTooLarge(StainbridgeError, ValueError):
    """A picture claims more pixels than may be decoded; refused before decoding."""


class NoPictures(StainbridgeError, FileNotFoundError):
    """A folder or pattern names no picture."""


class UnknownPlugin(StainbridgeError, LookupError):
    """No plugin or model of this kind has this name."""


class PluginUnavailable(StainbridgeError, RuntimeError):
    """A plugin exists but could not be loaded: broken, duplicate or incompatible."""


class MissingExtra(StainbridgeError, ImportError):
    """A plugin's library is not installed; the message holds the pip line."""

    @classmethod
    def of(cls, plugin: str, library: str, extra: str) -> MissingExtra:
        """Return the error for `plugin`, which needs `library` from the extra `extra`."""
        return cls(f"{plugin} needs {library}, which is not installed.\nRun: pip install 'stainbridge[{extra}]'")


class ContractViolation(StainbridgeError, TypeError):
    """A plugin returned something that its interface forbids."""


class ConfigError(StainbridgeError, ValueError):
    """A configuration has an unknown key or a value out of range."""


class RegistryError(StainbridgeError, ValueError):
    """A registry file cannot be read or does not follow the schema."""


class OutputExists(StainbridgeError, FileExistsError):
    """A result would replace something that is already there."""


class WriteFailed(StainbridgeError, OSError):
    """A result could not be written: disk full, read-only, no permission."""


class WeightsUnavailable(StainbridgeError, FileNotFoundError):
    """No source of a model's weights could be reached, or offline was asked for."""


class WeightsCorrupt(StainbridgeError, ValueError):
    """A weight file does not have the registered hash or size, or is not what it should be."""


class UnknownDataset(StainbridgeError, LookupError):
    """No data set or split has this name."""


class DataUnavailable(StainbridgeError, FileNotFoundError):
    """A data set is not on the disk and cannot be fetched, or has no truth."""


class DataCorrupt(StainbridgeError, ValueError):
    """An archive has another hash or is hostile, or the files of a data set do not belong together."""


class UnusableTruth(StainbridgeError, ValueError):
    """A truth file cannot be read as instance labels, or does not fit its picture."""


class TrainingDiverged(StainbridgeError, ArithmeticError):
    """A loss of a training became NaN or infinite."""


class DeviceUnavailable(StainbridgeError, RuntimeError):
    """A device was asked for that this machine does not have."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
