"""Ingest: a cube larger than memory goes through, block by block."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import geopandas
import h5py
import numpy as np
import pytest
import zarr
from shapely.geometry import box

from pipeline.scene import open_scene
from tests.ingest_files import ROOT

LIMITED = """
import resource, sys
from pathlib import Path
from pipeline import ingest
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
limit = used + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(ingest.main(sys.argv[2:]))
"""


SHAPE = (3200, 4000, 64)
ALLOWANCE = {"mosaic": 512 * 2**20}
USUAL = 350 * 2**20


def sparse_envi(path: Path, name: str, lines: int, easting: float) -> Path:
    """Write a BIL file of zeros that take no room on the disk, and one 7 at its end."""
    source, (_, samples, bands) = path / f"{name}.img", SHAPE
    with source.open("wb") as file:
        file.truncate(lines * samples * bands * 2)
        file.seek(-2, os.SEEK_END)
        file.write(np.uint16(7).tobytes())
    (path / f"{name}.hdr").write_text(
        f"ENVI\nsamples = {samples}\nlines = {lines}\nbands = {bands}\nheader offset = 0\n"
        "file type = ENVI Standard\ndata type = 12\ninterleave = bil\nbyte order = 0\n"
        f"map info = {{UTM, 1, 1, {easting}, 3290000, 2, 2, 15, North, WGS-84}}\ndata ignore value = 9\n"
    )
    return source


def big_sources(path: Path, kind: str) -> list[Path]:
    """Return sources of 1.6 GB, a mosaic of 2.3 GB: all 0 but for a 7 in the last pixel and band."""
    if kind == "npy":
        data = np.lib.format.open_memmap(path / "big.npy", "w+", np.uint16, SHAPE)
        data[-1, -1] = 7
        return [path / "big.npy"]
    if kind == "nc":
        with h5py.File(path / "big.nc", "w") as file:
            cube = file.create_dataset("cube", SHAPE, np.uint16, chunks=(32, 256, 64), compression="gzip")
            cube[-1, -1] = 7
        return [path / "big.nc", Path("--axes"), Path("yxb")]
    if kind == "zarr":
        group = zarr.create_group(path / "big.zarr")
        cube = group.create_array(
            "cube", shape=SHAPE, chunks=(100, 100, 16), dtype="uint16", dimension_names=("y", "x", "band")
        )
        cube[-1, -1] = 7
        return [path / "big.zarr"]
    if kind == "bil":
        return [sparse_envi(path, "big", SHAPE[0], 272000)]
    # Half a pixel apart: the second line is resampled.
    lines = [sparse_envi(path, name, SHAPE[0], easting) for name, easting in (("a", 272000), ("b", 275001))]
    field = geopandas.GeoDataFrame(
        {"class": [3]}, geometry=[box(272000, 3289000, 280000, 3290000)], crs=32615
    )
    field.to_file(path / "l.gpkg")
    return [*lines, Path("--labels"), path / "l.gpkg", Path("--balance"), Path("--overlap"), Path("mean")]


@pytest.mark.parametrize(
    "kind",
    [
        "npy", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("bil", "nc", "zarr")),
        pytest.param("mosaic", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)  # fmt: skip
def test_a_cube_larger_than_memory_goes_through(tmp_path: Path, kind: str) -> None:
    words = big_sources(tmp_path, kind)
    allowance = ALLOWANCE.get(kind, USUAL)
    command = [sys.executable, "-c", LIMITED, allowance, *words, tmp_path / "s"]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "DASK_NUM_WORKERS": "2", "GDAL_CACHEMAX": "64"},
    )
    assert done.returncode == 0, done.stderr
    scene = open_scene(str(tmp_path / "s"))
    y, x = scene.height, scene.width
    assert y * x * SHAPE[2] * 2 > 4 * allowance
    last = scene.read(y - 2, y, x - 2, x)[-1] if kind == "mosaic" else scene.read(y - 1, y, x - 1, x)[-1]
    assert np.nanmax(last) == 7
    assert scene.read(0, 1, 0, 1).max() == 0
    if kind == "mosaic":
        assert "resampled (nearest)" in done.stdout
        assert scene.read_labels(0, 500, 1, 2).tolist() == [[3]] * 500


def test_a_limit_is_a_limit() -> None:
    """The memory test above means something: the limit stops an array as large as the cube."""
    program = LIMITED.replace("sys.exit(ingest.main(sys.argv[2:]))", "bytearray(1300 * 2**20)")
    command = [sys.executable, "-c", program, str(USUAL)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
