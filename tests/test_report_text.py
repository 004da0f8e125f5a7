"""The report's words: numbers for people, and what a split means."""

from typing import Any

import pytest

from pipeline.report_text import (
    area,
    area_digits,
    duration,
    map_meaning,
    number,
    percent,
    size,
    split_meaning,
    unlabelled_meaning,
    unscored_meaning,
)


def test_sentences_about_the_split() -> None:
    def meaning(overlap: float | None, **split: Any) -> str:
        scores = {} if overlap is None else {"overlap": overlap}
        return split_meaning({"split": split} | scores)

    assert "optimistic" in meaning(0.5, protocol="random")
    assert "50.0\u00a0%" in meaning(0.5, protocol="random")
    apart = meaning(0.0, protocol="blocks", guard_px=8)
    assert "at least 9 pixels apart" in apart
    assert "No test pixel has a training pixel" in apart
    assert "optimistic" not in apart
    assert "widen the guard" in meaning(0.1, protocol="blocks", guard_px=0)
    assert meaning(None, protocol="blocks").endswith("different blocks of the scene.")


def test_what_learnt_without_labels() -> None:
    assert "nothing of the blocks" in unlabelled_meaning({"split": {"inductive": True}})
    assert "the whole scene" in unlabelled_meaning({"split": {"inductive": False}})
    assert unlabelled_meaning({"split": {}}) == "", "metrics of an earlier version do not say"


def test_classes_without_test_pixels_are_named() -> None:
    rows = [{"name": "road", "n_test": 3}, {"name": "water", "n_test": 0}, {"name": "sand", "n_test": 0}]
    assert "left for water, sand:" in unscored_meaning({"per_class": rows})
    assert unscored_meaning({"per_class": rows[:1]}) == ""


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.98765), "98.8\u00a0%"),
        (percent(0.0), "0.0\u00a0%"),
        (percent(None), "\u2013"),
        (percent(float("nan")), "\u2013"),
        (number(1234567), "1\u202f234\u202f567"),
        (number(0), "0"),
        (number(None), "\u2013"),
        (size(0), "0\u00a0B"),
        (size(1023), "1023\u00a0B"),
        (size(1536), "1.5\u00a0KiB"),
        (size(5 * 2**50), "5120.0\u00a0TiB"),
        (size(None), "\u2013"),
        (area(1234.56, area_digits(5000.0)), "1\u202f235"),
        (area(0.5, area_digits(9.83)), "0.500"),
        (area(0.00012, area_digits(0.02)), "0.0001"),
        (area(None, area_digits(0.0)), "\u2013"),
        (duration(4.25), "4.2 s"),
        (duration(59.99), "60.0 s"),
        (duration(125), "2 min 05 s"),
        (duration(7620), "2 h 07 min"),
        (duration(None), "\u2013"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_the_maps_own_accuracy_is_told_where_it_differs() -> None:
    assert map_meaning({"oa": 0.95}) == map_meaning({"oa": 0.95, "map_oa": 0.95}) == ""
    assert "right at 96.0" in map_meaning({"oa": 0.95, "map_oa": 0.96})
    voted = map_meaning({"oa": 0.95, "map_oa": 0.96, "map_ece": 0.0126, "map_oa_pixel": 0.95})
    assert (
        voted.index("supertokens")
        < voted.index("96.0")
        < voted.index("before the vote")
        < voted.index("95.0")
    )
