"""Boundaries: science without the cluster, imports that point down, files of readable length."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mtmsd", "pipeline", "benchmarks")
STAGES = ("reduce", "pretrain", "extract", "classify", "map", "report")
SCIENCE = {"torch", "numpy", "safetensors", "mtmsd"}
BLOCKED = (
    "ray", "zarr", "xarray", "dask", "rasterio", "rioxarray", "pydantic", "sklearn", "scipy",
)  # fmt: skip
MAX_LINES = 300


def files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it; ``from a import b`` names both."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Return which of our modules each of our modules imports."""
    ours = {module_name(path): path for path in files(*PACKAGES)}
    edges = {}
    for name, path in ours.items():
        direct = imports(path) & ours.keys()
        # ``from package import module`` runs the package's __init__, which imports nothing of ours.
        edges[name] = {target for target in direct if ours[target].name != "__init__.py"} - {name}
    return edges


def path_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_walk_finds_imports(tmp_path: Path) -> None:
    source = tmp_path / "one.py"
    source.write_text("import a.b\ndef f():\n    from c import d\n")
    assert imports(source) == {"a.b", "c", "c.d"}
    assert graph()["pipeline.run"] >= {"pipeline.config", "pipeline.artifacts"}
    assert graph()["mtmsd.classifier"] == {"mtmsd.checks", "mtmsd.fusion"}


def test_science_imports_with_the_cluster_blocked() -> None:
    names = [module_name(path) for path in files("mtmsd")]
    assert len(names) > 10
    code = (
        f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        f"left = [name for name in sys.modules if name.split('.')[0] in {BLOCKED!r}]\n"
        f"assert sorted(left) == sorted({BLOCKED!r}), left\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_workers_that_read_and_write_import_nothing_heavy() -> None:
    """A run on one machine starts dozens of processes; torch alone is two seconds and 150 MiB in each."""
    heavy = ["torch", "dask", "xarray", "matplotlib", "rasterio", "scipy"]
    names = ["pipeline.readers", "pipeline.units", "pipeline.reduction", "pipeline.progress"]
    code = (
        f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", files("mtmsd"), ids=path_id)
def test_science_imports_science_alone(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots - SCIENCE <= sys.stdlib_module_names


@pytest.mark.parametrize("path", files("mtmsd"), ids=path_id)
def test_science_does_not_print(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert "print" not in {func.id for func in calls if isinstance(func, ast.Name)}


def test_init_files_import_nothing_of_ours() -> None:
    for path in files(*PACKAGES):
        if path.name == "__init__.py":
            assert not {name for name in imports(path) if name.split(".")[0] in PACKAGES}, path


def test_stages_are_imported_by_run_alone() -> None:
    stages = {f"pipeline.{stage}" for stage in STAGES}
    assert stages <= graph().keys()
    for name, targets in graph().items():
        if name.startswith("pipeline.") and name != "pipeline.run":
            assert not targets & stages, name


def test_nothing_below_imports_what_stands_above() -> None:
    for name, targets in graph().items():
        roots = {target.split(".")[0] for target in targets}
        if name.startswith("mtmsd"):
            assert roots <= {"mtmsd"}, name
        if name.startswith("pipeline"):
            assert roots <= {"mtmsd", "pipeline"}, name
            assert not targets & {"pipeline.run"}, name


def test_no_import_cycle() -> None:
    left = {name: set(targets) for name, targets in graph().items()}
    while free := [name for name, targets in left.items() if not targets]:
        for name in free:
            del left[name]
        for targets in left.values():
            targets.difference_update(free)
    assert not left, f"a cycle runs through some of {sorted(left)}"


@pytest.mark.parametrize("path", files(*PACKAGES, "tests"), ids=path_id)
def test_imports_are_absolute(path: Path) -> None:
    relative = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


@pytest.mark.parametrize("path", files(*PACKAGES), ids=path_id)
def test_files_are_of_readable_length(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines, at most {MAX_LINES} expected: split the file"
