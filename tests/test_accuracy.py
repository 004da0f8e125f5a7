from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks import accuracy, comparison, peers
from benchmarks.accuracy_table import OURS, markdown, shared_tests, summarise, table
from benchmarks.peers import Pixels
from mtmsd.split import TEST, TRAIN
from pipeline.errors import UserError


def pixels_of(label: list[int], split: list[int]) -> Pixels:
    at = np.arange(len(label))
    return Pixels(at, at, np.array(label), np.array(split))


def clusters(per_class: int = 12, seed: int = 0) -> tuple[np.ndarray, Pixels]:
    """Three overlapping classes in two dimensions; the first half of each trains."""
    rng = np.random.default_rng(seed)
    label = np.repeat([2, 5, 9], per_class)
    features = rng.normal(size=(len(label), 2)) + np.stack([label, -label], axis=1) * 0.4
    split = np.tile(np.repeat([TRAIN, TEST], per_class // 2), 3)
    at = np.arange(len(label))
    return features, Pixels(at, at, label, split)


def test_spectra_leave_out_dead_bands_and_fill_gaps() -> None:
    cube = np.array([[[1, 2, 6]], [[np.nan] * 3], [[4, np.nan, 8]]], np.float32)
    pixels = Pixels(np.zeros(2, int), np.array([1, 2]), np.array([1, 2]), np.array([TRAIN, TEST]))
    assert peers.spectra(cube, pixels).tolist() == [[2, 6], [6, 8]]


def test_profiles_remove_what_is_smaller_than_the_disk_and_keep_the_shape_of_the_rest() -> None:
    image = np.zeros((24, 24), np.float32)
    image[3, 3] = 5
    image[12:17, 12:17] = 7
    image[14, 14] = 1
    layers = peers.profiles(image[None])
    assert layers.shape == (1 + 2 * len(peers.RADII), 24, 24)
    assert np.array_equal(layers[0], image)
    opened, closed = layers[1], layers[2]
    assert opened[3, 3] == 0
    assert opened[12, 12] == 7, "reconstruction restores the corner that a disk cuts off"
    assert closed[14, 14] == 7
    assert closed[3, 3] == 5
    assert layers[2 * peers.RADII.index(3) + 1].max() == 0, "no disk of radius 3 fits into 5 x 5"


def test_profiles_of_the_first_components_only_with_no_data_at_the_mean() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 9, 9)).astype(np.float32)
    scores[:, 0, 0] = np.nan
    layers = peers.profiles(scores)
    assert len(layers) == 6 + 2 * len(peers.RADII) * peers.PROFILED
    assert np.isfinite(layers).all()
    assert (layers[:6, 0, 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=40))
def test_folds_hold_out_every_pixel_once_except_lone_ones(labels: list[int]) -> None:
    label = np.array(labels)
    codes, counts = np.unique(label, return_counts=True)
    folds = peers.folds_of(label)
    if counts.max() < 2:
        assert folds == []
        return
    held = np.concatenate([out for _, out in folds])
    assert sorted(held) == np.flatnonzero(np.isin(label, codes[counts > 1])).tolist()
    assert len(folds) == min(peers.MAX_FOLDS, counts[counts > 1].min())
    for fit, out in folds:
        assert sorted([*fit, *out]) == list(range(len(label)))
        assert set(label[fit]) == set(codes), "every class is in every fit"


def test_tuned_svm_equals_plain_standardised_svm_with_the_chosen_setting() -> None:
    features, pixels = clusters()
    tuned = peers.tuned_svm(features, pixels)
    train, test = pixels.split == TRAIN, pixels.split == TEST
    plain = make_pipeline(StandardScaler(), SVC(C=tuned.c, gamma=tuned.gamma_factor / features.shape[1]))
    expected = plain.fit(features[train], pixels.label[train]).predict(features[test])
    assert tuned.predicted.tolist() == expected.tolist()
    assert tuned.folds == 5
    assert tuned.c in peers.C_GRID
    assert tuned.gamma_factor in peers.GAMMA_GRID


def test_tuned_svm_chooses_the_setting_that_cross_validates_best(monkeypatch: Any) -> None:
    """A chessboard needs a narrow kernel: a tiny gamma can only draw a line."""
    rng = np.random.default_rng(1)
    features = rng.uniform(0, 4, (300, 2))
    label = (features.astype(int).sum(axis=1) % 2) + 1
    pixels = pixels_of(label.tolist(), [TRAIN, TEST] * 150)
    monkeypatch.setattr(peers, "GAMMA_GRID", (1e-6, 3.0))
    tuned = peers.tuned_svm(features, pixels)
    assert tuned.gamma_factor == 3.0
    assert (tuned.predicted == label[1::2]).mean() > 0.8


