"""Ingest: what the user gets wrong is said in one line, and nothing is written."""

import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import ray
import scipy.io
from affine import Affine

from pipeline import ingest
from pipeline.errors import UserError
from pipeline.georeference import Transform, parse_crs
from pipeline.ingest import scheduler
from pipeline.ingest_options import Options, registered_crs, same_crs, same_transform
from pipeline.sources.layout import Cube
from tests.ingest_files import cube, label_map, label_tif, run, write_source

# rioxarray 0.19 multiplies affine transforms in a way that affine 3 announces to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def bad_files(path: Path) -> None:
    """Write what the refusals below are about."""
    write_source(path, "tif")
    np.save(path / "flat.npy", np.zeros((4, 4)))
    np.save(path / "complex.npy", cube().astype(complex))
    np.save(path / "l.npy", label_map())
    np.save(path / "odd.npy", np.ones((30, 50), np.uint8))
    np.save(path / "half.npy", label_map() * 0.5)
    np.save(path / "minus.npy", label_map().astype(int) - 1)
    (path / "broken.npy").write_text("no array")
    (path / "broken.mat").write_text("no MATLAB file")
    (path / "broken.tif").write_text("no TIFF")
    (path / "lonely.hdr").write_text("ENVI")
    (path / "text.txt").write_text("hello")
    (path / "waves.txt").write_text("1 2 x")
    scipy.io.savemat(path / "two.mat", {"a": np.ones((4, 5, 6)), "b": np.ones((5, 5, 6))})
    label_tif(path / "far.tif", label_map(), transform=Affine(2, 0, 272002, 0, -2, 3290000))
    label_tif(path / "zone.tif", label_map(), crs="EPSG:32616")
    (path / "twice.yaml").write_text("[{code: 1, name: a}, {code: 1, name: b}]")
    (path / "typo.yaml").write_text("[{code: 1, nam: a}]")
    (path / "zero.yaml").write_text("[{code: 0, name: a}]")
    (path / "nought.yaml").write_text("[{code: 1, name: a, source: 0}, {code: 2, name: b, source: 1}]")
    (path / "words.yaml").write_text("[{code: one, name: a}]")
    (path / "green.yaml").write_text("[{code: 1, name: a}, {code: 2, name: b, color: green}]")
    (path / "mapping.yaml").write_text("1: a")
    (path / "broken.yaml").write_text("[{code: 1")
    np.save(path / "nothing.npy", np.zeros((20, 33), np.uint8))
    np.save(path / "text.npy", np.full((20, 33), "grass"))
    (path / "there").mkdir()


