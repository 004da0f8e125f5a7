"""The second pass of the map without a cluster: any tiling gives the vote on the whole scene; refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtmsd.split import TEST, TRAIN
from mtmsd.supertokens import SupertokenConfig, Supertokens, pixel_probabilities
from pipeline.artifacts import RunFolder, write_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.readers import Reduced
from pipeline.region_reader import PIXEL, RegionReader
from pipeline.regions import ARRAYS, RegionActor
from pipeline.tokens import train_and_write, training_regions
from pipeline.units import TileGrid, TileRegions

CODES = [2, 5, 9]
LOADINGS = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 2)))[0]


def made(path: Path, height: int, width: int, seed: int) -> RunFolder:
    """A run folder with a pixel-wise map of noisy stripes, of which a part has no data."""
    rng, folder = np.random.default_rng(seed), RunFolder(path)
    folder.classifier.mkdir(parents=True)
    write_json(folder.selection, {"codes": CODES})
    spectral = {"loadings": LOADINGS.tolist(), "scale": [3.0, 1.0], "bands_used": [0, 1, 2, 4, 5, 6]}
    write_json(folder.spectral, spectral | {"wavelength_nm": [500, 410, 420, 999, 440, 450, 470]})
    stripe = np.arange(width) // 9 % 3 + np.zeros((height, 1), int)
    cube = rng.normal(size=(2, height, width)) + 1.5 * stripe
    chosen = np.where(rng.random((height, width)) < 0.2, rng.integers(0, 3, (height, width)), stripe)
    code = np.asarray(CODES)[chosen]
    code[: height // 4, width // 2 :] = 0
    confidence = np.where(code > 0, rng.uniform(0.4, 1.0, code.shape), np.nan)
    group = zarr.open_group(folder.reduced, mode="w")
    cube[:, code == 0] = np.nan
    group.create_array("reduced", data=cube.astype(np.float32), chunks=(2, 16, 16))
    group = zarr.open_group(folder.map, mode="w", zarr_format=2)
    group.create_array("class" + PIXEL, data=code.astype(np.uint8), chunks=(16, 16))
    group.create_array("confidence" + PIXEL, data=confidence.astype(np.float32), chunks=(16, 16))
    return folder


def label_some(folder: RunFolder, height: int, width: int) -> None:
    """Labelled pixels of the stripes' classes, of which two in three train."""
    y, x = (values.ravel()[::5] for values in np.mgrid[:height, :width])
    label, split = np.asarray(CODES)[x // 9 % 3], np.where(np.arange(y.size) % 3 < 2, TRAIN, TEST)
    group = zarr.open_group(folder.features, mode="w")
    for name, values in {"y_index": y, "x_index": x, "label": label, "split": split}.items():
        group.create_array(name, data=values)


def voted(config: Config, folder: RunFolder, shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The second pass, tile by tile, last tile first."""
    grid = TileGrid(*shape, config.tile)
    actor = RegionActor(config, folder, gpu=False)
    reader = RegionReader(Reduced(str(folder.reduced)), folder.map, grid, config.supertokens)
    whole = {name: np.full(shape, -1, np.float32) for name in ARRAYS}
    for unit in range(2 * len(grid) - 1, len(grid) - 1, -1):
        row = actor({key: np.asarray(value)[None] for key, value in ({"unit": unit} | reader(unit)).items()})
        for name, (rows, columns) in TileRegions(grid, ARRAYS)(unit).items():
            assert row[name].shape == (1, config.tile, config.tile)
            whole[name][rows, columns] = row[name][
                0, : rows.stop - rows.start, : columns.stop - columns.start
            ]
    return whole


def settings_of(cell: int, iterations: int, tile: int, steps: int = 0) -> Config:
    return load_config(
        None,
        [
            "patches.stride=1", "patches.blend=0", "map.regions=supertokens", f"map.tile={tile}",
            f"supertokens.cell={cell}", f"supertokens.iterations={iterations}",
            f"supertokens.steps={steps}",
        ],
    )  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(5, 50), width=st.integers(5, 70), cell=st.integers(2, 5),
    iterations=st.integers(0, 2), tile=st.integers(6, 40), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_tiling_gives_the_vote_on_the_whole_scene(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    cell: int,
    iterations: int,
    tile: int,
    seed: int,
) -> None:
    folder = made(tmp_path_factory.mktemp("run") / "run", height, width, seed)
    tiled, whole = (
        voted(settings_of(cell, iterations, side), folder, (height, width)) for side in (tile, 80)
    )
    assert np.array_equal(tiled["class"], whole["class"])
    for name in ("confidence", "entropy"):
        np.testing.assert_allclose(tiled[name], whole[name], atol=1e-6)


def test_any_tiling_gives_the_answer_of_the_same_token_classifier(tmp_path: Path) -> None:
    folder, shape = made(tmp_path / "run", 40, 60, seed=4), (40, 60)
    label_some(folder, *shape)
    train_and_write(settings_of(4, 2, 80, steps=30), folder, *shape)
    tiled, whole = (voted(settings_of(4, 2, side, steps=30), folder, shape) for side in (13, 80))
    for name in ARRAYS:
        np.testing.assert_allclose(tiled[name], whole[name], atol=1e-5)
    by_vote = voted(settings_of(4, 2, 80), folder, shape)
    assert not np.allclose(by_vote["confidence"], whole["confidence"], atol=0.01, equal_nan=True)


def test_tokens_learn_from_training_pixels_alone(tmp_path: Path) -> None:
    folder, shape, config = made(tmp_path / "run", 40, 60, seed=5), (40, 60), settings_of(4, 1, 80, steps=8)
    label_some(folder, *shape)
    grid = TileGrid(*shape, 16)
    regions = training_regions(config, folder, grid)
    group = zarr.open_group(folder.features)
    split, label, y, x = (np.asarray(group[name][...]) for name in ("split", "label", "y_index", "x_index"))
    assert len(regions) == 12
    assert sum(int((region.label_HW >= 0).sum()) for region in regions) == (split == TRAIN).sum()
    halo = config.supertokens.halo * 4
    for unit, region in enumerate(regions):
        y0, _, x0, _ = grid.bounds(unit)
        for row, column in (region.label_HW >= 0).nonzero().tolist():
            (at,) = np.flatnonzero((y == y0 - halo + row) & (x == x0 - halo + column))
            assert split[at] == TRAIN
            assert CODES[region.label_HW[row, column]] == label[at]
    train_and_write(config, folder, *shape)
    weights = folder.tokens.read_bytes()
    label[split == TEST] = CODES[0]
    group["label"][...] = label
    train_and_write(config, folder, *shape)
    assert folder.tokens.read_bytes() == weights


def test_of_too_many_regions_some_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = made(tmp_path / "run", 40, 60, seed=5), settings_of(4, 1, 80)
    label_some(folder, 40, 60)
    monkeypatch.setattr("pipeline.tokens._BYTES", 4 * (4 * 15) ** 2 * 4 * 7)
    assert len(training_regions(config, folder, TileGrid(40, 60, 16))) == 4


def test_the_pass_is_the_vote_of_the_science(tmp_path: Path) -> None:
    """The whole scene in one region, without reader, tiles or codes."""
    folder, shape = made(tmp_path / "run", 24, 32, seed=3), (24, 32)
    found = voted(settings_of(4, 2, 8), folder, shape)
    code = np.asarray(zarr.open_group(folder.map, mode="r")["class" + PIXEL][...])
    confidence = np.asarray(zarr.open_group(folder.map, mode="r")["confidence" + PIXEL][...])
    cube = np.nan_to_num(np.asarray(zarr.open_group(folder.reduced, mode="r")["reduced"][...]))
    # Slopes of the used bands 1, 2, 4, 5, 6 and 0, in the order of wavelength.
    slope = (
        np.diff(LOADINGS[[1, 2, 3, 4, 5, 0]] * [3.0, 1.0], axis=0)
        / np.diff([410, 420, 440, 450, 470, 500])[:, None]
    )
    metric = np.eye(2) + slope.T @ slope * 2 / np.trace(slope.T @ slope)
    projection = torch.from_numpy(np.linalg.cholesky(metric).T.astype(np.float32))
    tokens = Supertokens(SupertokenConfig(cell=4), projection)
    position = torch.from_numpy(np.where(code > 0, np.searchsorted(CODES, code), -1))
    own = pixel_probabilities(position, torch.from_numpy(np.nan_to_num(confidence)), 3)
    with torch.no_grad():
        voted_CHW = tokens.vote(torch.from_numpy(cube), own).numpy()
    assert np.array_equal(found["class"], np.where(code > 0, np.asarray(CODES)[voted_CHW.argmax(axis=0)], 0))
    np.testing.assert_allclose(
        found["confidence"], np.where(code > 0, voted_CHW.max(axis=0), np.nan), atol=1e-5
    )
    stripe = np.asarray(CODES)[np.arange(32) // 9 % 3]
    inside = code > 0
    assert (found["class"] == stripe)[inside].mean() > (code == stripe)[inside].mean() + 0.05


def test_without_regions_nothing_changes_and_settings_for_them_are_refused() -> None:
    plain, voting = load_config(None), load_config(None, ["map.regions=supertokens"])
    before, after = (fingerprints(config, {}) for config in (plain, voting))
    assert [stage for stage in before if before[stage] != after[stage]] == ["map", "report"]
    with pytest.raises(UserError, match=r"supertokens\.\* has no effect without map\.regions=supertokens"):
        load_config(None, ["supertokens.cell=4"])
    with pytest.raises(UserError, match=r"map\.regions"):
        load_config(None, ["map.regions=superpixels"])
    with pytest.raises(UserError, match=r"supertokens\.cell must be at least 2"):
        load_config(None, ["map.regions=supertokens", "supertokens.cell=1"])
