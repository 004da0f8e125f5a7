"""A tile of the map by one actor, without a cluster: the same pixels whatever the tiles, seams that fade."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.stand_in import stand_in
from mtmsd.ensemble import combine
from mtmsd.purify import Selection
from pipeline import map as map_stage
from pipeline.artifacts import RunFolder, read_json, write_json
from pipeline.config import Config, load_config
from pipeline.map import ARRAYS, MapActor
from pipeline.readers import Reduced, TileReader
from pipeline.trained import load_members, make_extractor
from pipeline.units import TileGrid, TileRegions, UnitSource

HEIGHT, WIDTH = 70, 45
SETTINGS = [
    "unet.channels=32", "patches.size=16", "patches.window=24", "patches.stride=12",
    "features.timesteps=[50]", "features.stages=[3,5]", "classifier.members=2",
]  # fmt: skip


def made(path: Path, config: Config) -> RunFolder:
    """Untrained members know nothing; a low temperature makes them say it with confidence."""
    folder, _ = stand_in(path, config, HEIGHT, WIDTH)
    write_json(folder.calibration, {"temperature": 1e-3})
    return folder


def classified(config: Config, folder: RunFolder, tile: int) -> dict[str, NDArray[Any]]:
    changed = config.model_dump() | {"map": config.map.model_dump() | {"tile": tile}}
    config = Config.model_validate(changed)  # refuses tiles that cut windows
    grid = TileGrid(HEIGHT, WIDTH, tile)
    actor, reader = (
        MapActor(config, folder, gpu=False),
        TileReader(Reduced(str(folder.reduced)), grid, config.patches),
    )
    whole = {name: np.full((HEIGHT, WIDTH), -1.0, np.float32) for name in ARRAYS}
    for unit in range(len(grid)):
        row = actor({key: np.asarray(value)[None] for key, value in ({"unit": unit} | reader(unit)).items()})
        y0, y1, x0, x1 = grid.bounds(unit)
        for name, values in whole.items():
            assert row[name].shape == (1, tile, tile)
            values[y0:y1, x0:x1] = row[name][0, : y1 - y0, : x1 - x0]
    return whole


@pytest.mark.parametrize("vote", ["mean", "majority"])
@pytest.mark.parametrize("blend", [0, 3, 6])
def test_tiles_do_not_change_the_map(tmp_path: Path, blend: int, vote: str) -> None:
    config = load_config(None, [*SETTINGS, f"patches.blend={blend}", f"classifier.vote={vote}"])
    folder = made(tmp_path / "run", config)
    small, large = (classified(config, folder, tile) for tile in (24 if vote == "mean" else 36, 72))
    for name in ARRAYS:
        np.testing.assert_array_equal(small[name], large[name])
    assert set(range(1, 21)) >= set(np.unique(small["class"]))
    assert len(np.unique(small["class"])) > 2
    assert (small["confidence"] > 0).all()
    assert (small["entropy"] <= np.log(20) + 1e-5).all()


KINDS = {
    "hyperfeatures": ["fusion.kind=hyperfeatures"],
    "ssftt": ["classifier.kind=ssftt", "classifier.patch=7", "features.spectra=[]"],
    "diffusion_ssftt": ["classifier.kind=diffusion_ssftt", "classifier.patch=7", "features.spectra=[]"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_map_as_members_answer(tmp_path: Path, kind: str) -> None:
    """The map of any tiles is what the members say of each pixel's own features, one pixel at a time."""
    config = load_config(None, [*SETTINGS, "patches.blend=0", "classifier.experts=[]", *KINDS[kind]])
    folder = made(tmp_path / "run", config)
    if kind == "ssftt":
        folder.unet.unlink()  # nothing reads it
    small, large = (classified(config, folder, tile) for tile in (12, 72))
    for name in ARRAYS:
        np.testing.assert_array_equal(small[name], large[name])
    members = load_members(config, folder, gpu=False)
    extract = make_extractor(config, folder, False, Selection.from_json(read_json(folder.selection)))
    reduced, patches = Reduced(str(folder.reduced)), config.patches
    for y, x in ((0, 0), (30, 31), (69, 44)):
        row, column = (int(patches.corner(patches.block(np.array(v)))) for v in (y, x))
        window = reduced.window(row, row + patches.side, column, column + patches.side, patches)
        features = extract(torch.from_numpy(window[None]))
        inside = [int(patches.within(np.array(v))) for v in (y, x)]
        at = torch.tensor([0]), torch.tensor([inside[0] * patches.stride + inside[1]])
        inputs = features.at(*at), features.pooled_NTK, features.spectra_at(*at)
        with torch.no_grad():
            answer = combine(torch.stack([(m(*inputs) / 1e-3).softmax(dim=-1) for m in members]), "mean")
        assert large["class"][y, x] == int(answer.position_N) + 1
        np.testing.assert_allclose(large["confidence"][y, x], float(answer.confidence_N), atol=2e-3)


def test_the_map_reads_the_timesteps_that_remain(tmp_path: Path) -> None:
    """Two of three timesteps kept: the same map as of a run that has these two alone."""
    common = [*SETTINGS, "patches.blend=0", "fusion.kind=hyperfeatures"]
    two = load_config(None, [*common, "features.timesteps=[50,700]"])
    folder = made(tmp_path / "run", two)
    expected = classified(two, folder, 72)
    three = load_config(None, [*common, "features.timesteps=[50,300,700]", "fusion.keep_timesteps=2"])
    write_json(folder.mixing, {"kept": [50, 700]})
    found = classified(three, folder, 72)
    for name in ARRAYS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_blending_removes_the_steps_at_borders(tmp_path: Path) -> None:
    """Random weights on noise: the answers jump where the window changes, less so where windows blend."""
    jumps = []
    for blend in (0, 6):
        config = load_config(None, [*SETTINGS, f"patches.blend={blend}", "features.profiles=[]"])
        folder = made(tmp_path / str(blend), config)
        entropy = classified(config, folder, 72)["entropy"].mean(axis=1)
        step = np.abs(np.diff(entropy))
        first = config.patches.origin + config.patches.stride
        borders = np.arange(first, HEIGHT, config.patches.stride) - 1
        beside = np.setdiff1d(np.arange(len(step)), borders)
        jumps.append(step[borders].mean() / step[beside].mean())
    assert jumps[0] > 1.5
    assert jumps[1] < 1.2


def test_tiles_go_in_rounds_and_many_actors_write_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[tuple[Any, ...]]] = []
    monkeypatch.setattr(map_stage, "ROUND", 3)
    monkeypatch.setattr(map_stage, "read_units", lambda part: part.units)
    monkeypatch.setattr(map_stage, "write_units", lambda *part: rounds[-1].append(part))
    tiles: Any = TileRegions(TileGrid(8, 8, 4), ARRAYS)
    source = UnitSource("tiles", [4, 7, 9, 11, 12], cast(Any, None), 1)
    for actors in (1, 15, 16, 64):
        rounds.append([])
        shares: Any = SimpleNamespace(actors=actors, through_actors=lambda read, *_: read)
        arguments: tuple[Any, ...] = (tiles, source, shares, MapActor, (), None)
        map_stage.map_tiles(RunFolder(tmp_path), *arguments)
    assert [[part[0] for part in parts] for parts in rounds] == [[[4, 7, 9], [11, 12]]] * 4
    assert [parts[1][1].min_rows_per_write for parts in rounds] == [None, None, 2, 8]
