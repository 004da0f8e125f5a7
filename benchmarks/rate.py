"""How near is the U-Net to what the machine can do? Its arithmetic rate over the matrix-product rate.

``python -m benchmarks.rate [--channels 128]``. "Direct" counts the operations of the plain convolutions up
to the last tapped stage, the work that is asked for; "done" counts what is executed, transforms of the
minimal filtering included. The machine's rate is the best of square matrix products of three sizes.
"""

import argparse
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.exact import PAPER, random_unet, smooth_patches
from benchmarks.record import arithmetics, offer_emulated, publish, seconds
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor
from mtmsd.windows import PatchConfig


def main() -> None:
    """Print the rates in GFLOP/s and their shares of the machine's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    offer_emulated(parser)
    options = parser.parse_args()
    unet = random_unet(options.channels)
    schedule, rows = Schedule(DiffusionConfig()), []
    for precision in arithmetics(emulated=options.emulated):
        best = max(_product_rate(n, getattr(torch, precision)) for n in (1024, 2048, 4096))
        for geometry in (PatchConfig(size=48, stride=1), PatchConfig(size=96, stride=72)):
            config = replace(PAPER, precision=precision)
            extract = Extractor(unet, schedule, config, geometry)
            windows = smooth_patches(extract.batch, unet.components, geometry.side)
            spent = seconds(lambda extract=extract, windows=windows: extract(windows))  # type: ignore[misc]
            with FlopCounterMode(display=False) as done:
                extract(windows)
            with FlopCounterMode(display=False) as direct, torch.no_grad():
                for t in config.timesteps:
                    unet.stages(windows, torch.full((len(windows),), t), config.stages)
            asked, executed = (c.get_total_flops() / spent / 1e9 for c in (direct, done))
            rows.append([
                f"{geometry.side}:{geometry.stride}", precision, best, asked, asked / best, executed,
                executed / best,
            ])  # fmt: skip
    publish(
        "rate", f"U-Net rate, {unet.config.channels} channels, {torch.get_num_threads()} threads, GFLOP/s",
        ["window:stride", "arithmetic", "matrix product", "direct", "share", "done", "share done"], rows,
    )  # fmt: skip


def _product_rate(n: int, dtype: torch.dtype) -> float:
    a, b = torch.randn((2, n, n)).to(dtype)
    out = torch.empty((n, n), dtype=dtype)
    return 2 * n**3 / seconds(lambda: torch.mm(a, b, out=out)) / 1e9


if __name__ == "__main__":
    main()
