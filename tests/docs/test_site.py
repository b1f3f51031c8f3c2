"""The built site, opened in headless Chromium: nothing overflows, no formula is cut, every image loads."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

from tests.browser import CHROMIUM, require_chromium

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


def probed(page, profile):
    """What the probe found in a page that is 1440 pixels wide; the browser gets no network."""
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",  # tests may run as root in a container
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        "--window-size=1440,1200",
        "--virtual-time-budget=30000",
        "--dump-dom",
        page.as_uri(),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'data-probe="([^"]*)"', dumped.stdout)
    assert found, f"the probe did not finish:\n{dumped.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_no_formula_is_cut_and_every_image_loads(name, site, tmp_path):
    stem = name.removesuffix("index").rstrip("/")
    found = probed(site / stem / "index.html", tmp_path / "profile")
    assert not found["faults"], "\n".join(found["faults"])
    assert found["formulas"] > 40 or name != "theory"
    assert found["pictures"] > 0 or name != "index"
    assert found["plots"] > 20 or name != "recipes"
