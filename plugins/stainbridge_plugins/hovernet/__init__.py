"""HoVer-Net: nuclei and their types by a network that learns each pixel's distance to the centre of its nucleus."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the HoVer-Net segmenter."""
    from .segmenter import HoVerNet

    return [HoVerNet]
