"""Built-in plugins without torch and without weights: the floor that every learned combination has to beat."""

from stainbridge import hookimpl


@hookimpl
def register_translators():
    """Return the identity and the colour-deconvolution translator."""
    from .translators import Deconvolution, Identity

    return [Identity, Deconvolution]


@hookimpl
def register_segmenters():
    """Return the watershed segmenter."""
    from .segmenter import Watershed

    return [Watershed]


@hookimpl
def register_classifiers():
    """Return the HSI and the DAB classifier."""
    from .classifiers import Dab, Hsi

    return [Hsi, Dab]
