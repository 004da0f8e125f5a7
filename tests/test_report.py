"""The report: complete for a whole run, shorter when pieces are missing, and self-contained."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from pipeline.classes import ClassTable, to_attributes
from pipeline.report import write_report
from pipeline.scene import Scene, open_scene, write_scene

TABLE = ClassTable((3, 8), ("roof <old> & new", "water"), ("#cc0000", "#0000ff"))
SECTIONS = (
    "Scene and map",
    "How sure the map is",
    "Area by class",
    "Accuracy by class",
    "Confusion matrix",
    "Training and test pixels",
    "Training",
    "Time and resources",
    "How to repeat this run",
)


def make_scene(path: Path, height: int = 24, width: int = 40, **options: Any) -> Scene:
    """Band b holds b + column / width; the first row has no data."""
    cube = np.arange(5.0)[:, None, None] + np.linspace(0, 1, width) + np.zeros((height, 1))
    cube[:, 0] = np.nan
    write_scene(path, cube.astype(np.float32), chunk=16, **options)
    return open_scene(str(path))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(
        tmp_path / "old town.zarr",
        wavelength_nm=[450.0, 550.0, 650.0, 750.0, 860.0],
        crs="EPSG:32615",
        transform=(2.0, 0.0, 500000.0, 0.0, -2.0, 4000000.0),
    )


METRICS: dict[str, Any] = {
    "split": {"protocol": "random", "seed": 7, "train_fraction": 0.05, "guard_px": 0},
    "n_train": 12,
    "n_test": 1234,
    "oa": 0.91234,
    "aa": 0.5,
    "kappa": 0.8765,
    "per_class": [
        {"code": 3, "name": TABLE.names[0], "n_train": 6, "n_test": 1234, "accuracy": 0.9},
        {"code": 8, "name": "water", "n_train": 6, "n_test": 0, "accuracy": None},
    ],
    "confusion": [[1110, 124], [0, 0]],
    "overlap": 0.987,
}
AREAS = {
    "unit": "ha",
    "surface": "plane",
    "total": 0.368,
    "classes": [
        {
            "code": 3,
            "name": TABLE.names[0],
            "pixels": 460,
            "mapped": 0.184,
            "share": 0.5,
            "adjusted": 0.2051,
            "adjusted_ci95": 0.0123,
        },
        {"code": 8, "name": "water", "pixels": 460, "mapped": 0.184, "share": 0.5},
    ],
    "overall_accuracy": 0.8,
    "overall_accuracy_ci95": 0.1,
    "left_out": ["water"],
}


@pytest.fixture
def run_dir(tmp_path: Path, scene: Scene) -> Path:
    """A run folder with everything that the report reads."""
    folder = tmp_path / "run"
    for part in ("pretrain", "classifier"):
        (folder / part).mkdir(parents=True)
    shape = (scene.height, scene.width)
    group = zarr.create_group(folder / "map.zarr")
    codes = np.full(shape, 3, np.uint8)
    codes[0], codes[:, 20:] = 0, 8
    sure = np.full(shape, 0.75, np.float32)
    for name, values in (("class", codes), ("confidence", sure), ("entropy", sure)):
        attributes = to_attributes(TABLE) if name == "class" else {}
        group.create_array(name, data=values, dimension_names=("y", "x"), attributes=attributes)
    features = zarr.create_group(folder / "features.zarr")
    for name, column in (("y_index", [5, 6, 7]), ("x_index", [9, 9, 30]), ("split", [0, 1, 2])):
        features.create_array(name, data=np.array(column))
    stage = {
        "status": "done",
        "wall_s": 65.2,
        "pixels": 960,
        "pixels_per_s": 14.7,
        "bytes_read": 2048,
        "bytes_written": 100,
        "peak_rss_bytes": 3 * 2**30,
    }
    files = {
        "run.json": {
            "config": {"seed": 7},
            "versions": {"python": "3.11.9", "torch": "2.9"},
            "seed": 7,
            "scene": {"url": scene.url, "fingerprint": "ab"},
            "command": ["python", "pipeline/run.py", "s3://city & co/scene"],
        },
        "stages.json": {"reduce": stage, "report": {"status": "running"}},
        "metrics.json": METRICS,
        "areas.json": AREAS,
        "pretrain/history.json": [{"step": 1, "images": 64, "loss": 1.5}],
        "classifier/history.json": [
            {"member": m, "epoch": e, "loss": 2.0 / e, "train_accuracy": 0.5} for m in (0, 1) for e in (1, 2)
        ],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


class _Page(HTMLParser):
    """Collects headings, images and attributes that could reach the network; checks nesting."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.images: list[str] = []
        self.references: list[str] = []
        self.ids: list[str | None] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
            assert dict(attrs)["alt"]
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def _png(uri: str) -> np.ndarray[Any, Any]:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_a_whole_run_has_every_section_and_its_numbers(run_dir: Path, scene: Scene) -> None:
    path = write_report(run_dir, scene)
    assert path == run_dir / "report.html"
    text = path.read_text()
    page = _Page(text)
    assert tuple(page.headings) == SECTIONS
    assert len(page.images) == 7
    for shown in (
        "<h1>old town</h1>",
        "91.2\u00a0%",
        "0.876",
        "1\u202f234",
        "98.7\u00a0% of the test pixels have a training pixel inside their patch. Such scores",
        "random, 5.0\u00a0% of each class train, guard 0 px, seed 7",
        "WGS 84 / UTM zone 15N",
        "2 \u00d7 2 metre",
        "860 nm, 650 nm and 550 nm in red, green and blue",
        "1 min 05 s",
        "3.0\u00a0GiB",
        "torch",
        "0.2051\u00a0\u00b1\u00a00.0123",
        "not a probability sample of the map",
        "Fewer than two test pixels were mapped as water",
        "80.0\u00a0% \u00b1 10.0\u00a0%",
        "94.7\u00a0%",  # F1 of the first class: 2 * 1110 / (1234 + 1110)
    ):
        assert shown in text
    assert "None" not in text
    unscored = text[text.index('class="name">water</th><td>6</td><td>0</td>') :]
    assert re.findall(r"<td>(\S*?)(?:<span|</td>)", unscored)[2:5] == ["\u2013"] * 3, "nothing scores it"
    assert text.count('<th scope="row" class="name">reduce</th>') == 1
    assert '<th scope="row" class="name">report</th>' not in text


