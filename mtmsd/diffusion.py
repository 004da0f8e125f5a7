"""The diffusion process: cosine schedule, noising, and the hybrid training loss.

Nichol & Dhariwal 2021 (arXiv 2102.09672): eq. 17 (schedule), 15 (learned variance), 16 (hybrid loss).
Shapes: N sample, C component, H W rows and columns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtmsd.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule."""

    steps: int = 1000
    """Number of timesteps T of the forward process."""
    max_beta: float = 0.999
    """Upper bound of a single step's noise variance."""

    def __post_init__(self) -> None:
        """Refuse an empty process."""
        check_ranges("diffusion", self, steps="[2, inf)", max_beta="(0, 1)")


class Schedule:
    """Cosine schedule: per-timestep coefficients, computed in float64 and kept in float32.

    >>> schedule = Schedule(DiffusionConfig(steps=1000))
    >>> [round(float(schedule.signal[t]), 3) for t in (0, 500, 999)]  # what is left of x_0
    [1.0, 0.702, 0.0]
    """

    def __init__(self, config: DiffusionConfig) -> None:
        steps = config.steps
        position = torch.arange(steps + 1, dtype=torch.float64) / steps
        level = torch.cos((position + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - level[1:] / level[:-1]).clamp(max=config.max_beta)
        alpha_bar = torch.cumprod(1 - beta, dim=0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        posterior = beta * (1 - previous) / (1 - alpha_bar)
        posterior[0] = posterior[1]  # zero at t = 0: its logarithm would not be finite
        self.steps = steps
        self.beta, self.alpha_bar = beta.float(), alpha_bar.float()
        self.signal, self.noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        self._log_beta, self._log_posterior = beta.log().float(), posterior.log().float()
        self._x0_from_xt = (1 / alpha_bar).sqrt().float()
        self._x0_from_noise = (1 / alpha_bar - 1).sqrt().float()
        self._mean_from_x0 = (beta * previous.sqrt() / (1 - alpha_bar)).float()
        self._mean_from_xt = ((1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar)).float()

    def q_sample(self, x0: Tensor, t_N: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, (N, C, H, W).

        >>> schedule = Schedule(DiffusionConfig())
        >>> x0, noise = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
        >>> schedule.q_sample(x0, torch.tensor([0, 500]), noise).ravel()
        tensor([1.0000, 0.7016])
        """
        return _at(self.signal, t_N, x0) * x0 + _at(self.noise, t_N, x0) * noise

    def hybrid_loss(
        self, output: Tensor, x0: Tensor, t_N: Tensor, noise: Tensor, valid_N1HW: Tensor
    ) -> Tensor:
        """Noise MSE plus (T / 1000) times the variational term of the learned variance.

        The variational term sees the mean as a constant, so it trains the variance alone. At t = 0 it
        is the negative log-likelihood of a continuous Gaussian: reduced spectra are not 8-bit images.

        Args:
            output: (N, 2C, H, W): predicted noise and the variance's interpolation v in [-1, 1].
            x0: Clean patches (N, C, H, W).
            t_N: Timesteps.
            noise: The noise that was added, (N, C, H, W).
            valid_N1HW: 1 where a pixel holds data; other pixels do not count.

        Returns:
            The mean over patches of each patch's mean over its valid pixels and components; so equal
            shares of a batch average to the batch, wherever no-data lies.
        """
        predicted, v = output.float().chunk(2, dim=1)
        mse = (noise - predicted) ** 2
        vb = self._variational_bits(predicted.detach(), v, x0, t_N, noise)
        weight = valid_N1HW.expand_as(x0)
        total = ((mse + self.steps / 1000 * vb) * weight).sum(dim=(1, 2, 3))
        return (total / weight.sum(dim=(1, 2, 3)).clamp(min=1)).mean()

    def _variational_bits(
        self, predicted: Tensor, v: Tensor, x0: Tensor, t_N: Tensor, noise: Tensor
    ) -> Tensor:
        x_t = self.q_sample(x0, t_N, noise)
        guess = _at(self._x0_from_xt, t_N, x0) * x_t - _at(self._x0_from_noise, t_N, x0) * predicted
        from_x0, from_xt = _at(self._mean_from_x0, t_N, x0), _at(self._mean_from_xt, t_N, x0)
        true_mean, mean = from_x0 * x0 + from_xt * x_t, from_x0 * guess + from_xt * x_t
        low, high = _at(self._log_posterior, t_N, x0), _at(self._log_beta, t_N, x0)
        log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
        kl = 0.5 * (
            log_variance - low - 1 + (low - log_variance).exp()
            + (true_mean - mean) ** 2 * (-log_variance).exp()
        )  # fmt: skip
        nll = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean) ** 2 * (-log_variance).exp())
        first = (t_N == 0)[:, None, None, None]
        return torch.where(first, nll, kl) / math.log(2)


def _at(table_T: Tensor, t_N: Tensor, like: Tensor) -> Tensor:
    return table_T.to(like.device)[t_N][:, None, None, None]


def shared_noise(seed: int, components: int, size: int) -> Tensor:
    """The one noise tensor (components, size, size) that all windows and timesteps share.

    Drawn on the CPU, so that every device sees the same numbers.

    >>> noise = shared_noise(seed=0, components=6, size=48)
    >>> noise.shape, torch.equal(noise, shared_noise(0, 6, 48))
    (torch.Size([6, 48, 48]), True)
    """
    return torch.randn((components, size, size), generator=torch.Generator().manual_seed(seed))
