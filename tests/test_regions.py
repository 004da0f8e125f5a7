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

from mtmsd.supertokens import SupertokenConfig, Supertokens, pixel_probabilities
from pipeline.artifacts import RunFolder, write_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.readers import Reduced
from pipeline.regions import ARRAYS, PIXEL, RegionActor, RegionReader
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


def settings_of(cell: int, iterations: int, tile: int) -> Config:
    return load_config(
        None,
        [
            "patches.stride=1", "patches.blend=0", "map.regions=supertokens", f"map.tile={tile}",
            f"supertokens.cell={cell}", f"supertokens.iterations={iterations}",
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
