"""The page of all settings: written anew it is the same, whole, and right about defaults and stages."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import RunFolder
from pipeline.config import Config, load_config
from pipeline.defaults import settle
from pipeline.fingerprints import STAGE_SECTIONS, fingerprints
from pipeline.reference import BY_RULE, page
from pipeline.scene import open_scene, write_scene

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
KEYS = [
    f"{section}.{key}" if isinstance(values, dict) else section
    for section, values in Config().model_dump().items()
    for key in (values if isinstance(values, dict) else [section])
]
ROWS = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in page().splitlines() if line.startswith("| `")]
KINDS = {row[0].strip("`"): row[1] for row in ROWS}
DEFAULTS = {row[0].strip("`"): row[2].strip("`") for row in ROWS}

FIRST = {
    "patches.window": "extract", "patches.stride": "extract", "patches.blend": "extract",
    "pretrain.checkpoint_every": None,
    "split.inductive": "reduce", "classifier.kind": "extract", "classifier.patch": "extract",
    "map.pixels": None,
    "cluster.train_workers": "pretrain",
}  # fmt: skip
"""The notes of the page: stages other than the first that reads the section."""
WITH = {
    "unet.cuts": "unet.kind=multistage", "unet.decoders": "unet.kind=multistage",
    "unet.cut_similarity": "unet.kind=multistage", "unet.cut_tolerance": "unet.kind=multistage",
    "unet.cut_window": "unet.kind=multistage", "fusion.keep_timesteps": "fusion.kind=hyperfeatures",
    "split.inductive": "split.protocol=blocks", "classifier.kind": "features.spectra=[]",
    **{key: "map.regions=supertokens" for key in KEYS if key.startswith("supertokens.")},
    "cluster.min_train_workers": "cluster.train_workers=8", "fusion.width": "fusion.kind=hyperfeatures",
    "classifier.patch": "classifier.kind=diffusion_ssftt features.spectra=[]",
}  # fmt: skip
"""What must be set before a key can be."""
OTHER = {
    "patches.size": "32", "patches.window": "64", "patches.stride": "16", "unet.channels": "32",
    "unet.multipliers": "[1, 2]", "unet.cuts": "[300, 600]",
    "unet.decoders": "[[1, 2, 1], [1, 2, 2], [1, 2, 2]]", "pretrain.precision": "bfloat16",
    "features.timesteps": "[50]", "features.stages": "[1, 3]", "features.spectra": "[0]",
    "features.profiles": "[1]", "features.precision": "bfloat16", "split.train_fraction": "0.2",
    "fusion.keep_timesteps": "2", "classifier.kind": "diffusion_ssftt", "classifier.patch": "9",
    "classifier.hidden": "[8]", "classifier.experts": "[spectra]", "map.tile": "48",
}  # fmt: skip
"""Values beside the default, where they are not made from its kind."""


def test_the_file_is_the_page() -> None:
    remedy = "python -m pipeline.reference > docs/configuration.md"
    assert PAGE.read_text() == page(), f"a docstring or default has changed: {remedy}"


def test_every_key_stands_once_and_has_a_meaning() -> None:
    assert len(KEYS) > 80
    assert [row[0] for row in ROWS] == [f"`{key}`" for key in KEYS]
    for row in ROWS:
        assert len(row) == 4, row
        assert all(cell.strip() and "``" not in cell for cell in row), row
        assert row[3].rstrip().endswith("."), row


def test_sections_in_order() -> None:
    assert re.findall(r"^## (\w+)$", page(), re.MULTILINE) == list(Config.model_fields)


def test_defaults_are_the_models() -> None:
    shown = {key: text.replace("none", "null") for key, text in DEFAULTS.items() if text != "by rule"}
    assert len(shown) == len(KEYS) - len(BY_RULE)
    assert load_config(None, [f"{key}={text}" for key, text in shown.items()]) == Config()


def test_by_rule_are_the_keys_that_rules_set(tmp_path: Path) -> None:
    path = tmp_path / "scene.zarr"
    write_scene(path, np.ones((4, 20, 30), np.float32))
    settled = settle(open_scene(str(path)), RunFolder(tmp_path / "run"), None, ())
    assert settled.chosen.keys() == BY_RULE == {key for key, text in DEFAULTS.items() if text == "by rule"}


def other(key: str) -> str:
    """A value of the key that is not its default."""
    choices, now = KINDS[key].split(" or "), DEFAULTS[key]
    if key in OTHER:
        return OTHER[key]
    if choices[0] == "number":
        return str(float(now) / 2 or 0.5)
    if choices[0] == "integer":
        return str(2 * int(now) or 1) if now.isdigit() else "8"
    return next(word.strip("`") for word in choices if word.strip("`") != now)


def first_changed(base: list[str], new: str) -> str | None:
    """The first stage that has to be done again."""
    before, after = (fingerprints(load_config(None, settings), {}) for settings in (base, [*base, new]))
    return next((stage for stage in STAGE_SECTIONS if before[stage] != after[stage]), None)


@pytest.mark.parametrize("key", KEYS)
def test_the_stage_that_a_change_needs(key: str) -> None:
    read = [stage for stage, sections in STAGE_SECTIONS.items() if key.split(".")[0] in sections]
    stage = first_changed(WITH.get(key, "").split(), f"{key}={other(key)}")
    assert stage == FIRST.get(key, next(iter(read), None))


@pytest.mark.parametrize(
    ("base", "new", "stage"),
    [
        (["split.protocol=blocks", "split.inductive=true"], "split.block=8", "reduce"),
        (["split.protocol=blocks", "split.inductive=true"], "seed=1", "reduce"),
        (["features.spectra=[]"], "classifier.kind=ssftt", "pretrain"),
        (["features.spectra=[]", "classifier.kind=ssftt"], "classifier.patch=9", "extract"),
    ],
)
def test_the_stage_that_a_note_names(base: list[str], new: str, stage: str) -> None:
    assert first_changed(base, new) == stage
