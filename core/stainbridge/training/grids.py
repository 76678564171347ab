"""A grid of pictures for the eye: one row per kind, one column per field, labelled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..io.atomic import atomic_write
from ..records import RGB

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CELL_PX = 320
"""Longest side of a picture in the grid: of 512 px at 0.25 um per pixel a nucleus is still 15 px wide."""

_MARGIN_PX, _TEXT_PX, _GAP_PX = 20, 13, 4
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def write_grid(path: Path, rows: Mapping[str, Sequence[RGB]], *, title: str = "", captions: Sequence[str] = ()) -> Path:
    """Write rows of pictures as a PNG, whole or not at all, and return its path.

    Parameters
    ----------
    path : its folder is made where it is missing
    rows : pictures uint8 (h, w, 3) by the name of the row, one for each column
    title : above, in as many lines as it takes
    captions : a line above each column

    Raises
    ------
    WriteFailed
        If it cannot be written.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    columns = max((len(pictures) for pictures in rows.values()), default=0)
    font = ImageFont.load_default(_TEXT_PX)
    width = columns * (CELL_PX + _GAP_PX)
    lines = _lines(_letters(title), lambda text: font.getlength(text) <= width)
    top = (len(lines) + 1) * _MARGIN_PX
    grid = Pillow.new("RGB", (_MARGIN_PX + width, top + len(rows) * (CELL_PX + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(grid)
    for number, line in enumerate(lines):
        draw.text((_MARGIN_PX, number * _MARGIN_PX + 2), line, _INK, font)
    for column, caption in enumerate(captions[:columns]):
        at = (_MARGIN_PX + column * (CELL_PX + _GAP_PX), top - _MARGIN_PX + 2)
        draw.text(at, _letters(caption), _INK, font)
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * (CELL_PX + _GAP_PX)
        label = Pillow.new("RGB", (CELL_PX, _MARGIN_PX), _PAPER)
        ImageDraw.Draw(label).text((CELL_PX / 2, 2), _letters(name), _INK, font, anchor="ma")
        grid.paste(label.transpose(Pillow.Transpose.ROTATE_90), (0, y))
        for column, pixels in enumerate(pictures):
            grid.paste(_fitted(pixels), (_MARGIN_PX + column * (CELL_PX + _GAP_PX), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        grid.save(temporary, format="PNG", compress_level=4)
    return path


def _fitted(pixels: RGB) -> Picture:
    """Return the picture with its longest side at `CELL_PX`."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(np.ascontiguousarray(pixels))
    scale = CELL_PX / max(picture.size)
    sides = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Larger ones are averaged; smaller ones keep their pixels.
    how = Pillow.Resampling.BILINEAR if scale < 1 else Pillow.Resampling.NEAREST
    return picture.resize(sides, how)


def _lines(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Return the text in lines that fit, broken at double spaces; one line at least."""
    lines: list[str] = []
    for part in re.split(r" {2,}", text):
        joined = f"{lines[-1]}   {part}" if lines else part
        if lines and fits(joined):
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _letters(text: str) -> str:
    """Return the text without what the built-in font may not have."""
    return text.encode("ascii", "replace").decode("ascii")
