"""Ingest: every format gives the same scene, labels land on the right pixels, mistakes are told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  (gives xarray its .rio)
import xarray as xr
import yaml
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import ingest_labels, ingest_options
from pipeline.errors import UserError
from pipeline.scene import open_scene
from tests.ingest_files import (
    HEIGHT,
    PLACE,
    ROOT,
    WAVES,
    WIDTH,
    cube,
    label_map,
    label_tif,
    run,
    write_source,
)

SHARED = Path(os.environ.get("MTMSD_SHARED", ROOT.parent / "shared"))

# rioxarray 0.19 multiplies affine transforms in a way that affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


@pytest.mark.parametrize("kind", ["mat5", "mat73", "npy", "tif", "bil", "bip"])
def test_every_format_gives_the_same_scene(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "labels.npy", label_map())
    extra = [*PLACE, "--wavelengths", "400:900", "--fill", 65535]
    if kind in ("tif", "bil", "bip"):
        extra = []
    source, target = write_source(tmp_path, kind), tmp_path / "s.zarr"
    labels = ["--labels", tmp_path / "labels.npy", "--chunk", 16]
    assert run(source, target, *labels, *extra) == 0
    scene = open_scene(str(target))
    assert scene.dtype == np.uint16
    assert scene.chunk == (16, 16)
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), label_map())
    assert scene.wavelength_nm == pytest.approx(WAVES, abs=1e-3)
    opened = xr.open_zarr(target, decode_coords="all")
    assert opened["reflectance"].rio.crs.to_epsg() == 26915
    assert tuple(opened["reflectance"].rio.transform())[:6] == (2, 0, 272000, 0, -2, 3290000)
    assert opened["reflectance"].encoding["_FillValue"] == 65535
    assert opened["labels"].rio.crs.to_epsg() == 26915


@pytest.mark.parametrize("axes", ["yxb", "xyb", "byx", "bxy", "ybx", "xby"])
@pytest.mark.parametrize("kind", ["npy", "mat73"])
def test_axes(tmp_path: Path, axes: str, kind: str) -> None:
    stored = cube().transpose(["byx".index(axis) for axis in axes])
    source = tmp_path / ("c.npy" if kind == "npy" else "c.mat")
    if kind == "npy":
        np.save(source, stored)
    else:
        with h5py.File(source, "w") as file:
            file["c"] = stored.T
    np.save(tmp_path / "l.npy", label_map().T)
    labels = ["--labels", tmp_path / "l.npy", "--labels-axes", "xy"]
    assert run(source, tmp_path / "s", "--axes", axes, "--chunk", 8, *labels) == 0
    scene = open_scene(str(tmp_path / "s"))
    np.testing.assert_array_equal(scene.read(0, HEIGHT, 0, WIDTH), cube())
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), label_map())


def test_purity_by_hand() -> None:
    block = np.array(
        [
            # 3 of 4 | 2 of 4 | 3 of 4 unlabelled | tie of 5 and 7
            [1, 1, 1, 2, 0, 0, 7, 5],
            [1, 2, 1, 2, 0, 4, 5, 7],
        ],
        np.int32,
    )
    assert ingest_labels.majority(block, 2, 0.75).tolist() == [[1, 0, 0, 0]]
    assert ingest_labels.majority(block, 2, 0.76).tolist() == [[0, 0, 0, 0]]
    assert ingest_labels.majority(block, 2, 0.5).tolist() == [[1, 1, 0, 5]]


@given(arrays(np.int32, (6, 9), elements=st.integers(0, 3)), st.floats(0.34, 1))
def test_purity_against_a_plain_loop(block: np.ndarray[Any, Any], purity: float) -> None:
    found = ingest_labels.majority(block, 3, purity)
    for y in range(2):
        for x in range(3):
            window = block[3 * y : 3 * y + 3, 3 * x : 3 * x + 3].ravel().tolist()
            best = max(sorted(set(window)), key=window.count)
            assert found[y, x] == (best if window.count(best) / 9 >= purity else 0)


def test_finer_labels_recoded_and_named(tmp_path: Path) -> None:
    fine = label_map(4)
    fine[0, 4] = 0  # pixel (0, 1): 15 of 16 still say 1
    fine[1:3, 8:12] = 1  # pixel (0, 2): half of it says 2
    np.save(tmp_path / "l.npy", fine.astype(np.float64))
    source = write_source(tmp_path, "npy")
    classes = [
        {"code": 300, "name": "Dry grass", "source": 1, "color": "#00FF00"},
        {"code": 7, "name": "Road", "source": 2},
    ]
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(classes))
    options = ["--labels", tmp_path / "l.npy", "--classes", tmp_path / "classes.yaml"]
    assert run(source, tmp_path / "s", *options) == 0
    expected = np.array([0, 300, 7])[label_map()]
    expected[0, 2] = 0
    scene = open_scene(str(tmp_path / "s"))
    np.testing.assert_array_equal(scene.read_labels(0, HEIGHT, 0, WIDTH), expected)
    assert scene.classes is not None
    assert (scene.classes.codes, scene.classes.names) == ((7, 300), ("Road", "Dry grass"))
    assert scene.classes.colors[1] == "#00ff00"


def test_drop_unlisted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "npy")
    np.save(tmp_path / "l.npy", label_map())
    (tmp_path / "c.yaml").write_text("- {code: 2, name: b}")
    options = ["--labels", tmp_path / "l.npy", "--classes", tmp_path / "c.yaml"]
    assert run(source, tmp_path / "s", *options) == 2
    assert "does not list the codes [1] of the labels" in capsys.readouterr().err
    assert run(source, tmp_path / "s", *options, "--drop-unlisted") == 0
    found = open_scene(str(tmp_path / "s")).labelled_pixels()[2]
    assert found.tolist() == [2] * int((label_map() == 2).sum())


def test_label_tif_brings_names_and_colours(tmp_path: Path) -> None:
    source, labels = write_source(tmp_path, "tif"), label_map()
    labels[3, 4] = 255
    fine = {"transform": Affine(0.5, 0, 272000, 0, -0.5, 3290000), "nodata": 255}
    tif = label_tif(tmp_path / "l.tif", labels.repeat(4, 0).repeat(4, 1), **fine)
    assert run(source, tmp_path / "s", "--labels", tif) == 0
    scene = open_scene(str(tmp_path / "s"))
    assert scene.classes is not None
    assert scene.classes.names == ("Red roof", "Water")
    assert scene.classes.colors == ("#ff0000", "#0000ff")
    assert scene.read_labels(3, 4, 4, 5).item() == 0


def test_a_map_of_ours_serves_as_labels_with_its_names(tmp_path: Path) -> None:
    source, tif = write_source(tmp_path, "tif"), label_tif(tmp_path / "l.tif", label_map())
    with rasterio.open(tif, "r+") as file:
        file.update_tags(1, class_names=json.dumps({"1": "Red roof", "2": "Water"}))
    assert run(source, tmp_path / "s", "--labels", tif) == 0
    classes = open_scene(str(tmp_path / "s")).classes
    assert classes is not None
    assert classes.names == ("Red roof", "Water")


def test_missing_values_become_fill(tmp_path: Path) -> None:
    real = cube().astype(np.float32)
    real[2, 3, 4] = np.nan
    np.save(tmp_path / "c.npy", real)
    assert run(tmp_path / "c.npy", tmp_path / "s", "--axes", "byx") == 0
    opened = xr.open_zarr(tmp_path / "s")["reflectance"]
    assert np.isnan(opened.encoding["_FillValue"])
    np.testing.assert_array_equal(open_scene(str(tmp_path / "s")).read(0, 20, 0, 33), real)


def test_dropped_bands_and_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "tif")
    assert run(source, tmp_path / "s", "--drop-bands", "0-1,4", "--scale-factor", "0.0001") == 0
    said = capsys.readouterr().out
    assert "left out: bands 0-1,4, 3 of 6" in said
    assert "20 x 33 pixels (y, x), 3 bands" in said
    scene = open_scene(str(tmp_path / "s"))
    assert scene.wavelength_nm == (600, 700, 900)
    np.testing.assert_allclose(scene.read(0, 20, 0, 33), cube()[[2, 3, 5]] * 1e-4, rtol=1e-6)
    attributes = xr.open_zarr(tmp_path / "s").attrs
    why = {"--drop-bands": "0-1,4"}
    assert attributes == {"source": "c.tif", "dropped_bands": [0, 1, 4], "dropped_why": why}


def test_summary_counts_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tif = label_tif(tmp_path / "l.tif", label_map())
    assert run(write_source(tmp_path, "tif"), tmp_path / "s", "--labels", tif) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["type", "uint16"] in lines
    assert ["CRS", "NAD83", "/", "UTM", "zone", "15N"] in lines
    assert ["1", "Red", "roof", str((label_map() == 1).sum())] in lines
    assert ["2", "Water", str((label_map() == 2).sum())] in lines


@pytest.mark.parametrize("start", [["pipeline/ingest.py"], ["-m", "pipeline.ingest"]])
def test_runs_as_script_and_as_module(tmp_path: Path, start: list[str]) -> None:
    command = [sys.executable, *start, str(tmp_path / "gone.mat"), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'gone.mat'}: no such file\n"


def test_computes_on_ray_where_one_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", label_map())
    source, target = write_source(tmp_path, "npy"), tmp_path / "s"
    command = [sys.executable, "pipeline/ingest.py", source, target, "--labels", tmp_path / "l.npy"]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert "Started a local Ray instance" in done.stderr
    np.testing.assert_array_equal(open_scene(str(target)).read(0, 20, 0, 33), cube())


@pytest.mark.parametrize(
    ("folder", "image", "options", "pixels"),
    [
        ("houston2018_crop", "houston_dataset.mat",
         ["houston_dataset.mat", "--labels-variable", "clasLabs"], 5143),
        ("salinas_a", "SalinasA_corrected.mat", ["SalinasA_gt.mat"], 5348),
        ("indian_pines_subset", "Indian_subset.mat", ["Indian_subset.mat"], 3569),
    ],
)  # fmt: skip
def test_real_scenes(tmp_path: Path, folder: str, image: str, options: list[str], pixels: int) -> None:
    source = SHARED / "scenes" / folder
    if not source.is_dir():
        pytest.skip(f"the real scenes are not here: {source} (set MTMSD_SHARED)")
    classes = ROOT / "configs" / "classes" / f"{folder}.yaml"
    labels = ["--labels", source / options[0], *options[1:], "--classes", classes]
    assert run(source / image, tmp_path / "s", *labels) == 0
    scene = open_scene(str(tmp_path / "s"))
    codes = scene.labelled_pixels()[2]
    assert len(codes) == pixels
    assert scene.classes is not None
    assert set(codes.tolist()) == set(scene.classes.codes)
    assert scene.dtype.kind in "iu"


def test_one_crs_in_two_dialects(tmp_path: Path) -> None:
    write_source(tmp_path, "bil")
    with rasterio.open(tmp_path / "c.img") as file:
        esri = file.crs.to_wkt()
    assert ingest_options.one_crs("EPSG:26915", esri, "c.img") is not None
    with pytest.raises(UserError, match="geographic conflict"):
        ingest_options.one_crs("EPSG:26916", esri, "c.img")


CLASSES_CSV = "\ufeffCode, Name, color, source\n4, flat roof, #FF0000, 1\n\n9, water, , 2\n"


@pytest.mark.parametrize("text", [CLASSES_CSV, CLASSES_CSV.replace(",", ";")])
def test_classes_from_a_spreadsheet(tmp_path: Path, text: str) -> None:
    source = write_source(tmp_path, "npy")
    np.save(tmp_path / "l.npy", np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3)
    (tmp_path / "classes.csv").write_text(text)
    assert (
        run(source, tmp_path / "s", "--labels", tmp_path / "l.npy", "--classes", tmp_path / "classes.csv")
        == 0
    )
    scene = open_scene(str(tmp_path / "s"))
    assert scene.classes is not None
    assert (scene.classes.codes, scene.classes.names) == ((4, 9), ("flat roof", "water"))
    assert scene.classes.colors[0] == "#ff0000"
    assert scene.read_labels(0, 1, 0, 3).tolist() == [[0, 4, 9]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\nwater\n", "found no code in entry 1: {'name': 'water'}"),
        ("code,name\n1,roof, flat\n", "found in entry 1 beyond the header \"['flat']\": extra inputs"),
        ("code,name\nx,roof\n", "found in entry 1 code 'x': input should be a valid integer"),
    ],
)
def test_a_wrong_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    source = write_source(tmp_path, "npy")
    (tmp_path / "c.csv").write_text(text)
    words = ["--labels", write_source(tmp_path, "npy"), "--classes", tmp_path / "c.csv"]
    assert run(source, tmp_path / "s", *words) == 2
    assert said in capsys.readouterr().err
