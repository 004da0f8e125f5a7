"""Settings that nothing could be computed with are refused as they are read."""

import re
from types import SimpleNamespace

import pytest

from mtmsd.checks import check_ranges
from pipeline.config import load_config
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("value", "interval", "message"),
    [
        (0, "[1, inf)", "part.key must be at least 1, found 0"),
        (0.0, "(0, inf)", "part.key must be above 0, found 0.0"),
        (1, "[0, 1)", "part.key must lie in [0, 1), found 1"),
        (0, "(0, 1]", "part.key must lie in (0, 1], found 0"),
        ((3, 0), "[1, inf)", "part.key must be at least 1, found 0"),
        (float("nan"), "[0, 1]", "part.key must lie in [0, 1], found nan"),
        (float("inf"), "[0, inf)", "part.key must be at least 0, found inf"),
    ],
)
def test_what_lies_outside_is_refused(value: object, interval: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_ranges("part", SimpleNamespace(key=value), key=interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [(None, "[1, inf)"), (1, "(0, 1]"), (0, "[0, 1)"), ((), "[1, inf)"), (2**40, "(1, inf)")],
)  # fmt: skip
def test_what_lies_inside_is_taken(value: object, interval: str) -> None:
    check_ranges("part", SimpleNamespace(key=value), key=interval)


@pytest.mark.parametrize(
    "setting",
    [
        "unet.heads=0", "unet.groups=0", "unet.channels=0", "unet.dropout=2", "unet.multipliers=[0]",
        "classifier.label_smoothing=2", "classifier.hidden=[0]", "classifier.weight_decay=-1",
        "classifier.learning_rate=-1", "classifier.dropout=.nan", "classifier.steps=0",
        "features.noise_seed=4294967296",
        "pretrain.learning_rate=-1", "pretrain.clip_norm=-1", "pretrain.weight_decay=-1",
        "pretrain.warmup=-1", "patches.window=0", "split.seed=-1", "features.noise_seed=-1",
        "purify.timestep_weight=-3", "supertokens.temperature=.nan",
    ],
)  # fmt: skip
def test_impossible_settings_are_told_at_once(setting: str) -> None:
    key, value = setting.split("=")
    with pytest.raises(UserError, match=f"{key} must .*found {value.strip('[].')}"):
        load_config(None, [setting])


def test_seeds_beyond_what_generators_take_are_refused() -> None:
    with pytest.raises(UserError, match="seed"):
        load_config(None, ["seed=100000000000000"])
