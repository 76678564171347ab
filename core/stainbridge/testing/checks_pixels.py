"""Checks on what maps a batch of pictures to a batch of arrays: translators and segmenters alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stainbridge.capabilities import Calibrated
from stainbridge.interfaces import Translator
from stainbridge.records import RGB

from .subject import Subject, calling, require, require_array
from .synthetic import blank_glass, dark_tissue

_GREY_LEVELS = 1  # rounding of a float network that is run on another batch size
_SHARE = 0.001  # pixels of a label map that such rounding may flip


def keeps_shape_and_dtype(subject: Subject) -> None:
    """It returns one array of the declared type per picture, of the picture's height and width."""
    batch = np.concatenate([subject.batch(seed=seed) for seed in (0, 1)])
    _shaped(subject, batch, "Two pictures")


def accepts_declared_sizes(subject: Subject) -> None:
    """It takes every size that its `wants` allows: its one tile, or any multiple from 16 px up, square or not."""
    wants = subject.wants
    whole = subject.batch()
    heights = (wants.tile,) if wants.tile else tuple(_up(side, wants.multiple_of) for side in (16, 97, 161))
    for height, width in zip(heights, heights[1:] + heights[:1], strict=True):
        tiled = np.pad(whole, ((0, 0), (0, height), (0, width), (0, 0)), mode="wrap")[:, :height, :width]
        _shaped(subject, np.ascontiguousarray(tiled), f"A picture of {height} x {width} px")


def accepts_blank_glass(subject: Subject) -> None:
    """Empty glass and pure white are pictures too: an answer of the right form, and no numerical warning."""
    shape = (subject.side_px(),) * 2
    _shaped(subject, blank_glass(shape)[None], "Blank glass")
    _shaped(subject, np.full((1, *shape, 3), 255, np.uint8), "Pure white")


def accepts_dark_tissue(subject: Subject) -> None:
    """A tissue fold and pure black are pictures too: an answer of the right form, and no numerical warning."""
    shape = (subject.side_px(),) * 2
    _shaped(subject, dark_tissue(shape)[None], "A tissue fold")
    _shaped(subject, np.zeros((1, *shape, 3), np.uint8), "Pure black")


def is_deterministic(subject: Subject) -> None:
    """The same picture gives the same answer, also from a plugin that is constructed anew."""
    batch = subject.batch()
    call = subject.fitted(batch)
    first = call(batch.copy())
    require(np.array_equal(first, call(batch.copy())), "A second call on the same picture gave another answer.")
    anew = subject.fitted(batch, plugin=subject.make())
    require(np.array_equal(first, anew(batch.copy())), "A second instance gave another answer on the same picture.")


def does_not_write_into_its_input(subject: Subject) -> None:
    """The array that it is given is unchanged afterwards, and is no part of what it returns."""
    batch = subject.batch()
    given = batch.copy()
    found = subject.fitted(batch)(given)
    require(np.array_equal(given, batch), "The input array was changed.")
    require(not np.shares_memory(given, found), "The returned array is the input itself, or a view of it.")


def accepts_read_only_and_strided_input(subject: Subject) -> None:
    """A read-only view with strides gives what a plain array gives."""
    batch = subject.batch()
    call = subject.fitted(batch)
    wide = np.repeat(np.repeat(batch, 2, axis=1), 2, axis=2)
    wide.setflags(write=False)
    expected = call(batch.copy())
    require(np.array_equal(expected, call(wide[:, ::2, ::2])), "A strided view gave another answer than its copy.")


def does_not_depend_on_the_batch(subject: Subject) -> None:
    """Three pictures together give what each gives alone."""
    batch = np.concatenate([subject.batch(seed=seed) for seed in (0, 1, 2)])
    call = subject.fitted(batch)
    together = call(batch.copy())
    for index in range(len(batch)):
        alone = call(batch[index : index + 1].copy())[0]
        if isinstance(subject.plugin, Translator):
            require_near(together[index], alone, f"Picture {index} of 3 alone")
        else:
            _require_same_nuclei(together[index], alone, f"Picture {index} of 3 alone")


def calibration_leaves_the_plugin_as_it_is(subject: Subject) -> None:
    """Where it has `calibrate`: that returns a fitted copy of the same type and changes neither plugin nor sample."""
    if not isinstance(subject.plugin, Calibrated):
        return
    batch, other = subject.batch(seed=0), subject.batch(seed=1)
    fitted = subject.plugin.calibrate(batch.copy())
    require(type(fitted) is type(subject.plugin), f"`calibrate` returned a {type(fitted).__name__}.")
    call = calling(fitted)
    before = call(batch.copy())
    darker = (other // 2).astype(np.uint8)
    given = darker.copy()
    fitted.calibrate(given)
    require(np.array_equal(given, darker), "`calibrate` wrote into its sample.")
    require(np.array_equal(before, call(batch.copy())), "`calibrate` changed the plugin that it was called on.")


def require_near(found: NDArray[np.uint8], expected: NDArray[np.uint8], what: str) -> None:
    """Fail unless two pictures agree to a rounding."""
    worst = int(np.abs(found.astype(int) - expected.astype(int)).max(initial=0))
    require(worst <= _GREY_LEVELS, f"{what} gave pixels that differ by up to {worst} grey levels.")


def _require_same_nuclei(found: NDArray[np.int32], expected: NDArray[np.int32], what: str) -> None:
    require(found.max() == expected.max(), f"{what} gave {expected.max()} nuclei; in the batch it had {found.max()}.")
    share = float(np.mean((found > 0) != (expected > 0)))
    require(share <= _SHARE, f"{what} gave another foreground in {share:.2%} of the pixels.")


def _shaped(subject: Subject, batch: RGB, what: str) -> None:
    found = subject.fitted(batch)(batch.copy())
    translates = isinstance(subject.plugin, Translator)
    require_array(found, np.uint8 if translates else np.int32, batch.shape if translates else batch.shape[:3], what)


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


CHECKS = (
    keeps_shape_and_dtype,
    accepts_declared_sizes,
    accepts_blank_glass,
    accepts_dark_tissue,
    is_deterministic,
    does_not_write_into_its_input,
    accepts_read_only_and_strided_input,
    does_not_depend_on_the_batch,
    calibration_leaves_the_plugin_as_it_is,
)
