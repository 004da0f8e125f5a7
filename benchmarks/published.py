"""MTMSD as published, on the U-Net of a run: its features, purification, fusion, classifier and vote.

Stages, timesteps and head are those of ``configs/paper.yaml``; the U-Net and the windows are the run's, so
that a comparison shows what the rest gives. The authors' stopping rule (no better minibatch in 1,000 steps,
from the eleventh epoch on) cannot end 100 epochs of up to 704 training pixels, 11 minibatches of 64.
"""

from pathlib import Path

from pipeline.config import Config, make_config, merged, read_values

PUBLISHED = "MTMSD, published head"
PAPER = Path(__file__).resolve().parent.parent / "configs" / "paper.yaml"
_SECTIONS = ("features", "purify", "fusion", "classifier")


def as_published(config: Config) -> Config:
    """The configuration with the published features and head; arithmetic as it was."""
    paper = {name: section for name, section in read_values(PAPER).items() if name in _SECTIONS}
    own = {name: value for name, value in config.model_dump(mode="json").items() if name not in _SECTIONS}
    paper["features"]["precision"] = config.features.precision
    return make_config(merged(own, paper))
