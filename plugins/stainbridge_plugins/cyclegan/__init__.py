"""CycleGAN: IHC to virtual H&E by a network that was trained on unpaired pictures (Zhu et al. 2017)."""

from stainbridge import hookimpl


@hookimpl
def register_translators():
    """Return the CycleGAN translator."""
    from .translator import CycleGAN

    return [CycleGAN]
