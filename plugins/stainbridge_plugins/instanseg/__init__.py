"""InstanSeg: nuclei of real or virtual H&E by its published TorchScript network."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the InstanSeg segmenter."""
    from .segmenter import InstanSeg

    return [InstanSeg]
