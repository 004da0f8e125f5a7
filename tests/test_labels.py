"""Which labelled pixels train and test: those that have data, of classes large enough, told once."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from mtmsd.split import TEST, TRAIN
from pipeline.classify import split_facts
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.labels import hidden_blocks, labelled_split, overlap_of
from pipeline.readers import Reduced
from pipeline.scene import Scene, open_scene, write_scene
from tests.conftest import TINY

HEIGHT, WIDTH = 40, 48


def make(tmp_path: Path, no_data: tuple[slice, slice]) -> tuple[Scene, Reduced]:
    """Three classes, the third of one pixel, and a reduced cube in chunks of 16 with a hole."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:10, :10], labels[20:30, 20:30], labels[35, 40] = 1, 2, 3
    write_scene(tmp_path / "s.zarr", np.ones((3, HEIGHT, WIDTH), np.float32), labels=labels)
    cube = np.ones((2, HEIGHT, WIDTH), np.float32)
    cube[:, *no_data] = np.nan
    group = zarr.open_group(tmp_path / "reduced.zarr", mode="w")
    group.create_array("reduced", data=cube, chunks=(2, 16, 16))
    return open_scene(str(tmp_path / "s.zarr")), Reduced(str(tmp_path / "reduced.zarr"))


def test_pixels_without_data_neither_train_nor_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, reduced = make(tmp_path, (slice(15, 24), slice(10, 33)))
    y, x, label, split = labelled_split(load_config(TINY), scene, reduced)
    assert set(split.tolist()) == {TRAIN, TEST}
    assert (label == 1).sum() == 100
    assert sorted(zip(y[label == 2], x[label == 2], strict=True)) == [
        (row, column) for row in range(24, 30) for column in range(20, 30)
    ]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "left out: 40 labelled pixels without data",
        "left out: classes with fewer than split.min_class = 10 labelled pixels: {3: 1}",
    ]


def test_labels_beside_the_data_are_told(tmp_path: Path) -> None:
    scene, reduced = make(tmp_path, (slice(None), slice(None)))
    with pytest.raises(UserError, match="expected data at the labelled pixels, found none at all 201"):
        labelled_split(load_config(TINY), scene, reduced)


def test_classes_that_nothing_can_test_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In blocks of 12 pixels the first class lies in one, the second in four."""
    scene, reduced = make(tmp_path, (slice(0, 0), slice(0, 0)))
    blocks = ["split.protocol=blocks", "split.block=12"]
    config = load_config(TINY, [*blocks, "split.untested=keep"])
    _, _, label, split = labelled_split(config, scene, reduced)
    assert (set(label[split == TRAIN]), set(label[split == TEST])) == ({1, 2}, {2})
    assert capsys.readouterr().err.splitlines()[-1] == "not scored: no test pixel is left for class [1]"
    with pytest.raises(UserError, match=r"class 1 \(100 pixels in 1 block\)"):
        labelled_split(load_config(TINY, blocks), scene, reduced)


def test_before_any_work_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, _ = make(tmp_path, (slice(0, 0), slice(0, 0)))
    assert len(labelled_split(load_config(TINY), scene)[0]) == 200
    assert capsys.readouterr().err == ""


def test_inductive_splits_are_drawn_before_data_are_looked_for(tmp_path: Path) -> None:
    """What is hidden are the blocks of the split's test pixels, whatever data say."""
    scene, reduced = make(tmp_path, (slice(20, 23), slice(20, 30)))
    config = load_config(TINY, ["split.protocol=blocks", "split.block=5", "split.inductive=true"])
    y, x, label, split = labelled_split(config, scene, reduced)
    assert (label == 2).sum() < 70
    hidden = hidden_blocks(config, scene)
    assert hidden is not None
    inside = hidden.mask(0, HEIGHT, 0, WIDTH)[y, x]
    assert np.array_equal(inside, split == TEST)
    early = labelled_split(config, scene)
    there = ~((early[0] >= 20) & (early[0] < 23))
    for found, before in zip((y, x, label, split), early, strict=True):
        assert np.array_equal(found, before[there])
    assert hidden_blocks(load_config(TINY), scene) is None


def test_an_inductive_split_without_data_is_refused(tmp_path: Path) -> None:
    scene, reduced = make(tmp_path, (slice(20, 30), slice(20, 30)))
    config = load_config(TINY, ["split.protocol=blocks", "split.block=5", "split.inductive=true"])
    with pytest.raises(UserError, match=r"training pixels of class \[2\], found none"):
        labelled_split(config, scene, reduced)


@pytest.mark.parametrize("settings", [(), ("patches.window=96", "patches.stride=72", "patches.blend=8")])
def test_overlap_is_of_the_windows_that_answer(settings: tuple[str, ...]) -> None:
    """A pixel at the edge of its block sees farther to one side than half a window."""
    config = load_config(None, settings)
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 300, (2, 400))
    split = np.where((y + x) % 300 < 60, TRAIN, TEST)
    patches, trained = config.patches, np.zeros((600, 600), bool)
    trained[y[split == TRAIN] + 150, x[split == TRAIN] + 150] = True
    seen = []
    for row, column in zip(y[split == TEST], x[split == TEST], strict=True):
        first = [int(patches.corner(patches.block(np.array(at)))) + 150 for at in (row, column)]
        assert first[0] <= row + 150 < first[0] + patches.side
        window = trained[first[0] : first[0] + patches.side, first[1] : first[1] + patches.side]
        seen.append(window.any())
    assert overlap_of(config, y, x, split) == pytest.approx(np.mean(seen))
    assert 0 < np.mean(seen) < 1


def test_overlap_without_features_is_of_the_classifiers_patch() -> None:
    config = load_config(None, ["classifier.kind=ssftt", "features.spectra=[]", "features.profiles=[]"])
    reach = config.patch // 2
    y, x = np.zeros(3, int), np.array([0, reach, -reach - 1])
    assert overlap_of(config, y, x, np.array([TRAIN, TEST, TEST])) == 0.5


def test_a_split_says_its_share_whatever_it_was_drawn_by() -> None:
    drawn = split_facts(load_config(None, ["split.train_fraction=0.3"]), 25, 75)
    assert (drawn["train_fraction"], "train_per_class" in drawn) == (0.3, False)
    counted = split_facts(load_config(None, ["split.train_per_class=5", "split.seed=9", "seed=2"]), 25, 75)
    assert (counted["train_fraction"], counted["train_per_class"], counted["seed"]) == (0.25, 5, 9)
