"""The built site, opened in headless Chromium: nothing overflows, no formula is cut, every image loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

from tests.browser import Browser, require_chromium

require_chromium()

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("site_probe.js")
# All pages but those of the API, which look alike; of these a few.
PAGES = [*sorted(path.stem for path in (ROOT / "docs").glob("*.md")), "api/index", "api/geometry", "api/rollout_data"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, with the probe in each page."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        script = f"<script>{PROBE.read_text(encoding='utf-8')}</script>"
        page.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile", width=1440, height=1200)
    yield browser
    browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_no_formula_is_cut_and_every_image_loads(name, site, browser):
    stem = name.removesuffix("index").rstrip("/")
    browser.open(site / stem / "index.html", ready="document.documentElement?.dataset.probe", seconds=120)
    found = json.loads(browser.run("document.documentElement.dataset.probe"))
    assert not found["faults"], "\n".join(found["faults"])
    assert found["formulas"] > 40 or name != "theory"
    assert found["pictures"] > 0 or name != "index"
    assert found["plots"] > 20 or name != "recipes"