REFUSED = [
    ("gone.mat s", "gone.mat: no such file"),
    ("c.tif", "expected SOURCE and SCENE, found 1 path"),
    ("c.tif c.tif s", "c.tif stands twice among the sources"),
    ("c.tif there", "there: exists already"),
    ("text.txt s", "unknown format; expected ENVI (.hdr or its data file), GeoTIFF"),
    ("broken.npy s", "cannot read it as a NumPy array"),
    ("broken.mat s", "cannot read it as a MATLAB file"),
    ("broken.tif s", "cannot read it as a raster"),
    ("lonely.hdr s", "no data file beside this ENVI header"),
    ("flat.npy s", "must be a 3-D array yxb, found shape (4, 4)"),
    ("complex.npy s --axes byx", "must hold integers or real numbers, found complex128"),
    ("two.mat s", "expected one 3-D array to take, found a (4, 5, 6), b (5, 5, 6); choose one"),
    ("two.mat s --variable c", "--variable c: no such array; found a (4, 5, 6), b (5, 5, 6)"),
    ("c.tif s --axes bby", "'bby' is not one of"),
    ("c.tif s --chunk 0", "0 is not in the range"),
    ("c.tif s --purity 1.5", "1.5 is not in the range"),
    ("c.tif s --labels gone.npy", "gone.npy: no such file"),
    ("c.tif s --labels odd.npy",
     "image, 20 x 33 pixels (y, x), or a whole multiple of it, found 30 x 50"),
    ("c.tif s --labels half.npy", "whole numbers from 0 (unlabelled) upwards, found 0.5"),
    ("c.tif s --labels minus.npy", "whole numbers from 0 (unlabelled) upwards, found -1"),
    ("c.tif s --labels c.tif", "a label map must have one band, found 6"),
    ("c.tif s --labels complex.npy", "must be a 2-D label map yx, found shape (6, 20, 33)"),
    ("c.tif s --labels far.tif", "far.tif: geographic conflict: expected labels that, 1 to a side"),
    ("c.tif s --labels zone.tif",
     "zone.tif: geographic conflict: expected the CRS of the image, NAD83 / UTM zone 15N, "
     "found WGS 84 / UTM zone 16N"),
    ("c.tif s --crs EPSG:32633", "geographic conflict: --crs says WGS 84 / UTM zone 33N"),
    ("c.tif s --crs moon", "cannot understand the CRS 'moon'"),
    ("c.tif s --transform 1,0,0,0,-1,0", "geographic conflict: the options say transform"),
    ("c.tif s --transform 1,0,0,0,1", "--transform: expected 6 numbers separated by commas"),
    ("c.tif s --transform 0,0,0,0,-1,0", "expected pixels with an area"),
    ("c.tif s --pixel-size 2", "--pixel-size and --origin place a scene together"),
    ("c.tif s --pixel-size -2 --origin 0,0", "expected SIZE or X,Y above 0, found '-2'"),
    ("c.tif s --pixel-size 2 --transform 1,0,0,0,-1,0", "not both"),
    ("c.tif s --wavelengths gone.txt", "expected FIRST:LAST or a file, found No such file"),
    ("c.tif s --wavelengths waves.txt", "expected numbers in nm"),
    ("c.tif s --wavelengths 0.4:2.5", "expected nanometres, found 0.4 to 2.5"),
    ("c.tif s --drop-bands 4-6", "expected bands from 0 to 5, found 4-6"),
    ("c.tif s --drop-bands a", "expected a list such as 0-3,100, found 'a'"),
    ("c.tif s --drop-bands 0-5", "leaves none of the 6 bands"),
    ("c.tif s --fill -1", "expected a whole number from 0 to 65535 for uint16 data, found -1"),
    ("c.tif s --labels l.npy --classes gone.yaml", "cannot read it: No such file"),
    ("c.tif s --labels l.npy --classes twice.yaml", "code [1] stands twice"),
    ("c.tif s --labels l.npy --classes typo.yaml", "found no name in entry 1: {'code': 1, 'nam': 'a'}"),
    ("c.tif s --labels l.npy --classes zero.yaml", "found in entry 1 code 0: input should be greater"),
    ("c.tif s --labels l.npy --classes nought.yaml", "0 is unlabelled in a raster"),
    ("c.tif s --labels l.npy --classes words.yaml", "found in entry 1 code 'one': input should be a valid"),
    ("c.tif s --labels l.npy --classes green.yaml", "found in entry 2 color 'green': like #4caf50"),
    ("c.tif s --labels l.npy --classes mapping.yaml", "found dict"),
    ("c.tif s --labels l.npy --classes broken.yaml", "not valid YAML: while parsing a flow mapping at line"),
    ("c.tif s --classes zero.yaml", "--classes names the classes of --labels; give --labels too"),
    ("c.tif s --labels nothing.npy", "nothing.npy: expected labels, found 0 (unlabelled) everywhere"),
    ("c.tif s --labels text.npy", "found text; labels that are words must become numbers"),
    ("c.tif l.npy", "this is a file; give a new path that ends in .zarr; did you mean --labels"),
    ("c.tif other.tif", "give one that ends in .zarr, not in .tif"),
    ("c.tif s --unknown", "No such option '--unknown'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("other", "size", "same"),
    [
        ((1.0009, 0, 0, 0, -1, 0), (10, 500), True),
        ((1.0009, 0, 0, 0, -1, 0), (10, 600), False),
        ((1, 0, 0, 0, -1.0009, 0), (600, 10), False),
        ((1, 0, 0.5, 0, -1, -0.5), (600, 600), True),
        ((1, 0, 0.51, 0, -1, 0), (10, 10), False),
        ((1, 0.001, 0, 0, -1, 0), (501, 10), False),
    ],
)
def test_grids_agree_to_half_a_pixel_everywhere(other: Transform, size: tuple[int, int], same: bool) -> None:
    assert same_transform((1, 0, 0, 0, -1, 0), other, size) is same


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[words for words, _ in REFUSED])
def test_mistakes_are_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bad_files(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(*arguments.split()) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert said in stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_cluster_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address := f"127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no cluster answers"):
        scheduler()


@pytest.mark.parametrize(
    ("code", "stated", "edited"),
    [(26915, "-93", "-94.5"), (3035, "52", "50"), (5070, "-96", "-90")],
)
def test_a_crs_of_another_meridian_is_another_whatever_its_name(code: int, stated: str, edited: str) -> None:
    own = pyproj.CRS.from_epsg(code)
    for version in ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2019"):
        dialect = own.to_wkt(version)
        assert same_crs(own, parse_crs(dialect, "x"))
        other = dialect.replace(f",{stated},", f",{edited},").replace(f",{stated}.0]", f",{edited}]")
        other = other.replace(f",{stated}]", f",{edited}]").replace(f'["EPSG",{code}]', "")
        other = re.sub(rf',(ID|AUTHORITY)\["EPSG","?{code}"?\]', "", other)
        assert other != dialect
        assert not same_crs(own, parse_crs(other, "x")), version


def test_a_crs_without_a_datum_gets_none() -> None:
    wkt = pyproj.CRS("+proj=utm +zone=55 +south +ellps=GRS80 +units=m").to_wkt()
    assert registered_crs(wkt) == wkt
    assert registered_crs(pyproj.CRS(28355).to_wkt("WKT1_ESRI")) == "EPSG:28355"


def test_a_header_offset_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path, "bil")
    text = source.read_text()
    source.write_text(re.sub("header offset *= *0", "header offset = abc", text))
    assert source.read_text() != text
    assert run(source, tmp_path / "s") == 2
    assert "header offset must be a whole number of bytes, found 'abc'" in capsys.readouterr().err


def test_asked_to_end_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(block: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        return block

    whole = ingest._one_cube

    def one_cube(sources: list[Path], options: Options) -> tuple[Cube, dict[str, Any]]:
        cube, attributes = whole(sources, options)
        return replace(cube, data=cube.data.map_blocks(asked, dtype=cube.data.dtype)), attributes

    monkeypatch.setattr(ingest, "_one_cube", one_cube)
    source = write_source(tmp_path, "tif")
    assert run(source, tmp_path / "s") == 1
    assert "interrupted; the same command begins anew" in capsys.readouterr().err
    assert not list(tmp_path.glob("s*"))
