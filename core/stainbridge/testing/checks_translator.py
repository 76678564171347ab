"""Checks on translators alone."""

from __future__ import annotations

from .checks_pixels import require_near
from .subject import Subject


def does_not_depend_on_the_window(subject: Subject) -> None:
    """Two overlapping windows of one picture agree where both are at least its halo away from their rims: no seams."""
    halo = subject.wants.halo
    whole, side, shift = subject.moved(at_least=2 * halo + 96)
    call = subject.fitted(whole)
    first = call(whole[:, :side, :side].copy())[0]
    second = call(whole[:, shift:, shift:].copy())[0]
    inner, moved = slice(shift + halo, side - halo), slice(halo, side - halo - shift)
    require_near(first[inner, inner], second[moved, moved], f"The window moved by {shift} px")


CHECKS = (does_not_depend_on_the_window,)
