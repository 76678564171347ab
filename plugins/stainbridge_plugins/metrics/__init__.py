"""Metrics that hold nuclei against truth, and a virtual H&E against its IHC."""

from stainbridge import Metric, hookimpl


@hookimpl
def register_metrics() -> list[type[Metric]]:
    from .calls import PositivityAgreement
    from .detection import CountError, Detection
    from .masks import AggregatedJaccard, InstanceMatching, Panoptic, PixelDice
    from .preservation import Preservation

    return [
        AggregatedJaccard,
        CountError,
        Detection,
        InstanceMatching,
        Panoptic,
        PixelDice,
        PositivityAgreement,
        Preservation,
    ]
