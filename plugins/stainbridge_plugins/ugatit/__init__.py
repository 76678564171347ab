"""U-GAT-IT: IHC to virtual H&E by a network with attention that was trained on unpaired pictures (Kim et al. 2020)."""

from stainbridge import hookimpl


@hookimpl
def register_translators():
    """Return the U-GAT-IT translator."""
    from .translator import UGATIT

    return [UGATIT]
