"""StarDist: nuclei as star-convex polygons; the original on TensorFlow, or its network in torch with the same weights."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the StarDist segmenter."""
    from .segmenter import StarDist

    return [StarDist]
