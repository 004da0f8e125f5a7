"""How fast is a pretraining step against a plain float32 loop over the same model?

``python -m benchmarks.pretraining [--channels 128]``. Plain: the library's memory order, group norms and
optimiser as they come. Images per second; ways in turns, the
median of the rounds' ratios.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Literal

import torch

from benchmarks.exact import smooth_patches
from benchmarks.record import arithmetics, in_turns, offer_emulated, publish
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.steps import PretrainConfig
from mtmsd.training import make_optimizer, pretrain_step
from mtmsd.unet import UNet, UNetConfig


def main() -> None:
    """Print images per second and the ratio to the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    offer_emulated(parser)
    options = parser.parse_args()
    ways = {"plain loop, float32": _plain(options.channels, options.batch)} | {
        precision: _ours(options.channels, options.batch, precision)
        for precision in arithmetics(emulated=options.emulated)
    }
    spent = in_turns(list(ways.values()), options.rounds)
    rows = []
    for name, mine in zip(ways, spent, strict=True):
        ratios = [plain / own for plain, own in zip(spent[0], mine, strict=True)]
        rows.append([name, options.batch / median(mine), median(ratios)])
    publish(
        "pretraining", f"Pretraining, {options.channels} channels, batch {options.batch}, 48-pixel patches, "
        f"{torch.get_num_threads()} threads",
        ["way", "images / s", "times plain"], rows,
    )  # fmt: skip


def _plain(channels: int, batch: int) -> Callable[[], object]:
    """One step as one would write it down: noise, prediction, loss, Adam."""
    unet, schedule = UNet(UNetConfig(channels=channels), 6), Schedule(DiffusionConfig())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.0)
    x0, valid = smooth_patches(batch, 6, 48), torch.ones(batch, 1, 48, 48)

    def step() -> None:
        t, noise = torch.randint(0, schedule.steps, (batch,)), torch.randn_like(x0)
        loss = schedule.hybrid_loss(unet(schedule.q_sample(x0, t, noise), t), x0, t, noise, valid)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ours(channels: int, batch: int, precision: Literal["float32", "bfloat16"]) -> Callable[[], object]:
    config = PretrainConfig(batch=batch, precision=precision)
    unet, schedule = UNet(UNetConfig(channels=channels), 6), Schedule(DiffusionConfig())
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, patches = make_optimizer(unet, config), smooth_patches(batch, 6, 48)
    return lambda: pretrain_step(
        unet, optimizer, schedule, config, patches, seed=0, step=0, share=slice(0, batch)
    )


if __name__ == "__main__":
    main()
