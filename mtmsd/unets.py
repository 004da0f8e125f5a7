"""The kinds of U-Net by name; another takes a file of its own and a line here."""

from mtmsd.multistage import MultistageUNet
from mtmsd.unet import UNet, UNetConfig

KINDS: dict[str, type[UNet]] = {"single": UNet, "multistage": MultistageUNet}


def make_unet(config: UNetConfig, components: int) -> UNet:
    """A fresh network of the kind that ``config`` names."""
    return KINDS[config.kind](config, components)
