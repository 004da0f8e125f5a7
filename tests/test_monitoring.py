"""Grafana's dashboard and Prometheus' rules: well formed, and about metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.telemetry import COUNTERS, GAUGES, PREFIX

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "cluster" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
OURS = {f"ray_{PREFIX}{name}_total" for name in COUNTERS} | {f"ray_{PREFIX}{name}" for name in GAUGES}
RAYS = {
    "ray_node_cpu_utilization", "ray_node_gpus_utilization", "ray_node_mem_used_host", "up", "ALERTS",
}  # fmt: skip
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def promtool(*arguments: str) -> str:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool here (Debian: apt-get install prometheus)")
    result = subprocess.run(
        [binary, *arguments], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def metrics(expression: str) -> set[str]:
    """Names in an expression: words that are no function, no label and no keyword."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", expression)
    bare = re.sub(r"\b(by|on|without)\s*\([^)]*\)", " ", bare)
    words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_:]*(?!\s*\()\b", bare))
    return words - {"sum", "unless", "and", "or", "Inf", "rate", "increase", "abs", "label_values"}


def test_names_are_found() -> None:
    assert metrics('sum by (a, b) (rate(x_total{c="d"}[5m])) / y > 0.5 unless z') == {"x_total", "y", "z"}


@pytest.mark.parametrize("expression", list(queries()))
def test_panels_ask_for_metrics_that_there_are(expression: str) -> None:
    assert metrics(expression)
    assert metrics(expression) <= OURS | RAYS | RECORDED


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record", rule.get("alert")))
def test_rules_ask_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    assert metrics(rule["expr"]) <= OURS | RAYS
    if "alert" in rule:
        assert {"summary", "description"} == set(rule["annotations"])


def test_every_metric_of_ours_is_drawn() -> None:
    drawn = set().union(*(metrics(expression) for expression in queries()))
    recorded = set().union(*(metrics(rule["expr"]) for rule in RULES if rule.get("record") in drawn))
    assert OURS - drawn - recorded == {"ray_mtmsd_units_total"}  # seen as units left


def test_the_dashboard_is_well_formed() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for variable in DASHBOARD["templating"]["list"]:  # so says Grafana's schema
        assert "current" not in variable or {"text", "value"} <= set(variable["current"])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == variables
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_rules_pass_promtool() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(MONITORING / "rules.yml"))
    promtool("check", "config", str(MONITORING / "prometheus.yml"))


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "prometheus_rules_test.yml")


def test_panels_parse_as_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": re.sub(r"\$\w+", "x", expression)}
        for i, expression in enumerate(queries())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_the_page_on_operations_names_every_metric_and_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"ray_mtmsd_\w+", page)) == OURS
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    assert set(re.findall(r"^\| `(\w+)` \| (?!what)", page, re.MULTILINE)) >= alerts
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / picture).is_file()
