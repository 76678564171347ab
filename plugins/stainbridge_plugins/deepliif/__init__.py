"""DeepLIIF: nuclei of IHC and their calls, from virtual stains and five segmentations; the baseline without translation."""

from stainbridge import hookimpl


@hookimpl
def register_segmenters():
    """Return the DeepLIIF segmenter."""
    from .segmenter import DeepLIIF

    return [DeepLIIF]


@hookimpl
def register_classifiers():
    """Return the classifier that takes DeepLIIF's calls."""
    from .classifier import DeepLIIFCalls

    return [DeepLIIFCalls]
