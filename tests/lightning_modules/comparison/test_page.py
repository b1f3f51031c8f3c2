"""The page of a comparison in a browser: it opens without errors, and nothing is wider than a laptop."""

import pytest

from lightning_modules.comparison.command import compare_command
from tests.browser import Browser, require_chromium
from tests.lightning_modules.recordings.test_recorder import recorded

require_chromium()

OBJECTIVES = (
    "grpo,grpo(clip_low=0.01, clip_high=0.01),gmpo,gmpo_no_clip,pmpo,hmpo,gspo,cispo,kpo,ctpo,"
    "tests.third_party.lehmer.LehmerMean"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory, model_folder):
    """A browser with the page of eleven objectives."""
    folder = tmp_path_factory.mktemp("page")
    recording = recorded(folder, model_folder).recording.folder
    compare_command([str(recording), f"--objectives={OBJECTIVES}", f"--output={folder / 'comparison'}"])
    browser = Browser(folder / "profile")
    browser.open(folder / "comparison" / "report.html")
    yield browser
    browser.close()


def test_the_page_shows_tables_and_plots(browser):
    text = browser.run("document.body.innerText")
    for heading in ("All optimizer steps", "Gradients of the parameters", "Weight against log ratio", "Overlap of the"):
        assert heading in text
    assert browser.run("[...document.images].length") == 7
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    assert browser.errors == []


def test_the_page_is_not_wider_than_the_window(browser):
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("[...document.images].every(image => image.getBoundingClientRect().right <= window.innerWidth)")


def test_the_completions_have_a_heat_map_for_each_objective(browser):
    tabs = "[...document.querySelectorAll('[role=tab], nav a, nav button, button')]"
    browser.run(f"{tabs}.find(tab => /completions/i.test(tab.textContent)).click()")
    browser.wait_for("document.body.innerText.includes('weight, gmpo_no_clip')")
    text = browser.run("document.body.innerText")
    assert "weight, grpo(clip_low=0.01, clip_high=0.01)" in text
    assert "weight, tests.third_party.lehmer.LehmerMean" in text
    assert browser.errors == []
