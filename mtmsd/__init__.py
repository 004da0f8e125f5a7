"""MTMSD: multi-timestep multi-stage diffusion features for hyperspectral classification.

The science alone, with torch and numpy: no cluster, no raster formats, no printing. The modules stand
in the order of the data: bands, spectral -> windows -> diffusion, unet -> features, spectra -> purify ->
fusion -> classifier, ensemble, experts -> mosaic -> supertokens, token_classifier, with split, metrics,
areas, and steps and training of the U-Net beside them.
Source: arXiv 2306.08964.

The names below are the pieces; each is loaded from its module when it is first used. For whole scenes
in one call, see ``classify`` in ``pipeline.api``.

>>> import numpy as np
>>> import mtmsd
>>> cube_BHW = np.random.default_rng(0).random((5, 20, 30), np.float32)
>>> moments = mtmsd.Moments(5)
>>> moments.update(cube_BHW.reshape(5, -1).T)
>>> projection = mtmsd.fit_projection(moments, mtmsd.ReduceConfig(components=2))
>>> projection.apply(cube_BHW).shape
(2, 20, 30)
"""

from importlib import import_module
from typing import Any

_PIECES = {
    "areas": ("AreaEstimates", "estimate_areas"),
    "bands": ("BandMap", "band_spacing", "in_order", "match_bands"),
    "calibration": ("Reliability", "fit_temperature", "fold_of", "twin_folds"),
    "conformal": ("Coverage", "class_sets", "set_threshold"),
    "classifier": ("ClassifierConfig", "Head", "Sizes"),
    "ensemble": ("Ensemble", "Prediction", "assemble", "combine"),
    "experts": ("Committee", "Expert", "fit_expert", "pool"),
    "diffusion": ("DiffusionConfig", "Schedule", "shared_noise"),
    "features": ("Extractor", "FeatureConfig", "feature_width"),
    "fusion": ("FusionConfig", "SelectiveFusion"),
    "heads": ("make_member",),
    "hyperfeatures": ("Hyperfeatures",),
    "interpolation": ("Features",),
    "members": ("Pixels", "held_out_logits", "train_member", "training_margin"),
    "metrics": ("Confusion", "boundary_f_score"),
    "mosaic": ("Mosaic", "fade"),
    "multistage": ("MultistageUNet", "OptimalDenoiser", "cut_points", "find_cuts", "similarity"),
    "purify": ("ClassMeans", "PurifyConfig", "Selection", "channel_scores", "select", "select_channels"),
    "spectra": ("box_means", "box_profiles"),
    "spectral": ("Moments", "Projection", "ReduceConfig", "fit_projection"),
    "split": ("SplitConfig", "make_split", "near_any", "overlap"),
    "supertokens": ("SupertokenConfig", "Supertokens", "pixel_probabilities", "spectral_metric"),
    "steps": ("PatchDraw", "PretrainConfig", "draw_interval", "draw_patches", "learning_rate", "turned"),
    "token_classifier": ("TokenClassifier", "TokenRegion", "token_loss", "train_tokens"),
    "training": ("Averaged", "make_optimizer", "pretrain_step"),
    "unet": ("UNet", "UNetConfig"),
    "unets": ("make_unet",),
    "windows": ("PatchConfig", "pad_index", "read_padded", "windows_of_tile"),
}  # fmt: skip
_HOME = {name: module for module, names in _PIECES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a piece from its module and keep it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    piece = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return piece


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
