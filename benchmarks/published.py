"""MTMSD as published, on the U-Net of a run: its features, purification, fusion, classifier and vote.

Stages, timesteps and head are those of ``configs/paper.yaml``; the U-Net and the windows are the run's, so
that a comparison shows what the rest gives.
"""

from pathlib import Path

from pipeline.config import Config, make_config, merged, read_values

PUBLISHED = "MTMSD, published head"
PAPER = Path(__file__).resolve().parent.parent / "configs" / "paper.yaml"
FILES = (PAPER, Path(__file__))
"""What the method depends on beside the pipeline's own code."""
_SECTIONS = ("features", "purify", "fusion", "classifier")
_FEW, _RATE_FOR_FEW = 10_000, 1e-3
"""The authors take 1e-4 for 25,243 training pixels and ten times as much for 2,139 or fewer."""


def as_published(config: Config, training_pixels: int = 0) -> Config:
    """The configuration with the published features and head; arithmetic as it was.

    Args:
        config: Of the run.
        training_pixels: They decide the learning rate, as they do for the authors.
    """
    paper = {name: section for name, section in read_values(PAPER).items() if name in _SECTIONS}
    own = {name: value for name, value in config.model_dump(mode="json").items() if name not in _SECTIONS}
    paper["features"]["precision"] = config.features.precision
    if training_pixels < _FEW:
        paper["classifier"]["learning_rate"] = _RATE_FOR_FEW
    return make_config(merged(own, paper))
