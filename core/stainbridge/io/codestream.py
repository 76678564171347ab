"""Read the size that a JPEG or JPEG 2000 stream claims, before anything is decoded."""

from __future__ import annotations

import struct

_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # tables and an extension inside the range of the frame markers


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the frame header of a JPEG, or None where there is none.

    Source: ITU-T T.81, B.2.2.
    """
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the SIZ marker of a JPEG 2000 stream, bare or in JP2, or None where there is none.

    Source: ITU-T T.800, A.5.1.
    """
    at = data[:4096].find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack(">IIII", data[at + 8 : at + 24])
    return bottom - top, right - left
