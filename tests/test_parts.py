"""The table of the parts: what a run says of its part, means over seeds, names that are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import parts
from benchmarks.timestep_stage import _of
from benchmarks.windows import Bench
from mtmsd.classifier import Sizes
from mtmsd.features import FeatureConfig
from mtmsd.heads import make_member
from mtmsd.unet import UNet, UNetConfig
from pipeline.artifacts import RunFolder, write_json
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.member_training import described


@pytest.mark.parametrize("part", parts.PARTS)
@pytest.mark.parametrize("size", [32, 48])
def test_every_part_goes_with_the_rules_patches(part: str, size: int) -> None:
    assert load_config(None, [f"patches.size={size}", *parts.PARTS[part]]).patches.size == size


def test_scores_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(run.metrics, {"oa": 0.5, "aa": 0.25, "kappa": 0.75, "map_oa": 1, "n_test": 4})
    seconds = {"pretrain": 2.0, "extract": 3.0, "classify": 4.0, "map": 5.0}
    write_json(run.stages, {stage: {"wall_s": value} for stage, value in seconds.items()})
    config = load_config(
        None, ["unet.channels=32", "fusion.hidden=1", "classifier.hidden=[2]", "classifier.members=2"]
    )
    write_json(run.run, {"config": config.model_dump(mode="json")})
    sizes = Sizes(timesteps=2, stages=(3,), classes=4, spectra=5)
    run.classifier.mkdir()
    for number in (0, 1):
        member = make_member(config.classifier, config.fusion, sizes)
        save_file(member.state_dict(), run.member(number), described(config, sizes, []))
    unet = UNet(config.unet, 6)
    run.unet.parent.mkdir()
    about = {"unet": json.dumps(dataclasses.asdict(config.unet)), "components": "6"}
    save_file(unet.state_dict(), run.unet, about)
    found = parts.scores(run)
    # Fusion: 3 -> 1 (4), norm (2), 1 -> 1 (2), for each timestep 1 -> 1 (2) and 4 -> 3 (15); then
    # 8 -> 2 (18), norm (4), 2 -> 4 (12). Means, scales and running statistics are not learned.
    assert found["parameters"] == 2 * (4 + 2 + 2 + 2 * (2 + 15) + 18 + 4 + 12)
    assert found["unet_parameters"] == sum(p.numel() for p in unet.parameters())
    assert (found["pretrain_s"], found["train_s"]) == (2, 7)
    assert (found["oa"], found["map_oa"], found["map_s"]) == (0.5, 1, 5)


def test_the_table_has_means_and_deviations() -> None:
    row = {"parameters": 2000, "unet_parameters": 7, "pretrain_s": 3.0, "train_s": 1.0, "map_s": 2.0}
    rows = [
        row | {"protocol": "random", "part": "p", "oa": oa, "aa": 0.5, "kappa": 0.5, "map_oa": 0.5}
        for oa in (0.90, 0.94)
    ]
    page = parts.markdown(
        {"scene": "s", "date": "d", "commit": "c", "machine": "m", "command": "x", "rows": rows}
    )
    assert "| random (2) | p | 92.00 ± 2.83 | 50.00 ± 0.00 |" in page
    assert "| 2,000 | 7 | 3 | 1 | 2 |" in page


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match="--parts nothing: expected some of selective fusion"):
        parts._parts("hyperfeatures,nothing")
    assert parts._parts(",".join(parts.PARTS)) == list(parts.PARTS)


def test_parts_with_another_pretraining_have_a_base_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {}

    def note(_: list[str], run: RunFolder, settings: list[str], until: str) -> None:
        begun[run.path.name] = settings

    monkeypatch.setattr(parts, "pipeline_until", note)
    for part in parts.PARTS:
        parts._base(["scene.zarr"], tmp_path, part, None, ["pretrain.steps=2"])
    assert begun == {
        "base": ["pretrain.steps=2"],
        "base_multistage_u_net": ["pretrain.steps=2", "unet.kind=multistage"],
        "base_ssftt_alone": ["pretrain.steps=2", "classifier.kind=ssftt", "features.spectra=[]"],
    }


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ("hyperfeatures", {"extract"}),
        ("supertokens", {"extract", "classify"}),
        ("one timestep", set()),
        (parts.DEFAULT, set()),
    ],
)
def test_a_part_begins_where_it_differs_from_the_default(part: str, kept: set[str], tmp_path: Path) -> None:
    base, split = RunFolder(tmp_path / "base"), tmp_path / "random_seed0"
    default = RunFolder(split / parts._file_name(parts.DEFAULT))
    for run in (base, default):
        run.path.mkdir(parents=True)
    write_json(base.stages, {})
    write_json(default.stages, {stage: {} for stage in ("extract", "classify", "map")})
    write_json(default.metrics, {"oa": 1.0})
    run = RunFolder(split / ("again" if part == parts.DEFAULT else parts._file_name(part)))
    parts._begin(base, run, part)
    assert set(run.records()) == kept
    write_json(run.stages, {"map": {}})
    parts._begin(base, run, part)
    assert set(run.records()) == {"map"}, "what has begun is not touched"


def test_features_of_one_timestep_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, ["unet.channels=32", "patches.size=16"])
    features = FeatureConfig(timesteps=(5, 10, 20), stages=(0, 3, 5))
    widths = [UNetConfig(channels=32).stage_shape(stage, 16)[0] for stage in features.stages]
    bench = Bench.__new__(Bench)
    bench.config = config
    values = torch.arange(3 * sum(widths)).reshape(1, 3, -1)
    centre, pooled, spectra = _of((values, -values, torch.ones(1, 2)), bench, features, [1], [2, 0])
    wanted = [*range(sum(widths[:2]), sum(widths)), *range(widths[0])]
    assert centre[0].tolist() == [[sum(widths) + i for i in wanted]]
    assert torch.equal(pooled, -centre)
    assert torch.equal(spectra, torch.ones(1, 2))
