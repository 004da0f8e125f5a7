"""Ingest: a cube larger than memory goes through, block by block."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize("kind", ["npy", "bil"])
def test_a_cube_larger_than_memory_goes_through(tmp_path: Path, kind: str) -> None:
    allowance, shape = 300 * 2**20, (3200, 3200, 64)
    if kind == "npy":
        source = tmp_path / "big.npy"
        # A sparse file: 1.3 GB of zeros that take no room on the disk.
        data = np.lib.format.open_memmap(source, "w+", np.uint16, shape)
        data[-1, -1] = 7
        del data
    else:
        source = tmp_path / "big.img"
        with source.open("wb") as file:
            file.truncate(int(np.prod(shape)) * 2)
            file.seek(-2, os.SEEK_END)
            file.write(np.uint16(7).tobytes())
        (tmp_path / "big.hdr").write_text(
            "ENVI\nsamples = 3200\nlines = 3200\nbands = 64\nheader offset = 0\n"
            "file type = ENVI Standard\ndata type = 12\ninterleave = bil\nbyte order = 0\n"
        )
    assert source.stat().st_size > 4 * allowance
    command = [sys.executable, "-c", LIMITED, allowance, source, tmp_path / "s"]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "DASK_NUM_WORKERS": "2", "GDAL_CACHEMAX": "64"},
    )
    assert done.returncode == 0, done.stderr
    scene = open_scene(str(tmp_path / "s"))
    assert scene.read(3199, 3200, 3199, 3200)[-1].item() == 7
    assert scene.read(0, 1, 0, 1).max() == 0


def test_a_limit_is_a_limit() -> None:
    """The memory test above means something: the limit stops an array as large as the cube."""
    program = LIMITED.replace("sys.exit(ingest.main(sys.argv[2:]))", "bytearray(1300 * 2**20)")
    command = [sys.executable, "-c", program, str(300 * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
