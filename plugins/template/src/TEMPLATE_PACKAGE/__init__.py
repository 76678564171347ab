"""The nucleus segmenter TEMPLATE_NAME for stainbridge."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the segmenters of this distribution."""
    from .segmenter import TEMPLATE_CLASS

    return [TEMPLATE_CLASS]
