"""What do streaming, chunks and checks cost? ``ingest`` and ``reduce`` against plain numpy in memory.

``python -m benchmarks.preparation [--rows 1200] [--columns 2400] [--bands 48]`` writes an ENVI cube of
correlated noise (uint16, BIL). Plain ingest: read it whole, transpose, save. Plain reduce: covariance,
eigenvectors and projection of the whole cube in float32, save. Ray has started before its clock does.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import publish
from pipeline import reduce
from pipeline.artifacts import RunFolder
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.ingest import ingest
from pipeline.ingest_options import Options
from pipeline.scene import open_scene

COMPONENTS = 6
_HEADER = """ENVI
samples = {columns}
lines = {rows}
bands = {bands}
data type = 12
interleave = bil
byte order = 0
header offset = 0
"""


def main() -> None:
    """Print seconds, megabytes per second and the ratio to the plain way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--columns", type=int, default=2400)
    parser.add_argument("--bands", type=int, default=48)
    options = parser.parse_args()
    shape = options.rows, options.bands, options.columns
    work = Path(tempfile.mkdtemp())
    try:
        source = _write(work / "cube.img", shape)
        size, rows = source.stat().st_size / 2**20, []
        folder = RunFolder(work / "run")
        folder.path.mkdir()
        config = load_config(None, [f"reduce.components={COMPONENTS}"])
        plain, ours = _spent(lambda: _plain_ingest(source, shape)), _spent(
            lambda: ingest([source], work / "scene.zarr", Options())
        )  # fmt: skip
        rows += [["ingest, plain", plain, size / plain, 1.0], ["ingest", ours, size / ours, plain / ours]]
        scene = open_scene(str(work / "scene.zarr"))
        plain = _spent(lambda: _plain_reduce(source.with_suffix(".npy")))
        with ray_session():
            ours = _spent(lambda: reduce.run(config, folder, scene))
        rows += [["reduce, plain", plain, size / plain, 1.0], ["reduce", ours, size / ours, plain / ours]]
    finally:
        shutil.rmtree(work)
    publish(
        "preparation", f"ENVI cube of {options.rows} x {options.columns} pixels, {options.bands} bands",
        ["way", "s", "MiB / s", "times plain"], rows,
    )  # fmt: skip


def _spent(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _write(path: Path, shape: tuple[int, int, int]) -> Path:
    """BIL: (row, band, column)."""
    rng, (rows, bands, columns) = np.random.default_rng(0), shape
    mixing = rng.random((bands, COMPONENTS), np.float32) * 1000
    with path.open("wb") as file:
        for _ in range(rows):
            file.write((mixing @ rng.random((COMPONENTS, columns), np.float32)).astype("<u2").tobytes())
    path.with_suffix(".hdr").write_text(_HEADER.format(rows=rows, bands=bands, columns=columns))
    return path


def _plain_ingest(source: Path, shape: tuple[int, int, int]) -> None:
    cube = np.fromfile(source, "<u2").reshape(shape)
    np.save(source.with_suffix(".npy"), np.ascontiguousarray(cube.transpose(1, 0, 2)))


def _plain_reduce(path: Path) -> None:
    cube: NDArray[np.float32] = np.load(path).astype(np.float32)
    bands, height, width = cube.shape
    flat = cube.reshape(bands, -1)
    flat -= flat.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh((flat @ flat.T / flat.shape[1]).astype(np.float64))
    best = np.argsort(values)[::-1][:COMPONENTS]
    projection = (vectors[:, best] / np.sqrt(values[best])).T.astype(np.float32)
    np.save(path.with_name("reduced.npy"), (projection @ flat).reshape(-1, height, width))


if __name__ == "__main__":
    main()
