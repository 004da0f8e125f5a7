"""Stage `report`: one self-contained page about a run, made from the files of its run folder."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyproj
import zarr

from pipeline import report_images as images
from pipeline import storage
from pipeline.areas import read_areas, write_areas
from pipeline.artifacts import RunFolder, read_json
from pipeline.export import class_image, class_table
from pipeline.overviews import layer, thumbnail
from pipeline.polygons import write_polygons
from pipeline.progress import peak_rss
from pipeline.report_images import Quicklook
from pipeline.report_text import (
    Context,
    area,
    area_digits,
    areas_meaning,
    duration,
    map_meaning,
    number,
    percent,
    sets_meaning,
    size,
    split_meaning,
    unlabelled_meaning,
    unscored_meaning,
)
from pipeline.scene import Scene
from pipeline.stac import write_item

MAX_SIDE = 1000  # pixels of a picture


def run(folder: RunFolder, scene: Scene, polygons_min_px: int | None = None) -> dict[str, Any]:
    """Write the areas, the polygons if asked for, the page and the STAC item; returns what was measured."""
    begun = time.monotonic()
    write_areas(folder, scene)
    group = zarr.open_group(str(folder.map), mode="r", use_consolidated=False)
    written = [folder.path / "areas.json"]
    if polygons_min_px is not None:
        written.append(folder.path / "map.gpkg")
        counts = write_polygons(folder.map, scene, written[-1], polygons_min_px)
        if counts["left_out"]:
            print(
                f"note: {written[-1].name} leaves out {counts['left_out']} patches below {polygons_min_px} "
                f"pixels that no other touches, {counts['left_out_pixels']} pixels in all",
                file=sys.stderr,
            )
    written += [write_report(folder.path, scene), write_item(folder, scene, class_table(group))]
    return {
        "pixels": scene.height * scene.width, "bytes_read": layer(group, "class").nbytes,
        "bytes_written": sum(path.stat().st_size for path in written),
        "peak_rss_bytes": peak_rss(), "wall_s": time.monotonic() - begun,
    }  # fmt: skip


def write_report(run_dir: Path, scene: Scene) -> Path:
    """Write report.html from what a run folder holds, and return its path.

    What is missing (scores without labels, curves of a run that trained nothing) is left out.

    Args:
        run_dir: The run folder.
        scene: The scene that was mapped.
    """
    folder = RunFolder(run_dir)
    run: Context = _json(folder.run, {})
    look = images.quicklook(scene, folder.reduced, MAX_SIDE)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, size=size, duration=duration, area=area)
    page = environment.get_template("report.html").render(
        name=Path(scene.url.rstrip("/")).name.removesuffix(".zarr"),
        scene=_scene_facts(scene),
        wide=scene.width > 2 * scene.height,
        made=time.strftime("%d %B %Y", time.gmtime()),
        look={"uri": images.data_uri(images.with_alpha(look.rgb, look.valid)), "of": look.caption},
        map=_map(folder),
        metrics=_metrics(folder),
        split=_split(folder, look),
        curves=_curves(folder),
        areas=_areas(folder),
        stages=_stages(folder),
        total_s=sum(record.get("wall_s", 0.0) for record in folder.records().values()),
        command=_command(run.get("command", "")),
        versions=run.get("versions", {}),
        seed=run.get("seed"),
        config=json.dumps(run["config"], indent=2) if "config" in run else "",
    )
    path = run_dir / "report.html"
    with storage.whole(path) as file:
        file.write_text(page, encoding="utf-8")
    return path


def _json(path: Path, otherwise: Any) -> Any:
    return read_json(path) if path.exists() else otherwise


def _command(command: str | list[str]) -> str:
    return command if isinstance(command, str) else " ".join(command)


def _scene_facts(scene: Scene) -> dict[str, str]:
    facts = {
        "Scene": scene.url,
        "Size": f"{number(scene.height)} \u00d7 {number(scene.width)} pixels, {scene.bands} bands",
    }
    if scene.wavelength_nm:
        low, high = min(scene.wavelength_nm), max(scene.wavelength_nm)
        facts["Wavelengths"] = f"{low:.0f} to {high:.0f} nm"
    if scene.crs_wkt:
        crs = pyproj.CRS.from_wkt(scene.crs_wkt)
        facts["CRS"] = crs.name
        if scene.transform:
            a, b, _, d, e, _ = scene.transform
            unit = crs.axis_info[0].unit_name if crs.axis_info else ""
            facts["Pixel"] = f"{math.hypot(a, d):g} \u00d7 {math.hypot(b, e):g} {unit}"
    return facts


def _map(folder: RunFolder) -> Context | None:
    if not folder.map.exists():
        return None
    group = zarr.open_group(str(folder.map), mode="r", use_consolidated=False)
    table = class_table(group)
    codes, _ = thumbnail(group, "class", MAX_SIDE)
    most = math.log(max(2, len(table.codes)))
    scales = [
        ("Confidence", "confidence", 1.0, "1", "viridis", "probability of the class shown"),
        ("Uncertainty", "entropy", most, f"ln {len(table.codes)} = {most:.2f}", "magma",
         "entropy of the class probabilities in nats; the highest stands for all classes alike"),
    ]  # fmt: skip
    return {
        "uri": images.data_uri(class_image(codes, table)),
        "legend": list(zip(table.names, table.colors, strict=True)),
        "scales": [
            {
                "title": title,
                "uri": images.data_uri(
                    images.scale_image(thumbnail(group, name, MAX_SIDE)[0], 0.0, high, colormap)
                ),
                "gradient": images.gradient(colormap),
                "high": label,
                "of": of,
            }
            for title, name, high, label, colormap, of in scales
        ],
    }


def _metrics(folder: RunFolder) -> Context | None:
    if not folder.metrics.exists():
        return None
    metrics: Context = read_json(folder.metrics)
    split = metrics["split"]
    drawn = (
        f"{number(split['train_per_class'])} pixels of each class train"
        if "train_per_class" in split
        else f"{percent(split['train_fraction'])} of each class train"
    )
    counts = np.asarray(metrics["confusion"])
    rows = [[{"count": count, "share": count / max(1, sum(row))} for count in row] for row in counts.tolist()]
    mapped, true, right = counts.sum(axis=0), counts.sum(axis=1), np.diag(counts)
    users = [right[k] / mapped[k] if mapped[k] and true[k] else None for k in range(len(counts))]
    f1 = [2 * right[k] / (mapped[k] + true[k]) if true[k] else None for k in range(len(counts))]
    per_class = [
        entry | {"users": u, "f1": f} for entry, u, f in zip(metrics["per_class"], users, f1, strict=True)
    ]
    described = (split["protocol"], drawn, f"guard {split.get('guard_px', 0)} px")
    meanings = (split_meaning, unlabelled_meaning, unscored_meaning, map_meaning)
    return metrics | {
        "meaning": " ".join(filter(None, (meaning(metrics) for meaning in meanings))),
        "told_sets": sets_meaning(metrics),
        "drawn": ", ".join([*described, f"seed {split.get('seed', 0)}"]),
        "per_class": per_class,
        "rows": list(zip(per_class, rows, strict=True)),
    }


def _areas(folder: RunFolder) -> Context | None:
    """Return the areas with their classes' colours; None before they are known."""
    areas = read_areas(folder.path)
    if areas is None or not folder.map.exists():
        return None
    table = class_table(zarr.open_group(str(folder.map), mode="r", use_consolidated=False))
    colors = dict(zip(table.codes, table.colors, strict=True))
    classes = [entry | {"color": colors.get(entry["code"], "none")} for entry in areas["classes"]]
    return areas | {
        "classes": classes,
        "adjusted": "overall_accuracy" in areas,
        "digits": 0 if areas["surface"] is None else area_digits(areas["total"]),
        "told": areas_meaning(areas, _json(folder.metrics, None)),
    }


