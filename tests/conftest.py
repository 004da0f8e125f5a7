"""A tiny synthetic scene with every awkwardness, and one run of the whole chain that tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.classes import table_of
from pipeline.demo import make_demo_scene
from pipeline.run import cli
from pipeline.scene import open_scene, write_scene

os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")  # a process that the dashboard alone needs
ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "tiny.yaml"
DEAD_BAND = 5
FILL = 65535


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    """Exit code 2, one line that starts with error and holds the words, no traceback."""
    assert cli(arguments) == 2
    output = capsys.readouterr()
    last = output.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last, last
    assert "Traceback" not in output.err


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws without a seed of its own is the same every time, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real scenes and golden outputs, which the project does not ship."""
    folder = Path(os.environ.get("MTMSD_SHARED", ROOT.parent / "shared"))
    if not folder.exists():
        pytest.skip(f"real scenes and golden outputs are not here ({folder}); set MTMSD_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 x 150 x 12, synthetic: codes with gaps, a dead band, an all-no-data tile and corner."""
    folder = tmp_path_factory.mktemp("scene")
    make_demo_scene(folder / "plain.zarr", height=96, width=150, bands=12)
    plain = open_scene(str(folder / "plain.zarr"))
    counts = np.round(plain.read(0, 96, 0, 150) * 1e4).astype(np.uint16)
    counts[DEAD_BAND] = FILL
    counts[:, 64:, :64] = FILL  # a whole tile of the tiny configuration
    counts[3, 0, :7] = FILL  # one band only: no data at these pixels
    labels = plain.read_labels(0, 96, 0, 150)
    labels[64:, :64] = 0
    labels[0, :7] = 0
    recode = {code: 3 * i + 2 for i, code in enumerate(plain.classes.codes)}
    coded = np.vectorize(lambda code: recode.get(int(code), 0), otypes=[np.uint8])(labels)
    rows = [
        (recode[c], n, h)
        for c, n, h in zip(plain.classes.codes, plain.classes.names, plain.classes.colors, strict=True)
    ]
    write_scene(
        folder / "tiny.zarr", counts, wavelength_nm=plain.wavelength_nm, crs=plain.crs_wkt,
        transform=plain.transform, labels=coded, classes=table_of(rows), scale_factor=1e-4, fill_value=FILL,
        chunk=64,
    )  # fmt: skip
    return folder / "tiny.zarr"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost tiny products more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a module; commands that run in this process join it."""
    from pipeline.cluster import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="module")
def finished(tiny_scene: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which every stage is done. Read only: copy it to change it."""
    from pipeline.run import cli

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli([str(tiny_scene), "--config", str(TINY), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A private copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
