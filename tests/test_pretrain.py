"""Pretraining that diverges: it ends, and nothing of it is kept."""

from pathlib import Path

import pytest

from pipeline import pretrain
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.conftest import TINY, refused


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    assert pretrain._checked(0.5, 20, load_config(None)) == 0.5
    with pytest.raises(UserError, match=r"found (nan|inf) at step 20: .* lower pretrain\.learning_rate"):
        pretrain._checked(loss, 20, load_config(None))


@pytest.mark.cluster
@pytest.mark.long
def test_a_diverged_training_leaves_nothing(
    tiny_scene: Path, ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray Train tries it again three times before it believes it."""
    settings = ["--set", "pretrain.learning_rate=1000", "--set", "pretrain.warmup=0"]
    arguments = [str(tiny_scene), "--config", str(TINY), "--out", str(tmp_path / "run"), *settings]
    refused(capsys, [*arguments, "--set", "pretrain.steps=200"], "the training has diverged", "1000")
    assert not list((tmp_path / "run" / "pretrain").glob("*.pt"))
    assert not (tmp_path / "run" / "pretrain" / "unet.safetensors").exists()