def test_test_labels_and_features_do_not_reach_the_machine() -> None:
    features, pixels = clusters()
    test = pixels.split == TEST
    shuffled = Pixels(pixels.y, pixels.x, np.where(test, 2, pixels.label), pixels.split)
    changed = features.copy()
    changed[np.flatnonzero(test)[1:]] *= 100
    before = peers.tuned_svm(features, pixels)
    assert peers.tuned_svm(features, shuffled).predicted.tolist() == before.predicted.tolist()
    assert peers.tuned_svm(changed, pixels).predicted[0] == before.predicted[0]


def test_tuned_svm_with_one_training_pixel_in_a_class_and_in_every_class() -> None:
    features, pixels = clusters()
    train = np.flatnonzero(pixels.split == TRAIN)
    for lone in ([9], [2, 5, 9]):
        split = pixels.split.copy()
        for code in lone:
            split[train[pixels.label[train] == code][1:]] = TEST
        tuned = peers.tuned_svm(features, Pixels(pixels.y, pixels.x, pixels.label, split))
        assert len(tuned.predicted) == (split == TEST).sum()
        assert (tuned.cv_accuracy is None) == (len(lone) == 3)


def test_predictions_do_not_depend_on_the_block(monkeypatch: Any) -> None:
    features, pixels = clusters()
    whole = peers.tuned_svm(features, pixels).predicted
    monkeypatch.setattr(peers, "_BLOCK", 5)
    assert peers.tuned_svm(features, pixels).predicted.tolist() == whole.tolist()


def test_constant_feature_does_no_harm() -> None:
    features, pixels = clusters()
    wide = np.concatenate([features, np.full((len(features), 1), 3.0)], axis=1)
    assert set(peers.tuned_svm(wide, pixels).predicted) <= {2, 5, 9}


def test_score_by_hand_with_gaps_in_the_codes() -> None:
    pixels = pixels_of([3, 3, 3, 8, 8, 3, 8], [TEST] * 5 + [TRAIN] * 2)
    scores = peers.score(pixels, np.array([3, 3, 8, 8, 8]))
    assert scores["oa"] == pytest.approx(4 / 5)
    assert scores["aa"] == pytest.approx((2 / 3 + 1) / 2)
    chance = (3 * 2 + 2 * 3) / 25
    assert scores["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert scores["per_class"] == pytest.approx([2 / 3, 1])


def test_peer_takes_the_variant_that_cross_validates_better() -> None:
    features, pixels = clusters(40)
    noise = np.random.default_rng(1).normal(size=features.shape)
    assert peers.peer([("signal", features), ("more", features)], pixels)["variant"] == "more", "of equals"
    result = peers.peer([("noise", noise), ("signal", features)], pixels)
    assert result["variant"] == "signal"
    assert result["cv_accuracy"]["signal"] > result["cv_accuracy"]["noise"]
    assert result["oa"] == peers.score(pixels, peers.tuned_svm(features, pixels).predicted)["oa"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=2, max_size=40))
def test_folds_hold_out_a_class_in_a_block_as_one(pixels: list[tuple[int, int]]) -> None:
    label, block = np.array(pixels).T
    folds, places = peers.folds_of(label, block), set(pixels)
    several = {code for code in label.tolist() if sum(code == other for other, _ in places) > 1}
    held = np.concatenate([np.empty(0, int), *(out for _, out in folds)])
    assert sorted(held) == np.flatnonzero(np.isin(label, list(several))).tolist()
    for fit, out in folds:
        assert set(label[fit]) == set(label), "every class is in every fit"
        assert not {pixels[i] for i in fit} & {pixels[i] for i in out}


def test_feature_variants() -> None:
    centre = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    pooled, none = np.arange(30, 36, dtype=np.float32).reshape(2, 3, 1), np.empty((2, 0), np.float32)
    found = dict(peers.feature_variants(centre, pooled, np.array([[20], [21]], np.float32)))
    assert {name: values[1].tolist() for name, values in found.items()} == {
        "all timesteps": [6, 7, 8, 9, 10, 11],
        "all timesteps, pooled": [6, 7, 8, 9, 10, 11, 33, 34, 35],
        "all timesteps, spectra": [6, 7, 8, 9, 10, 11, 21],
        "all timesteps, pooled, spectra": [6, 7, 8, 9, 10, 11, 33, 34, 35, 21],
        "first timestep": [6, 7],
        "first timestep, pooled": [6, 7, 33],
        "first timestep, spectra": [6, 7, 21],
        "first timestep, pooled, spectra": [6, 7, 33, 21],
    }
    assert [name for name, _ in peers.feature_variants(centre[:, :1], pooled[:, :1], none)] == [
        "all timesteps", "all timesteps, pooled",
    ]  # fmt: skip


