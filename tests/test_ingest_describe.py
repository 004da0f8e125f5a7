"""Ingest: --describe says what is in a file, and writes nothing."""

from pathlib import Path

import numpy as np
import pytest

from tests.ingest_files import label_map, label_shapes, label_tif, run, write_source

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def described(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert run("--describe", *arguments) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_envi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "bil")
    with source.open("a") as header:
        header.write("bbl = {1,1,0,0,1,1}\nreflectance scale factor = 10000\n")
    before = sorted(tmp_path.iterdir())
    lines = described(capsys, source)
    assert lines[0] == str(source)
    for line in (
        "format ENVI",
        "image 20 x 33 pixels (y, x), 6 bands, uint16",
        "wavelengths 400 to 900 nm",
        "bad bands 2-3",
        "no data 65535",
        "packing reflectance = stored * 0.0001 + 0",
        "values 1 to 3960, median 1980.5 (stored numbers, in the middle of the image)",
        "pixel size 2 x 2",
        "bounds x 272000 to 272066, y 3289960 to 3290000",
    ):
        assert line in lines
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["mat5", "mat73", "npy", "h5", "nc4", "nc3", "zarr2", "zarr3", "tif"])
def test_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    source = write_source(tmp_path, kind, "int16")
    lines = described(capsys, source, *(["--axes", "yxb"] if kind == "h5" else []))
    assert "image 20 x 33 pixels (y, x), 6 bands, int16" in [line.replace(">i2", "int16") for line in lines]
    if kind in ("mat5", "mat73"):
        assert "array cube (20, 33, 6)" in lines
    if kind == "h5":
        assert "array group/cube (20, 33, 6) int16" in lines
    if kind == "zarr3":
        assert "array counts (20, 6, 33) int16 y wavelength x" in lines
    if kind == "npy":
        assert "CRS none stated; give --crs" in lines


def test_vector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = label_shapes()
    shapes.to_file(tmp_path / "l.gpkg", layer="fields")
    lines = described(capsys, tmp_path / "l.gpkg")
    assert f"layer fields: {len(shapes)} features, Polygon" in lines
    assert "CRS NAD83 / UTM zone 15N" in lines
    assert "columns class (int64)" in lines
    assert "classes 2 in column class" in lines
    assert f"1 {(shapes['class'] == 1).sum()}" in lines


def test_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = described(capsys, label_tif(tmp_path / "l.tif", label_map()))
    assert "label map 20 x 33 pixels (y, x), uint8" in lines
    np.save(tmp_path / "l.npy", label_map())
    lines = described(capsys, tmp_path / "l.npy")
    assert "label map 20 x 33 pixels (y, x), uint8" in lines
    assert f"2 {(label_map() == 2).sum()}" in lines


def test_several_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "b.npy", np.ones((2, 3, 5)))
    lines = described(capsys, tmp_path / "a.npy", tmp_path / "b.npy")
    assert [line for line in lines if line.startswith("image")] == [
        "image 2 x 3 pixels (y, x), 4 bands, float64",
        "image 2 x 3 pixels (y, x), 5 bands, float64",
    ]
    assert run("--describe") == 2
    assert run("--describe", tmp_path / "gone.tif") == 2
    assert "gone.tif: no such file" in capsys.readouterr().err


def test_an_ambiguous_file_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import h5py

    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["a"], file["b"] = np.ones((2, 3, 4)), np.ones((2, 3, 4))
    lines = described(capsys, tmp_path / "c.h5")
    assert "array a (2, 3, 4) float64" in lines
    assert any(
        line.startswith("image none taken:") and "choose one with --variable" in line for line in lines
    )