def _split(folder: RunFolder, look: Quicklook) -> Context | None:
    if not folder.features.exists():
        return None
    group = zarr.open_group(str(folder.features), mode="r", use_consolidated=False)
    if "split" not in group:
        return None
    y, x, split = (np.asarray(layer(group, name)[:]) for name in ("y_index", "x_index", "split"))
    legend = (("training (drawn larger)", images.TRAIN_COLOR), ("test", images.TEST_COLOR))
    return {
        "uri": images.data_uri(images.split_image(look, y, x, split)),
        "legend": legend,
    }


def _curves(folder: RunFolder) -> list[dict[str, str]]:
    pretraining = _json(folder.pretrain / "history.json", [])
    classifier = _json(folder.classifier / "history.json", [])
    curves = []
    if pretraining:
        title = "Pretraining: diffusion loss"
        curves.append({"title": title, "uri": images.pretraining_curve(pretraining)})
    if classifier:
        title = "Classifier: every member of the ensemble"
        curves.append({"title": title, "uri": images.classifier_curves(classifier)})
    metrics = _json(folder.metrics, {})
    if "mixing" in metrics:
        title = "Hyperfeatures: learned weight of each timestep and decoder stage, percent"
        curves.append({"title": title, "uri": images.mixing_map(metrics["mixing"])})
    reliability = metrics.get("reliability")
    if reliability:
        title = "Reliability: share of test pixels that is right, by confidence; the line is perfect"
        curves.append({"title": title, "uri": images.reliability_curve(reliability)})
    return curves


def _stages(folder: RunFolder) -> list[Context]:
    """Return the records of finished stages; the report itself is still running."""
    keys = ("wall_s", "pixels", "pixels_per_s", "bytes_read", "bytes_written", "peak_rss_bytes")
    return [
        {"name": name, "status": record.get("status", ""), **{k: record.get(k) for k in keys}}
        for name, record in folder.records().items()
        if name != "report"
    ]
