"""The examples in the docstrings run, and ``import mtmsd`` gives the pieces."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mtmsd

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["mtmsd", *(f"mtmsd.{path.stem}" for path in sorted((ROOT / "mtmsd").glob("[!_]*.py")))]
WITH_EXAMPLES = {
    "mtmsd", "mtmsd.bands", "mtmsd.diffusion", "mtmsd.metrics", "mtmsd.multistage", "mtmsd.purify",
    "mtmsd.spectral", "mtmsd.split", "mtmsd.unet", "mtmsd.windows",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted > 0 or name not in WITH_EXAMPLES


def test_a_wrong_example_is_found() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


def test_every_piece_is_the_modules_own() -> None:
    assert len(mtmsd.__all__) > 40
    for name in mtmsd.__all__:
        piece = getattr(mtmsd, name)
        assert piece.__module__.startswith("mtmsd."), name
        assert piece is getattr(sys.modules[piece.__module__], name)
        assert piece.__doc__, name
    assert set(mtmsd.__all__) <= set(dir(mtmsd))


def test_what_is_no_piece_is_no_attribute() -> None:
    assert not hasattr(mtmsd, "numpy_array")
    with pytest.raises(AttributeError, match=r"module 'mtmsd' has no attribute 'Momentts'"):
        _ = mtmsd.Momentts


def test_import_alone_loads_no_torch() -> None:
    code = "import sys, mtmsd; assert 'torch' not in sys.modules; mtmsd.UNet; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
