"""Decide whether what a file says about resolution is the size of a pixel on the glass.

The rule: a value counts only if it lies within `PLAUSIBLE_MPP`, whoever wrote it. Cameras, screens and editors write
72, 96 or 300 dots per inch (353, 265 and 85 um) into files that know nothing of a microscope, and converters carry that
on into OME; microscopes give 0.05 um (oil immersion, oversampled) to 20 um (overview).
"""

from __future__ import annotations

from stainbridge.errors import UnsupportedPicture
from stainbridge.records import PLAUSIBLE_MPP

MICROMETRES = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "\\u00B5m": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25400.0,
    "inch": 25400.0,
}
"""Micrometres in one unit of length, by its name in OME, ImageJ and TIFF; ``\\u00B5m`` is ImageJ's spelling."""

ANISOTROPY = 0.01
"""Largest relative difference between the two sides of a pixel that is taken as none."""


def square_mpp(x_um: float | None, y_um: float | None, name: str) -> float | None:
    """Return the micrometres per pixel that both sides agree on, or None where the file does not say.

    Raises
    ------
    UnsupportedPicture
        If both sides are believable and differ by more than `ANISOTROPY`.
    """
    believed = [um for um in (x_um, y_um) if um is not None and PLAUSIBLE_MPP[0] <= um <= PLAUSIBLE_MPP[1]]
    if len(believed) < 2:
        return None
    if abs(believed[0] / believed[1] - 1) > ANISOTROPY:
        raise UnsupportedPicture(
            f"{name!r} has pixels that are not square: {believed[0]:g} um wide and {believed[1]:g} um high.\n"
            "Resample it to square pixels, or pass --mpp if the file is wrong."
        )
    return (believed[0] + believed[1]) / 2 if believed[0] != believed[1] else believed[0]
