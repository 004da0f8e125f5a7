"""The plain way to compute the features: what an implementation without any saving does.

One pixel at a time, one timestep after another, float32, the whole decoder, every tapped map upsampled
to the patch before its centre and mean are read. The yardstick of the benchmarks; the tests compare it with
golden values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmsd.diffusion import Schedule, shared_noise
from mtmsd.features import FeatureConfig
from mtmsd.unet import UNet


@torch.inference_mode()
def plain_features(
    unet: UNet, schedule: Schedule, features: FeatureConfig, patches_NCWW: Tensor
) -> tuple[Tensor, Tensor]:
    """Centre and pooled features, (N, T, D) each, of one pixel per patch."""
    size = patches_NCWW.shape[-1]
    noise = shared_noise(features.noise_seed, unet.components, size)
    centres, means = [], []
    for patch in patches_NCWW:
        for t in features.timesteps:
            step = torch.tensor([t])
            x_t = schedule.q_sample(patch[None], step, noise[None])
            maps = unet.stages(x_t, step, range(unet.config.stages))
            unet.out(maps[-1])
            full = [
                F.interpolate(maps[stage], (size, size), mode="bilinear", align_corners=False)
                for stage in features.stages
            ]
            centres.append(torch.cat([m[0, :, size // 2, size // 2] for m in full]))
            means.append(torch.cat([m[0].mean(dim=(1, 2)) for m in full]))
    shape = (len(patches_NCWW), len(features.timesteps), -1)
    return torch.stack(centres).reshape(shape), torch.stack(means).reshape(shape)
