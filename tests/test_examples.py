"""The example notebook does what it says; its code cells run in order in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "classify_from_python.ipynb"
CHECK = """
np.savez({path!r}, codes=result["class"], oa=result.attrs["oa"])
"""


def cells() -> list[dict[str, Any]]:
    found = json.loads(NOTEBOOK.read_text())
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    return list(found["cells"])


def test_the_notebook_is_kept_without_outputs() -> None:
    ids = [cell["id"] for cell in cells()]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) >= 5
    for cell in code:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.long
@pytest.mark.cluster
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Without Jupyter, which the project does not need: the cells' code, one after the other."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code")
    script = tmp_path / "notebook.py"
    script.write_text(code + CHECK.format(path=str(tmp_path / "result.npz")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy on " in done.stdout
    with np.load(tmp_path / "result.npz") as result:
        assert result["codes"].shape == (64, 80)
        assert set(np.unique(result["codes"])) <= {1, 2, 3}
        assert result["oa"] > 0.6, "three classes: chance is about a third"
    assert not list(tmp_path.glob("runs*")), "a temporary run leaves nothing behind"