def test_the_page_needs_no_network(run_dir: Path, scene: Scene) -> None:
    text = write_report(run_dir, scene).read_text()
    page = _Page(text)
    outside = [uri for uri in page.references if not uri.startswith("#")]
    assert all(uri.startswith("data:image/png;base64,") for uri in outside)
    assert {uri[1:] for uri in page.references if uri.startswith("#")} <= set(page.ids)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_names_and_commands_are_escaped(run_dir: Path, scene: Scene) -> None:
    text = write_report(run_dir, scene).read_text()
    assert "roof &lt;old&gt; &amp; new" in text
    assert "<old>" not in text
    assert "python pipeline/run.py s3://city &amp; co/scene" in text


def test_the_map_picture_has_the_class_colours(run_dir: Path, scene: Scene) -> None:
    images = _Page(write_report(run_dir, scene).read_text()).images
    found = _png(images[1])
    assert found.shape == (24, 40, 4)
    assert found[0, 0, 3] == 0
    assert found[1, 0].tolist() == [204, 0, 0, 255]
    assert found[1, 39].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        (["metrics.json"], {"Accuracy by class", "Confusion matrix"}),
        (["features.zarr"], {"Training and test pixels"}),
        (["map.zarr"], {"Scene and map", "How sure the map is", "Area by class"}),
        (["areas.json"], {"Area by class"}),
        (["stages.json"], {"Time and resources"}),
        (["pretrain/history.json"], set()),
        (["pretrain/history.json", "classifier/history.json"], {"Training"}),
        (["run.json"], set()),
    ],
)
def test_missing_pieces_leave_their_section_out(
    run_dir: Path, scene: Scene, missing: list[str], gone: set[str]
) -> None:
    for name in missing:
        (run_dir / name).rename(run_dir / f"{name.replace('/', '_')}.away")
    found = set(_Page(write_report(run_dir, scene).read_text()).headings)
    assert set(SECTIONS) - found == gone


def test_a_bare_run_still_shows_its_scene(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "plain")
    (tmp_path / "run").mkdir()
    text = write_report(tmp_path / "run", scene).read_text()
    assert _Page(text).headings == ["Scene", "How to repeat this run"]
    assert "band 4, band 3 and band 2 in red, green and blue" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


def test_an_unfinished_page_does_not_replace_the_old_one(
    run_dir: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(run_dir, scene)
    before = path.read_text()
    (run_dir / "run.json").write_text(json.dumps({"command": "another"}))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.storage.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run_dir, scene)
    assert path.read_text() == before


def test_the_calibration_is_shown(run_dir: Path, scene: Scene) -> None:
    known = METRICS | {"ece": 0.0214, "reliability": [[0.4, 0.5, 10], [0.9, 0.88, 1224]]}
    (run_dir / "metrics.json").write_text(json.dumps(known))
    write_report(run_dir, scene)
    page = (run_dir / "report.html").read_text()
    assert "<b>0.021</b><span>calibration error" in page
    assert 'alt="Reliability' in page


def test_sets_of_classes_are_told(run_dir: Path, scene: Scene) -> None:
    assert "Sets of likely classes" not in write_report(run_dir, scene).read_text()
    sets = {"level": 0.95, "threshold": 0.84, "coverage": 0.961, "mean_size": 1.234, "single": 0.8}
    for threshold, told in (
        (0.84, "1.23 classes on average"),
        (0.0, "would hold one class each"),
        (1.0, "Too few training pixels were held out"),
    ):
        known = METRICS | {"sets": sets | {"threshold": threshold}}
        (run_dir / "metrics.json").write_text(json.dumps(known))
        assert told in write_report(run_dir, scene).read_text()


def test_mixing_weights_are_shown(run_dir: Path, scene: Scene) -> None:
    mixing = {"timesteps": [50, 300], "stages": [1, 3, 5], "weights": [[0.3, 0.2, 0.0], [0.1, 0.3, 0.1]]}
    assert "timestep" not in write_report(run_dir, scene).read_text()
    (run_dir / "metrics.json").write_text(json.dumps(METRICS | {"mixing": mixing}))
    assert "learned weight of each timestep and decoder stage" in write_report(run_dir, scene).read_text()
