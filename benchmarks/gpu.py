"""What does a GPU give? Pixels and images per second at the paper's size, and its share of the matrix rate.

``python -m benchmarks.gpu [--channels 128] [--device cuda]``. Features in exact mode (a window a pixel) and
in dense mode (96:72), bfloat16, in batches as the map has them; pretraining in bfloat16. Random weights and
patches: only time is measured. The share of the matrix rate is that of the operations that are executed.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.exact import PAPER, random_unet, smooth_patches
from benchmarks.record import publish
from mtmsd.diffusion import DiffusionConfig, Schedule
from mtmsd.features import Extractor
from mtmsd.steps import PretrainConfig
from mtmsd.training import make_optimizer, pretrain_step
from mtmsd.windows import PatchConfig

WAYS = (("exact", PatchConfig(size=48, stride=1)), ("dense 96:72", PatchConfig(size=96, stride=72)))


def main() -> None:
    """Print rates, their share of the device's bfloat16 matrix-product rate, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64, help="patches of a step of pretraining")
    options = parser.parse_args()
    device, unet = torch.device(options.device), random_unet(options.channels).to(options.device)
    best = max(_product_rate(n, device) for n in ((2048, 8192) if device.type == "cuda" else (1024,)))
    rows: list[list[object]] = [["matrix product, bfloat16", f"{best / 1e12:.4g} TFLOP/s", 1.0, ""]]
    schedule = Schedule(DiffusionConfig())
    for name, geometry in WAYS:
        config = replace(PAPER, precision="bfloat16", batch=None)
        extract = Extractor(unet, schedule, config, geometry)
        windows = smooth_patches(batch := extract.batch, unet.components, geometry.side).to(device)
        spent, memory = _timed(device, lambda e=extract, w=windows: e(w))  # type: ignore[misc]
        share = _operations(lambda e=extract, w=windows: e(w)) / spent / best  # type: ignore[misc]
        rows.append([name, f"{batch * geometry.stride**2 / spent:.4g} pixels/s", share, memory])
    training = PretrainConfig(batch=options.batch, precision="bfloat16")
    unet.requires_grad_(True).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, patches = (
        make_optimizer(unet, training),
        smooth_patches(options.batch, unet.components, 48).to(device),
    )
    whole = slice(0, options.batch)

    def step() -> None:
        pretrain_step(unet, optimizer, schedule, training, patches, seed=0, step=0, share=whole)

    spent, memory = _timed(device, step)
    share = _operations(step) / spent / best
    rows.append(["pretraining", f"{options.batch / spent:.4g} images/s", share, memory])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    publish(
        "gpu",
        f"{name}, {options.channels} channels",
        ["what", "rate", "share of matrix rate", "memory, GiB"],
        rows,
    )


def _operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _timed(device: torch.device, work: Callable[[], object], repeats: int = 3) -> tuple[float, object]:
    work()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    spent = (time.perf_counter() - begun) / repeats
    return spent, torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else ""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _product_rate(n: int, device: torch.device) -> float:
    a, b = torch.randn((2, n, n), device=device).bfloat16()
    return 2 * n**3 / _timed(device, lambda: a @ b, 10)[0]


if __name__ == "__main__":
    main()
