"""Means, standard deviations and paired differences over seeds, and their table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import write_json

OURS = "MTMSD (ours)"
SCORES = {"oa": "OA %", "aa": "AA %", "kappa": "kappa x 100"}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics over the runs (seeds) of one protocol.

    Args:
        runs: Each with ``methods``: name -> ``oa``, ``aa``, ``kappa``, ``seconds`` (tuning, training and
            scoring) and ``map_s`` (a million pixels of the map; older scores have none); the first
            method is ours.

    Returns:
        ``methods``: name -> mean and sample standard deviation (None for a single run) of each
        score, mean ``seconds`` and ``map_s``; ``ours_minus``: the same of the differences ours - peer, pair
        by pair on the same split.
    """
    methods: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for name in runs[0]["methods"]:
        methods[name] = {key: _statistics([run["methods"][name][key] for run in runs]) for key in SCORES}
        for key in ("seconds", "map_s"):
            times = [run["methods"][name].get(key) for run in runs]
            methods[name][key] = None if None in times else float(np.mean(times))
        if name != OURS:
            differences[name] = {
                key: _statistics([run["methods"][OURS][key] - run["methods"][name][key] for run in runs])
                for key in SCORES
            }
    return {"methods": methods, "ours_minus": differences}


def _statistics(values: Sequence[float]) -> dict[str, float | None]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": deviation}


def shared_tests(runs: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Seeds that test on the very same pixels, in groups of two or more.

    Small scenes have few ways to part their blocks; such seeds say nothing new about the scene.
    """
    groups: dict[str, list[int]] = {}
    for run in runs:
        groups.setdefault(run["test_pixels"], []).append(run["seed"])
    return [seeds for seeds in groups.values() if len(seeds) > 1]


def table_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One protocol's part of a report."""
    return {"summary": summarise(runs), "shared_tests": shared_tests(runs), "runs": list(runs)}


def publish(name: str, report: dict[str, Any], folder: Path) -> None:
    """Leave ``name``.json and ``name``.md in the folder, each whole or not at all, and print the page."""
    write_json(folder / f"{name}.json", report)
    page = markdown(name, report)
    (folder / f"{name}.md.partial").write_text(page)
    os.replace(folder / f"{name}.md.partial", folder / f"{name}.md")
    print(page)


def markdown(name: str, report: dict[str, Any]) -> str:
    """The whole report as a page of Markdown; without our calibration error where nothing was calibrated."""
    lines = [
        f"# {name.capitalize()} on {report['scene']['name']}",
        "",
        f"- {report['date']}, commit {report['commit']}",
        f"- Machine: {report['machine']}",
        f"- Command: `{report['command']}`",
        "- Test pixels only; mean ± sample standard deviation over seeds; differences are taken "
        "seed by seed on the same pixels.",
    ]
    if shared := report.get("shared"):
        lines.append(
            f"- Reduction, pretraining and features of the labelled pixels: {shared['seconds']:.0f} s "
            f"for {shared['bases']} U-Net{'s' * (shared['bases'] > 1)}"
        )
    if (commits := _commits(report)) not in ([], [report["commit"]]):
        lines.append(f"- Scores kept from commits {', '.join(commits)}")
    for protocol, part in report["protocols"].items():
        lines += ["", f"## {_split_line(protocol, part['runs'])}", "", *table(part["summary"])]
        if report.get("calibrated", True):
            errors = _statistics([run["methods"][OURS]["ece"] for run in part["runs"]])
            lines += [f"\nExpected calibration error of our confidence, x 100: {_cell(errors)}"]
            sets = [run["methods"][OURS].get("sets") for run in part["runs"]]
            if all(sets):
                held, size = (_statistics([one[key] for one in sets]) for key in ("coverage", "mean_size"))
                lines += [f"\nOur sets of classes hold the truth, % of pixels: {_cell(held)}; "
                          f"classes in a set: {size['mean']:.2f}"]  # fmt: skip
        lines += [
            f"\nSeeds {', '.join(map(str, seeds))} test on the same pixels: they count as one draw."
            for seeds in part["shared_tests"]
        ]
    return "\n".join(lines) + "\n"


def _commits(report: dict[str, Any]) -> list[str]:
    """Of the scores, which may be older than the report."""
    runs = [run for part in report["protocols"].values() for run in part["runs"]]
    return sorted({scores.get("commit", "") for run in runs for scores in run["methods"].values()} - {""})


def table(summary: dict[str, Any]) -> list[str]:
    """One row per method; scores and differences times 100, time in seconds."""
    scores = list(SCORES.values())
    heads = ["method", *scores, *(f"ours - it, {name}" for name in scores), "training, s", "map, s / Mpx"]
    rows = []
    for name, values in summary["methods"].items():
        cells = [_cell(values[key]) for key in SCORES]
        gaps = summary["ours_minus"].get(name)
        cells += [_cell(gaps[key], sign=True) if gaps else "" for key in SCORES]
        map_s = values["map_s"]
        rows.append([name, *cells, f"{values['seconds']:.1f}", "" if map_s is None else f"{map_s:.0f}"])
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [heads, rule, *rows]
    ]


def _cell(value: dict[str, float | None], sign: bool = False) -> str:
    mean, deviation = value["mean"], value["sd"]
    shown = f"{100 * (mean or 0.0):{'+' if sign else ''}.2f}"
    return shown if deviation is None else f"{shown} ± {100 * deviation:.2f}"


def _split_line(protocol: str, runs: Sequence[dict[str, Any]]) -> str:
    split = runs[0]["split"]
    share = (
        f"{split['train_per_class']} a class"
        if "train_per_class" in split
        else f"{100 * split['train_fraction']:g} %"
    )
    guard = f", guard {split['guard_px']} px" if split["protocol"] == "blocks" else ""
    seeds = ", ".join(str(run["seed"]) for run in runs)
    overlap = _range([100 * run["overlap"] for run in runs], "{:.1f}")
    return (
        f"Split {protocol} ({share}{guard}), seeds {seeds}: "
        f"{_range([run['n_train'] for run in runs], '{}')} training and "
        f"{_range([run['n_test'] for run in runs], '{}')} test pixels, overlap {overlap} %"
    )


def _range(values: Sequence[float], form: str) -> str:
    least, most = form.format(min(values)), form.format(max(values))
    return least if least == most else f"{least} to {most}"
