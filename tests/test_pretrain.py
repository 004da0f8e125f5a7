"""Pretraining that diverges: it ends, and nothing of it is kept."""

from pathlib import Path

import pytest
import torch

from pipeline import pretrain
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.conftest import TINY, refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_found(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    assert pretrain._is_finite(model)
    with torch.no_grad():
        model[1].weight[0, 2] = value
    assert not pretrain._is_finite(model)


def test_a_training_that_ended_early_is_refused() -> None:
    config = load_config(None, ["pretrain.steps=200", "pretrain.learning_rate=0.5"])
    pretrain._check_whole(config, 200)
    with pytest.raises(UserError, match=r"at step 15: .* lower pretrain\.learning_rate \(it is 0\.5\)"):
        pretrain._check_whole(config, 15)


@pytest.mark.cluster
def test_a_diverged_training_leaves_nothing(
    tiny_scene: Path, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All workers stop at the same step, and the training is not tried again."""
    settings = ["pretrain.learning_rate=1000", "pretrain.warmup=0", "pretrain.steps=200"]
    settings += ["cluster.train_workers=2"]
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(tmp_path / "run")]
    arguments += [part for setting in settings for part in ("--set", setting)]
    refused(capsys, arguments, "the training has diverged", "1000")
    assert not list((tmp_path / "run" / "pretrain").glob("*.pt"))
    assert not (tmp_path / "run" / "pretrain" / "unet.safetensors").exists()
