"""Scenes: what opens, what is refused, what is read, and the grid that outputs inherit."""

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives xarray its .rio)
import xarray as xr
import zarr

from pipeline.classes import default_colors
from pipeline.errors import UserError
from pipeline.georeference import consolidate
from pipeline.scene import ClassTable, open_scene, write_scene

# rioxarray 0.19 multiplies affine transforms in a way that affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

TRANSFORM = (2.0, 0.0, 1000.0, 0.0, -2.0, 5000.0)
CLASSES = ClassTable((3, 300), ("Dry grass", "Road"), ("#00ff00", "#808080"))


def counts(bands: int = 4, height: int = 21, width: int = 34) -> np.ndarray[Any, Any]:
    """Return (band, y, x) uint16 that differ everywhere."""
    size = bands * height * width
    return (np.arange(size).reshape(bands, height, width) + 1).astype(np.uint16)


def label_map(height: int = 21, width: int = 34) -> np.ndarray[Any, Any]:
    """Return (y, x) labels with three labelled pixels."""
    labels = np.zeros((height, width), np.int64)
    labels[0, 33], labels[7, 2], labels[20, 0] = 300, 3, 3
    return labels


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A complete scene of 21 x 34 pixels in chunks of 8."""
    target = tmp_path / "scene.zarr"
    write_scene(
        target,
        counts(),
        wavelength_nm=[400, 500, 600, 700],
        crs="EPSG:26915",
        transform=TRANSFORM,
        labels=label_map(),
        classes=CLASSES,
        chunk=8,
    )
    return target


def test_what_was_written_is_read(path: Path) -> None:
    scene = open_scene(str(path))
    assert (scene.bands, scene.height, scene.width, scene.chunk) == (4, 21, 34, (8, 8))
    assert scene.wavelength_nm == (400, 500, 600, 700)
    assert scene.transform == TRANSFORM
    assert scene.crs_wkt is not None
    assert "UTM zone 15N" in scene.crs_wkt
    assert scene.classes == CLASSES
    assert scene.dtype == np.uint16
    np.testing.assert_array_equal(scene.read(3, 20, 5, 34), counts()[:, 3:20, 5:34])
    assert scene.read(0, 1, 0, 1).dtype == np.float32
    labels = scene.read_labels(0, 21, 0, 34)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, label_map())
    y, x, code = scene.labelled_pixels()
    assert [y.tolist(), x.tolist(), code.tolist()] == [[0, 7, 20], [33, 2, 0], [300, 3, 3]]
    assert [str(a.dtype) for a in (y, x, code)] == ["int64"] * 3
    assert list(scene.label_counts().items()) == [(3, 2), (300, 1)]


def test_is_small_and_reads_in_another_process(path: Path) -> None:
    scene = open_scene(str(path))
    pickled = pickle.dumps(scene)
    assert len(pickled) < 5000
    program = (
        "import pickle, sys; s = pickle.loads(sys.stdin.buffer.read());"
        "print(s.read(1, 2, 1, 2).ravel().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickled,
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.decode().strip() == str(scene.read(1, 2, 1, 2).ravel().tolist())


@pytest.mark.parametrize("window", [(0, 0, 0, 1), (-1, 3, 0, 4), (0, 22, 0, 4), (0, 4, 30, 35)])
def test_windows_outside_are_refused(path: Path, window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must lie in a scene of 21 x 34"):
        open_scene(str(path)).read(*window)


def test_packing_fill_and_infinity(tmp_path: Path) -> None:
    packed = np.array([[[100, 65535]], [[200, 0]]], np.uint16)
    write_scene(tmp_path / "a", packed, scale_factor=0.5, add_offset=-10, fill_value=65535)
    found = open_scene(str(tmp_path / "a")).read(0, 1, 0, 2)
    np.testing.assert_array_equal(found, np.array([[[40, np.nan]], [[90, -10]]], np.float32))
    real = np.array([[[1.5, np.inf, -9999.0, np.nan]]], np.float64)
    write_scene(tmp_path / "b", real, fill_value=-9999.0)
    found = open_scene(str(tmp_path / "b")).read(0, 1, 0, 4)
    np.testing.assert_array_equal(found, np.array([[[1.5, np.nan, np.nan, np.nan]]], np.float32))
    # 2**24 + 1 is no float32: the offset must be taken off before it is rounded.
    write_scene(tmp_path / "c", np.array([[[2**24 + 1]]], np.int32), add_offset=-(2**24))
    assert open_scene(str(tmp_path / "c")).read(0, 1, 0, 1).item() == 1


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_reads_what_xarray_reads(tmp_path: Path, zarr_format: Any, dtype: str) -> None:
    values = (np.arange(60).reshape(3, 4, 5) / 4).astype(np.float32)
    values[1, 2, 3] = np.nan
    dataset = xr.Dataset(
        {"reflectance": (("band", "y", "x"), values), "labels": (("y", "x"), np.eye(4, 5) > 0)},
        coords={
            "y": 10.0 - np.arange(4),
            "x": 7.0 + np.arange(5),
            "wavelength": ("band", [1, 2, 3]),
        },
    )
    dataset["labels"] = dataset["labels"].astype("uint8")
    dataset["labels"].attrs = {"flag_values": [1], "flag_meanings": "diagonal"}
    dataset["wavelength"].attrs["units"] = "um"
    dataset = dataset.rio.write_crs("EPSG:32633")
    encoding = {
        "dtype": dtype, "_FillValue": -99, "scale_factor": 0.25, "add_offset": 1.0,
        "grid_mapping": "spatial_ref",
    }  # fmt: skip
    path = tmp_path / "x.zarr"
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=False, encoding={"reflectance": encoding})
    scene = open_scene(str(path))
    opened = xr.open_zarr(path, consolidated=False)
    np.testing.assert_allclose(scene.read(0, 4, 0, 5), opened["reflectance"].values)
    assert np.isnan(scene.read(0, 4, 0, 5)).sum() == 1
    assert scene.wavelength_nm == (1000, 2000, 3000)
    assert scene.transform == (1, 0, 6.5, 0, -1, 10.5)
    assert scene.crs_wkt is not None
    assert "33N" in scene.crs_wkt
    assert scene.classes == ClassTable((1,), ("diagonal",), default_colors(1))
    np.testing.assert_array_equal(scene.read_labels(0, 4, 0, 5), np.eye(4, 5))


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_urls(path: Path, tmp_path: Path, protocol: str) -> None:
    url = f"file://{path}"
    if protocol == "memory":
        url = f"memory://{tmp_path.name}/s.zarr"
        source, copy = zarr.open_group(path, mode="r"), zarr.open_group(url, mode="w")
        for name in ("reflectance", "labels"):
            array: Any = source[name]
            copy.create_array(
                name,
                data=array[:],
                chunks=array.chunks,
                dimension_names=array.metadata.dimension_names,
                attributes=dict(array.attrs),
            )
    scene = open_scene(url)
    np.testing.assert_array_equal(scene.read(0, 21, 0, 34), counts())
    assert scene.classes == CLASSES


def damaged(path: Path, name: str, **changes: Any) -> None:
    """Replace an array of a scene: shape, dtype, dimension_names or attributes."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    old: Any = group[name]
    changes.setdefault("shape", old.shape)
    changes.setdefault("dtype", old.dtype)
    changes.setdefault("dimension_names", old.metadata.dimension_names)
    changes.setdefault("attributes", dict(old.attrs))
    value = changes.pop("value", 0)
    group.create_array(name, overwrite=True, **changes)[...] = value
    consolidate(group)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("reflectance", {"shape": (21, 34), "dimension_names": ("y", "x")},
         r"must have the dimensions \(band, y, x\), found \(y, x\) with shape \(21, 34\)"),
        ("reflectance", {"dimension_names": ("y", "x", "band")}, r"found \(y, x, band\)"),
        ("reflectance", {"dimension_names": None}, "found no dimension names"),
        ("reflectance", {"dtype": "complex64"}, "must be integer or float, found complex64"),
        ("reflectance", {"shape": (0, 21, 34)}, "must not be empty"),
        ("labels", {"shape": (21, 33)}, "21 x 34 pixels .*found 21 x 33"),
        ("labels", {"dtype": "float32"}, "unsigned integer codes, found float32"),
        ("labels", {"dtype": "int16", "value": -3}, "found -3 to -3; set unlabelled pixels to 0"),
        ("labels", {"dtype": "uint32", "value": 70_000, "attributes": {}}, "to 65535, found 70000 to 70000"),
        ("labels", {"value": 9}, r"codes \[9\] that flag_values \[3, 300\] does not list"),
        ("reflectance", {"attributes": {"scale_factor": "a tenth"}}, "one finite number, found 'a tenth'"),
        ("reflectance", {"attributes": {"add_offset": [1.0, 2.0]}}, "add_offset of reflectance must be one"),
        ("labels", {"attributes": {"flag_values": [1, 2], "flag_meanings": "a b c"}},
         "one word for each of the 2 flag_values, found 3"),
        ("labels", {"attributes": {"flag_values": [1], "flag_colors": "red"}}, "found 'red'"),
        ("labels", {"attributes": {"flag_values": [2, 2]}}, "different codes"),
        ("labels", {"attributes": {"flag_values": "1b"}}, "list of integers"),
        ("wavelength", {"shape": (3,)}, r"each of the 4 bands, found shape \(3,\)"),
        ("wavelength", {"attributes": {"units": "cm-1"}}, "in nm, found float64 in 'cm-1'"),
        ("y", {"shape": (5,)}, r"coordinate y must have 21 values.*found shape \(5,\)"),
        ("spatial_ref", {"attributes": {"crs_wkt": "nonsense"}}, "cannot understand the CRS"),
        ("spatial_ref", {"attributes": {"GeoTransform": "1 2 3"}}, "must be six numbers"),
    ],
)  # fmt: skip
def test_damage_is_named(path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    damaged(path, name, **changes)
    with pytest.raises(UserError, match=said) as caught:
        open_scene(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["reflectance", "labels", "wavelength", "x", "spatial_ref"])
def test_metadata_that_were_cut_off_are_named(path: Path, name: str) -> None:
    root = path / "zarr.json"
    root.write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')  # not consolidated
    assert open_scene(str(path)).bands == 4
    (path / name / "zarr.json").write_text('{"shape": [4, 21')
    with pytest.raises(UserError, match=f"the metadata of {name} cannot be understood"):
        open_scene(str(path))


def test_packing_in_lists_as_other_writers_leave_it(path: Path) -> None:
    plain = open_scene(str(path)).read(0, 21, 0, 34)
    array: Any = zarr.open_group(path, mode="r+", use_consolidated=False)["reflectance"]
    array.attrs.update(scale_factor=[0.5], missing_value=[int(counts()[0, 0, 0]), -5])
    consolidate(zarr.open_group(path, mode="r+", use_consolidated=False))
    found = open_scene(str(path)).read(0, 21, 0, 34)
    assert np.isnan(found[0, 0, 0])
    there = np.isfinite(found)
    assert there.any()
    np.testing.assert_array_equal(found[there], plain[there] * 0.5)


def test_what_is_no_scene(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_scene(str(tmp_path / "absent"))
    (tmp_path / "cube.tif").write_bytes(b"II*\0")
    for other in (tmp_path, tmp_path / "cube.tif"):
        with pytest.raises(UserError, match=r"expected a Zarr group, found none.*ingest"):
            open_scene(str(other))
    with pytest.raises(UserError, match="found a single array"):
        open_scene(str(path / "labels"))
    zarr.create_group(tmp_path / "empty.zarr").create_array("cube", shape=(2,), dtype="f4")
    with pytest.raises(UserError, match=r"expected an array reflectance .*found cube"):
        open_scene(str(tmp_path / "empty.zarr"))
    with pytest.raises(UserError, match="no-such-protocol"):
        open_scene("no-such-protocol://bucket/scene.zarr")


def test_without_labels(tmp_path: Path) -> None:
    write_scene(tmp_path / "s", counts(), chunk=16)
    scene = open_scene(str(tmp_path / "s"))
    assert (scene.classes, scene.label_fingerprint()) == (None, None)
    assert (scene.crs_wkt, scene.transform, scene.wavelength_nm) == (None, None, None)
    assert [len(a) for a in scene.labelled_pixels()] == [0, 0, 0]
    assert scene.label_counts() == {}
    with pytest.raises(ValueError, match="has no labels"):
        scene.read_labels(0, 1, 0, 1)


def test_labelled_pixels_are_those_of_all_rows(path: Path) -> None:
    scene = open_scene(str(path))
    labels = scene.read_labels(0, 21, 0, 34)
    y, x = np.nonzero(labels)
    for found, expected in zip(scene.labelled_pixels(), (y, x, labels[y, x]), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64
    digest = hashlib.sha256(repr(((21, 34), scene.classes)).encode())
    digest.update(np.concatenate([y, x, labels[y, x]]).astype("<i8").tobytes())
    assert scene.label_fingerprint() == digest.hexdigest(), "that of runs that were begun with it"


def test_codes_without_names_come_from_the_data(tmp_path: Path) -> None:
    write_scene(tmp_path / "s", counts(), labels=label_map())
    found = open_scene(str(tmp_path / "s")).classes
    assert found == ClassTable((3, 300), ("class 3", "class 300"), default_colors(2))


def test_fingerprints(path: Path, tmp_path: Path) -> None:
    scene = open_scene(str(path))
    pixels, labels = scene.fingerprint(), scene.label_fingerprint()
    moved = path.rename(tmp_path / "moved.zarr")
    scene = open_scene(str(moved))
    assert (scene.fingerprint(), scene.label_fingerprint()) == (pixels, labels)
    damaged(moved, "labels", value=3)
    scene = open_scene(str(moved))
    assert scene.fingerprint() == pixels
    assert scene.label_fingerprint() != labels
    array: Any = zarr.open_group(moved, mode="r+")["reflectance"]
    array[2, 10, 10] = 0
    assert open_scene(str(moved)).fingerprint() != pixels


@pytest.fixture(autouse=True)
def _forget_open_arrays() -> Iterator[None]:
    yield
    from pipeline import scene

    scene._stored.cache_clear()