def run_of(seed: int, ours: float, peer: float, test: str = "") -> dict[str, Any]:
    def scores(value: float) -> dict[str, float]:
        return {"oa": value, "aa": value - 0.1, "kappa": value - 0.2, "seconds": 10 * value}

    return {
        "seed": seed, "n_train": 20 + seed, "n_test": 80, "overlap": 0.5,
        "test_pixels": test or str(seed),
        "split": {"protocol": "blocks", "seed": seed, "guard_px": 12, "train_per_class": 30},
        "methods": {
            OURS: scores(ours) | {"ece": 0.01, "map_s": 20.0 + seed - 1},
            "peer": scores(peer) | ({"map_s": 1.0} if seed else {}),
        },
    }  # fmt: skip


def test_summary_by_hand() -> None:
    summary = summarise([run_of(0, 0.9, 0.8), run_of(1, 0.7, 0.8), run_of(2, 0.8, 0.5)])
    ours, gap = summary["methods"][OURS], summary["ours_minus"]["peer"]
    assert ours["oa"] == {"mean": pytest.approx(0.8), "sd": pytest.approx(0.1)}
    assert ours["aa"]["mean"] == pytest.approx(0.7)
    assert ours["seconds"] == pytest.approx(8)
    assert gap["oa"]["mean"] == pytest.approx(0.1)
    assert gap["oa"]["sd"] == pytest.approx(0.2), "of the pairs 0.1, -0.1, 0.3"
    assert OURS not in summary["ours_minus"]


def test_table_rows_and_a_single_seed_without_deviation() -> None:
    rows = table(summarise([run_of(0, 0.9, 0.8), run_of(1, 0.7, 0.8), run_of(2, 0.8, 0.5)]))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[2] == [OURS, "80.00 ± 10.00", "70.00 ± 10.00", "60.00 ± 10.00", "", "", "", "8.0", "20"]
    assert (cells[3][0], cells[3][-1]) == ("peer", ""), "not known of all its scores"
    assert cells[3][4] == "+10.00 ± 20.00"
    assert "±" not in "".join(table(summarise([run_of(0, 0.9, 0.8)])))


def test_page_names_the_split_and_seeds_that_share_their_test_pixels() -> None:
    runs = [run_of(0, 0.9, 0.8, "a"), run_of(1, 0.7, 0.8, "b"), run_of(2, 0.8, 0.5, "a")]
    assert shared_tests(runs) == [[0, 2]]
    part = {"summary": summarise(runs), "shared_tests": shared_tests(runs), "runs": runs}
    page = markdown("accuracy", {
        "scene": {"name": "field"}, "date": "today", "commit": "abc", "machine": "m", "command": "c",
        "shared": {"seconds": 3.2, "bases": 1}, "protocols": {"blocks": part, "inductive": part},
    })  # fmt: skip
    assert "## Split inductive (30 a class, guard 12 px)" in page
    assert "kept from commits" not in page
    assert "## Split blocks (30 a class, guard 12 px), seeds 0, 1, 2: 20 to 22 training and 80" in page
    assert "overlap 50.0 %" in page
    assert "Seeds 0, 2 test on the same pixels" in page


def test_page_names_the_commits_of_scores_that_were_kept() -> None:
    run = run_of(0, 0.9, 0.8)
    for scores, commit in zip(run["methods"].values(), ("f00", "abc"), strict=True):
        scores["commit"] = commit
    page = markdown("accuracy", {
        "scene": {"name": "field"}, "date": "today", "commit": "f00", "machine": "m", "command": "c",
        "protocols": {"blocks": {"summary": summarise([run]), "shared_tests": [], "runs": [run]}},
    })  # fmt: skip
    assert "- Scores kept from commits abc, f00" in page


def test_overrides_by_protocol() -> None:
    given_ = ["seed=4", "blocks:split.train_per_class=30", "random:split.train_fraction=0.1"]
    assert comparison.overrides_of(given_, None) == ["seed=4"]
    blocks = ["split.protocol=blocks", "seed=4", "split.train_per_class=30"]
    assert comparison.overrides_of(given_, "blocks") == blocks
    few = ["split.protocol=random", "split.train_per_class=10", "seed=4"]
    assert comparison.overrides_of(given_, "few10") == few
    assert comparison.overrides_of([], "guard24") == ["split.protocol=blocks", "split.guard_px=24"]
    shared = "blocks:features.timesteps=[50]"
    for wrong in (
        shared,
        "other:seed=1",
        "split.seed=1",
        "blocks:split.protocol=random",
        "blocks:split.inductive=true",
    ):
        with pytest.raises(UserError, match="--set"):
            comparison.overrides_of([wrong], None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0,x"], "--seeds 0,x"),
        (["--seeds", "1,1"], "--seeds 1,1"),
        (["--protocols", "checkerboard"], "random, few5"),
        (["--set", "blocks:split.blok=3"], "split.block"),
        (["--set", "seed"], "expected section.key=value"),
        ([], "nowhere.zarr"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = accuracy.cli(["--scene", str(tmp_path / "nowhere.zarr"), "--out", str(out), *arguments])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("error: ")
    assert said in last
    assert not out.exists()
