"""The report in a real browser: no console message, no request, nothing too wide, axe finds nothing.

Needs Debian's chromium (or google-chrome) and the packages playwright and axe-playwright-python;
skips without.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import write_report
from pipeline.scene import Scene
from tests import test_report

playwright = pytest.importorskip("playwright.sync_api")
axe_core = pytest.importorskip("axe_playwright_python.sync_playwright")

run_dir, scene = test_report.run_dir, test_report.scene  # fixtures: a run with everything
SCREENS = {"phone": (360, 740), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium and no google-chrome on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, path: Path, screen: str, scheme: str) -> tuple[Any, list[str]]:
    """Return the page and what it said or asked for."""
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url[:60]))
    page.goto(path.as_uri())
    return page, [entry for entry in seen if not entry.startswith(("file://", "data:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_report_on_a_screen(
    browser: Any,
    run_dir: Path,
    scene: Scene,
    screen: str,
    scheme: str,
) -> None:
    page, said = open_page(browser, write_report(run_dir, scene), screen, scheme)
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(19, 23, 28)")
    found = axe_core.Axe().run(page).response["violations"]
    assert [(entry["id"], entry["nodes"][0]["html"][:200]) for entry in found] == []
    page.close()


def test_the_report_on_paper(browser: Any, run_dir: Path, scene: Scene) -> None:
    """Dark screens print on white, and nothing is cut off."""
    page, _ = open_page(browser, write_report(run_dir, scene), "desktop", "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_axe_would_find_something(browser: Any, run_dir: Path, scene: Scene) -> None:
    """The check can fail: a picture without a text is found."""
    path = write_report(run_dir, scene)
    path.write_text(path.read_text().replace('alt="Map of the classes"', ""))
    page, _ = open_page(browser, path, "desktop", "light")
    assert [entry["id"] for entry in axe_core.Axe().run(page).response["violations"]] == ["image-alt"]
    page.close()
