"""A U-Net with one encoder and, for each interval of timesteps, a decoder of its own.

Zhang et al. 2024 (CVPR, arXiv 2312.09181): middle block and decoder are tailored to an interval, widths
included; encoder and time embedding are shared. The intervals come from how alike the optimal denoisers of
the data are at different timesteps; every minibatch lies in one interval (``steps.draw_interval``).
Shapes: N sample, C channel, H W rows and columns, M patch of the data set, D value of a patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtmsd.diffusion import Schedule
from mtmsd.unet import Decoder, UNet, UNetConfig

_PATCHES = 4096
"""Patches of the optimal denoiser, at most."""
_PROBES = 128
"""Noisy patches at which it is asked."""
_TIMES = 100
"""Timesteps that are compared, about."""


class MultistageUNet(UNet):
    """The U-Net with a decoder per interval; a sample passes that of its timestep alone."""

    def __init__(self, config: UNetConfig, components: int) -> None:
        if config.cuts is None:
            raise ValueError("unet.cuts: expected timesteps, found none; find_cuts finds them on patches")
        super().__init__(config, components)

    def _add_decoders(self) -> None:
        built = (Decoder.build(self.config, self.components, one) for one in self.config.branches)
        self.decoders = nn.ModuleList([nn.ModuleDict(decoder._asdict()) for decoder in built])

    def decoder(self, interval: int) -> Decoder:
        """The decoder of an interval of timesteps."""
        return Decoder(*self.decoders[interval].children())  # type: ignore[arg-type]

    def _decode(
        self, maps: list[Tensor], embedding_NE: Tensor, t_N: Tensor, taps: Sequence[int]
    ) -> list[Tensor]:
        cuts = torch.tensor(self.config.cuts, device=t_N.device)
        interval_N = torch.bucketize(t_N, cuts, right=True)
        present = torch.unique(interval_N).tolist()
        if len(present) == 1:
            return self.decoder(present[0])(maps, embedding_NE, taps)
        rows = [(interval_N == interval).nonzero()[:, 0] for interval in present]
        parts = [
            self.decoder(interval)([h[mine] for h in maps], embedding_NE[mine], taps)
            for interval, mine in zip(present, rows, strict=True)
        ]
        order = torch.cat(rows).argsort()
        return [torch.cat(stage)[order] for stage in zip(*parts, strict=True)]


class OptimalDenoiser:
    """The noise predictor that no network can better on a finite set of patches y_1 ... y_M.

    eps*(x, t) = (x - s sum_i w_i y_i) / sigma,  w = softmax_i(-|x - s y_i|^2 / (2 sigma^2)),
    with s = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t): the posterior mean of the noise.
    """

    def __init__(self, patches_MD: Tensor, schedule: Schedule) -> None:
        self._patches, self._schedule = patches_MD, schedule
        self._half_squares = (patches_MD**2).sum(dim=1) / 2

    def __call__(self, x_ND: Tensor, t: int) -> Tensor:
        """Noise (N, D) in ``x_ND`` at timestep ``t``."""
        s, sigma = float(self._schedule.signal[t]), float(self._schedule.noise[t])
        near = s / sigma**2 * (x_ND @ self._patches.T - s * self._half_squares)
        return (x_ND - s * (near.softmax(dim=1) @ self._patches)) / sigma


def similarity(a_ND: Tensor, b_ND: Tensor, tolerance: float) -> float:
    """S: share of the values of two denoisers that differ by at most ``tolerance`` (eta).

    >>> similarity(torch.zeros(1, 4), torch.tensor([[0.0, 0.1, 0.2, 0.3]]), tolerance=0.15)
    0.5
    """
    return float(((a_ND - b_ND).abs() <= tolerance).double().mean())


def cut_points(
    times: Sequence[int], to_first: Sequence[float], to_last: Sequence[float], least: float
) -> tuple[int, int]:
    """First timesteps of the middle and of the last interval.

    The first interval reaches as far as all its timesteps are alike t = 0 (S >= ``least``, alpha), the last
    one as far down as all are alike the last timestep: t1 = max and t2 = min of the paper, over unbroken
    runs, since the similarity to either end rises again towards the other one.

    Args:
        times: Ascending timesteps, 0 and the last one included.
        to_first: S(0, t) for each.
        to_last: S(t, last) for each.
        least: alpha.

    Raises:
        ValueError: The two runs leave nothing between them.

    >>> cut_points([0, 10, 20, 30], [1, 0.95, 0.5, 0.4], [0.3, 0.5, 0.6, 1], least=0.9)
    (20, 30)
    """
    unlike = [t for t, s in zip(times, to_first, strict=True) if not s >= least]
    low = min(unlike, default=times[-1])
    below = [t for t, s in zip(times, to_last, strict=True) if not s >= least]
    high = min((t for t in times if t > max(below, default=-1)), default=times[-1])
    if not low < high:
        raise ValueError(
            f"no intervals of timesteps can be told apart: those up to {low} are alike t = 0, those from "
            f"{high} on alike the last; give unet.cuts, a smaller unet.cut_tolerance or cut_window"
        )
    return low, high


def find_cuts(patches_NCWW: Tensor, schedule: Schedule, config: UNetConfig, seed: int) -> tuple[int, int]:
    """Cut points of the optimal denoiser of these patches' windows, a function of patches and seed.

    A noisy window is s x_0 + sigma eps with one pair (x_0, eps) at all timesteps; the answers to it are
    compared. Windows are smaller than patches (``unet.cut_window``): of whole patches, every one is told
    apart from all others up to the last timesteps, and the intervals would say nothing.

    Args:
        patches_NCWW: Patches as training sees them, NaN = no data.
        schedule: Of the diffusion process.
        config: The search's settings.
        seed: Of the choice of windows and of the noise.

    Raises:
        ValueError: There are no cut points, or no data.
    """
    side = min(config.cut_window, patches_NCWW.shape[-1])
    grid = patches_NCWW.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
    windows = grid.flatten(3).flatten(0, 2)
    windows = windows[~windows.isnan().all(dim=1)].nan_to_num(0.0).double()
    if not len(windows):
        raise ValueError("unet.cuts: expected patches with data to find them on, found none; give unet.cuts")
    generator = torch.Generator().manual_seed(seed)
    windows = windows[torch.randperm(len(windows), generator=generator)[:_PATCHES]]
    x0 = windows[:_PROBES]
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    denoise = OptimalDenoiser(windows, schedule)

    def answer(t: int) -> Tensor:
        return denoise(float(schedule.signal[t]) * x0 + float(schedule.noise[t]) * noise, t)

    last_t = schedule.steps - 1
    times = [*range(0, last_t, max(1, schedule.steps // _TIMES)), last_t]
    first, last = answer(0), answer(last_t)
    answers = (answer(t) for t in times)
    pairs = [[similarity(end, a, config.cut_tolerance) for end in (first, last)] for a in answers]
    to_first, to_last = zip(*pairs, strict=True)
    return cut_points(times, to_first, to_last, config.cut_similarity)
