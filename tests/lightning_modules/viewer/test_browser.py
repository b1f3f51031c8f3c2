"""The page in headless Chromium: it opens offline, filters, colors agree with numbers, and nothing is hidden."""

import json
import math
import random
import re
import statistics
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from lightning_modules.viewer import Completion, Plot, Quantity, Report, Run, Table, TokenNumbers, write_page
from lightning_modules.viewer.heat_map import color_at, color_bound
from lightning_modules.viewer.reading_aids import described_metrics
from lightning_modules.viewer.view import run_report
from tests.browser import Browser, require_chromium
from tests.lightning_modules.viewer.run_folders import make_run

require_chromium()

PROBE = Path(__file__).with_name("page_probe.js").read_text(encoding="utf-8")
TIMES, MINUS, NO_NUMBER = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{EN DASH}"
HOSTILE = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "{{DATA}} <!-- ${document.title = 'owned'} \u2028 \U0001f600 \ud7ff \0 é",
    "__proto__",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


def page(folder, report):
    """Write a page and return its path."""
    write_page(report, folder / "page.html")
    return folder / "page.html"


def faults(browser):
    """What is wrong with the layout of the page, and errors of the console."""
    return browser.run(PROBE) + browser.errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs that differ in their seed, and one of another objective without token numbers."""
    folder = tmp_path_factory.mktemp("runs")
    other = {"class_path": "aggregate_po.recipes.grpo", "init_args": {"clip_low": 0.2, "clip_high": 0.28}}
    return [
        *(make_run(folder / f"pmpo-seed{seed}", seed) for seed in range(3)),
        make_run(folder / "grpo", 3, tokens=False, model__objective=other),
    ]


@pytest.fixture(scope="module")
def several(runs, tmp_path_factory):
    return page(tmp_path_factory.mktemp("several"), run_report(runs))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["metrics", "completions"])
def test_nothing_is_clipped_overlaps_or_is_hard_to_read(view, theme, several, browser):
    browser.open(f"{several}#{view}", theme)
    assert browser.run("document.documentElement.dataset.theme") == theme
    assert faults(browser) == []
    if view == "completions":
        for name in ("concentration", "log ratio", "clip", "advantage"):
            click(browser, ".segments button", name)
            assert faults(browser) == [], name


def test_it_fits_a_narrow_window(several, browser):
    browser.send("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False)
    try:
        for view in ("metrics", "completions"):
            browser.open(f"{several}#{view}")
            assert faults(browser) == []
    finally:
        browser.send("Emulation.setDeviceMetricsOverride", width=1366, height=768, deviceScaleFactor=1, mobile=False)


def click(browser, selector, text):
    """Click the element with this text."""
    all_found = f"[...document.querySelectorAll({json.dumps(selector)})]"
    browser.run(f"{all_found}.find((each) => each.textContent === {json.dumps(text)}).click()")


def fill(browser, name, value):
    """Enter a value in a filter."""
    browser.run(
        f"(() => {{ const field = document.querySelector('.filters [name={name}]'); field.value = {json.dumps(value)};"
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def count(browser):
    """Number of completions that pass the filters."""
    return int(browser.run("document.querySelector('.count').textContent").split(" of ")[0].replace(",", ""))


def test_the_header_says_what_each_run_is(several, browser):
    browser.open(several)
    names = browser.run("[...document.querySelectorAll('#runs tbody th')].map((cell) => cell.innerText)")
    assert names == ["pmpo-seed0", "pmpo-seed1", "pmpo-seed2", "grpo"]
    text = browser.run("document.getElementById('runs').innerText")
    for fact in ("pmpo(log_clip=0.3)", "grpo(clip_high=0.28, clip_low=0.2)", "AdditionWarmStart", "AdditionProblems"):
        assert fact in text
    for label in ("objective", "model", "data", "seed", "learning rate", "updates per rollout"):
        assert label in text


def test_runs_that_differ_in_their_seed_are_one_line_with_a_band(several, browser):
    browser.open(several)
    assert browser.run("document.querySelectorAll('svg[data-metric=\"reward\"] polyline').length") == 2
    assert browser.run("document.querySelectorAll('svg[data-metric=\"reward\"] polygon').length") == 1
    legend = browser.run("document.querySelector('.cohorts').innerText")
    for text in ("pmpo", "mean of 3 seeds (0, 1, 2)", "band: min to max of the seeds"):
        assert text in legend


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["pmpo-10", "pmpo-11"], "pmpo"),
        (["pmpo-1", "pmpo-10"], "pmpo"),
        (["pmpo-0.1", "pmpo-0.2"], "pmpo"),
        (["long-alpha", "long-alps"], "long"),
        (["pmpo-seed0", "pmpo-seed1"], "pmpo"),
        (["gmpo2-1/run", "gmpo2-2/run"], "gmpo2"),
        (["a", "b"], "a, ..."),
    ],
)
def test_seeds_have_the_whole_words_and_numbers_of_their_names(names, shared, tmp_path, browser):
    runs = [Run(name, cohort="same", steps=[1], metrics={"reward": [1.0]}) for name in names]
    browser.open(page(tmp_path, Report("names", runs)))
    assert browser.run("document.querySelector('.cohorts .entry-name').textContent") == shared


def test_the_values_of_a_step_are_shown_under_the_pointer(several, browser):
    browser.open(several)
    browser.move_to('svg[data-metric="reward"]')
    tip = browser.run("document.getElementById('tip').innerText")
    step = int(tip.split()[1])
    means = browser.run(
        f"""viewer.report.cohorts.map((cohort) => {{
            const values = cohort.runs.map((run) => run.metrics.reward[run.steps.indexOf({step})]);
            return values.reduce((a, b) => a + b) / values.length;
        }})"""
    )
    for mean in means:
        assert shown(mean) in tip
    seeds = browser.run(f"viewer.report.runs.slice(0, 3).map((run) => run.metrics.reward[run.steps.indexOf({step})])")
    assert f"({shown(min(seeds))} to {shown(max(seeds))}, 3 seeds)" in tip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123_457.0, "123,457"),
        (12_345.6, "12,350"),
        (-8_193.0, f"{MINUS}8,193"),
        (1234.5678, "1,235"),
        (0.12347, "0.1235"),
    ],
)
def test_a_number_has_the_digits_that_are_known(value, text, tmp_path, browser):
    run = Run("run", steps=[1], metrics={"num_tokens": [value]})
    browser.open(page(tmp_path, Report("counts", [run], described_metrics(["num_tokens"]))))
    browser.move_to('svg[data-metric="num_tokens"]')
    assert browser.run("document.querySelector('#tip dd').textContent") == text


def test_the_band_can_be_a_standard_error(several, browser):
    browser.open(several)
    choose(browser, "Band around", "error")
    browser.move_to('svg[data-metric="reward"]')
    tip = browser.run("document.getElementById('tip').innerText")
    step = int(tip.split()[1])
    seeds = browser.run(f"viewer.report.runs.slice(0, 3).map((run) => run.metrics.reward[run.steps.indexOf({step})])")
    mean, error = statistics.mean(seeds), statistics.stdev(seeds) / math.sqrt(3)
    assert f"({shown(mean - error)} to {shown(mean + error)}, 3 seeds)" in tip
    edges = browser.run(
        "document.querySelector('svg[data-metric=\"reward\"] polygon').getAttribute('points').split(' ').length"
    )
    assert edges == 2 * 40


def test_many_metrics_without_a_description_are_shown_when_they_are_asked_for(tmp_path, browser):
    metrics = {"reward": [1.0, 2.0]} | {f"mine/{number}": [1.0, 2.0] for number in range(20)}
    run = Run("run", steps=[1, 2], metrics=metrics)
    browser.open(page(tmp_path, Report("many", [run], described_metrics(metrics))))
    charts = "[...document.querySelectorAll('svg[data-metric]')].map((chart) => chart.dataset.metric)"
    assert browser.run(charts) == ["reward"]
    assert "Other metrics 20 metrics" in browser.run("document.querySelector('.sections').innerText")
    browser.run("document.querySelector('.section:last-child summary').click()")
    browser.wait_for(f"{charts}.length === 21", 5)
    assert faults(browser) == []
    find = "document.querySelector('.metric-filter')"
    browser.run(f"{find}.value = 'E/1'; {find}.dispatchEvent(new Event('input'))")
    assert browser.run(charts) == ["mine/1", *(f"mine/{number}" for number in range(10, 20))]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.22, 1.0], ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([1.0, 2.3], ["1.0", "1.5", "2.0", "2.5"]),
        ([1e-3, 1e8], ["0.001", "1", "1,000", "1e6", "1e9"]),
        ([2.0, 2.0], ["0", "1", "2", "3", "4"]),
    ],
)
def test_a_logarithmic_axis_has_ticks_around_the_values(values, ticks, tmp_path, browser):
    run = Run("run", steps=[1, 2], metrics={"ratio/max": values})
    browser.open(page(tmp_path, Report("ratios", [run], described_metrics(["ratio/max"]))))
    labels = "[...document.querySelectorAll('svg .tick[text-anchor=end]')].map((tick) => tick.textContent)"
    assert browser.run(labels) == ticks
    assert faults(browser) == []


def test_a_logarithmic_axis_has_zero_at_its_lower_end_and_in_its_means(tmp_path, browser):
    """The gradient norm is 0 in a step without trained tokens, which its mean has to count."""
    run = Run("run", steps=[1, 2, 3], metrics={"grad_norm": [0.5, 0.0, 1.0]})
    browser.open(page(tmp_path, Report("zero", [run], described_metrics(["grad_norm"]))))
    line = "document.querySelector('svg[data-metric] polyline').getAttribute('points')"
    first, zero, last = (float(point.split(",")[1]) for point in browser.run(line).split())
    lowest = (
        "Math.max(...[...document.querySelectorAll('svg[data-metric] .rule')].map((rule) => rule.getAttribute('y1')))"
    )
    assert last < first < zero
    assert zero >= browser.run(lowest) - 0.05
    browser.move_to('svg[data-metric="grad_norm"]')
    assert "step 2 run 0" in " ".join(browser.run("document.getElementById('tip').innerText").split())
    choose(browser, "Smoothing", "10")
    browser.move_to('svg[data-metric="grad_norm"]')
    assert "step 2 run 0.25" in " ".join(browser.run("document.getElementById('tip').innerText").split())
    assert faults(browser) == []


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, 0.0]])
def test_a_logarithmic_axis_without_positive_values_is_linear(values, tmp_path, browser):
    run = Run("run", steps=[1, 2], metrics={"grad_norm": values})
    browser.open(page(tmp_path, Report("none", [run], described_metrics(["grad_norm"]))))
    assert "NaN" not in browser.run("document.querySelector('svg[data-metric]').outerHTML")
    assert faults(browser) == []


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.005], [0.0, 3.0, 3.0], [-0.5, 1.0, 1.01]])
def test_values_that_lie_close_together_and_zero_are_within_the_chart(values, tmp_path, browser):
    run = Run("run", steps=[1, 2, 3], metrics={"grad_norm": values})
    browser.open(page(tmp_path, Report("close", [run], described_metrics(["grad_norm"]))))
    line = "document.querySelector('svg[data-metric] polyline').getAttribute('points')"
    heights = [float(point.split(",")[1]) for point in browser.run(line).split()]
    rules = browser.run(
        "[...document.querySelectorAll('svg[data-metric] .rule')].map((rule) => rule.getAttribute('y1'))"
    )
    top, bottom = min(map(float, rules)), max(map(float, rules))
    assert all(top - 0.1 <= height <= bottom + 0.1 for height in heights)
    assert heights[0] > heights[1] + 50
    assert faults(browser) == []


def choose(browser, label, value):
    """Choose a value of the menu whose label begins so."""
    menu = f"document.querySelector({json.dumps(f'select[aria-label^={json.dumps(label)}]')})"
    browser.run(f"{menu}.value = {json.dumps(value)}; {menu}.dispatchEvent(new Event('change'))")


def shown(number):
    """A number as the page shows it."""
    text = f"{number:.4g}" if abs(number) >= 1e-4 else f"{number:.2e}".replace("e-0", "e-")
    return re.sub(r"(\.\d*?)0+(?=e|$)", r"\1", text).replace("-", MINUS)


def test_lines_can_be_smoothed(several, browser):
    browser.open(several)
    choose(browser, "Smoothing", "10")
    browser.move_to('svg[data-metric="custom/of_a_user"]')
    tip = browser.run("document.getElementById('tip').innerText")
    step = int(tip.split()[1])
    values = browser.run("[...viewer.report.runs[3].metrics['custom/of_a_user']]")[step - 9 : step + 1]
    assert shown(sum(values) / 10) in tip
    assert faults(browser) == []


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("text", "WHAT IS 41", lambda one: one.group == 1),
        ("run", "3", lambda one: one.run == 3),
        ("stepFrom", "5", lambda one: one.step >= 5),
        ("stepTo", "5", lambda one: one.step <= 5),
        ("group", "1", lambda one: one.group == 1),
        ("rewardFrom", "0.7", lambda one: one.reward >= 0.7),
        ("rewardTo", "0.7", lambda one: one.reward <= 0.7),
    ],
)
def test_filters_change_the_list(name, value, passes, runs, several, browser):
    completions = run_report(runs).completions
    browser.open(f"{several}#completions")
    assert count(browser) == len(completions)
    fill(browser, name, value)
    assert count(browser) == sum(map(passes, completions)) not in (0, len(completions))
    click(browser, ".list-head button", "clear filters")
    assert count(browser) == len(completions)


def test_a_filter_that_nothing_passes_says_so(several, browser):
    browser.open(f"{several}#completions")
    fill(browser, "text", "no such text")
    assert count(browser) == 0
    assert "No completion passes the filters." in browser.run("document.querySelector('.detail').innerText")


def test_completions_are_sorted(several, browser):
    browser.open(f"{several}#completions")
    fill(browser, "sort", "reward")
    shown = browser.run("[...document.querySelectorAll('.row .reward')].map((each) => Number(each.textContent))")
    assert shown[:5] == sorted(shown, reverse=True)[:5] == [1.0] * 5


def test_arrow_keys_go_through_the_list(several, browser):
    browser.open(f"{several}#completions")
    browser.run("document.querySelector('.list').focus()")
    for _ in range(12):
        for kind in ("keyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key="ArrowDown", code="ArrowDown")
    assert browser.run("document.querySelector('.row[aria-selected=\"true\"]').dataset.index") == "12"
    assert browser.run(
        """(() => { const [row, list] = ['.row[aria-selected="true"]', '.list'].map((each) =>
            document.querySelector(each).getBoundingClientRect());
        return row.top >= list.top - 1 && row.bottom <= list.bottom + 1; })()"""
    )


def heat_map_page(tmp_path):
    """A page of one completion whose numbers are known."""
    quantities = [
        Quantity("weight", "gradient weight"),
        Quantity("share", "concentration", scale="share"),
        Quantity("clip", "clip", scale="sides"),
    ]
    values = {
        "weight": [-0.5, -0.25, 0.0, 0.25, 0.5, math.nan],
        "share": [1 / 6, 1 / 3, 1 / 12, 1 / 6, 1 / 6, 1 / 12],
        "clip": [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    }
    marks = {"clipped": [True, False, False, False, True, False], "untrained": [False] * 5 + [True]}
    numbers = TokenNumbers(2, ["a", " b", "\n", "c", "d", "<e>"], [1, 2, 3, 4, 5, 6], values, marks)
    completion = Completion(0, 1, 0, 0, "prompt", "a b\ncd<e>", 1.0, -0.5, 6, tokens=[numbers])
    return page(tmp_path, Report("known", [Run("run")], [], [completion], quantities))


def colors(browser):
    """Background of each token, as three numbers."""
    texts = browser.run(
        "[...document.querySelectorAll('.heat .token')].map((token) => getComputedStyle(token).backgroundColor)"
    )
    return [[int(part) for part in text[text.index("(") + 1 : -1].split(", ")[:3]] for text in texts]


def test_colors_agree_with_the_numbers_and_the_legend(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    low, half_low, zero, half_high, high, _ = colors(browser)
    # The ends and the middle of the scale, and halfway between them.
    assert (low, zero, high) == ([33, 102, 172], [255, 255, 255], [205, 92, 8])
    assert half_low == pytest.approx([(33 + 255) / 2, (102 + 255) / 2, (172 + 255) / 2], abs=1)
    assert half_high == pytest.approx([(205 + 255) / 2, (92 + 255) / 2, (8 + 255) / 2], abs=1)
    legend = browser.run("[...document.querySelectorAll('.ends span')].map((end) => end.textContent)")
    assert legend == [f"≤ {MINUS}0.5", "0", "≥ 0.5"]
    ramp = browser.run("getComputedStyle(document.querySelector('.ramp .bar')).backgroundImage")
    assert ramp.index("rgb(33, 102, 172)") < ramp.index("rgb(255, 255, 255)") < ramp.index("rgb(205, 92, 8)")


def test_a_share_is_colored_by_its_multiple_of_an_equal_share(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    click(browser, ".segments button", "concentration")
    equal, double, half, *_ = colors(browser)
    assert (equal, double, half) == ([255, 255, 255], [205, 92, 8], [33, 102, 172])
    legend = browser.run("[...document.querySelectorAll('.ends span')].map((end) => end.textContent)")
    assert legend == [f"≤ 0.5 {TIMES}", "equal share", f"≥ 2 {TIMES}"]


def test_an_equal_share_is_that_of_the_trained_tokens(tmp_path, browser):
    shares = [0.25, 0.5, 0.125, 0.125, math.nan, math.nan, math.nan, math.nan]
    path = share_page(tmp_path, shares, {"untrained": [math.isnan(share) for share in shares]})
    browser.open(path)
    white, orange, blue = [255, 255, 255], [205, 92, 8], [33, 102, 172]
    assert colors(browser)[:4] == [white, orange, blue, blue]
    legend = browser.run("[...document.querySelectorAll('.ends span')].map((end) => end.textContent)")
    assert legend == [f"≤ 0.5 {TIMES}", "equal share", f"≥ 2 {TIMES}"]
    browser.move_to(".heat .token", 0)
    assert f"0.25 (1 {TIMES} equal share)" in browser.run("document.getElementById('tip').innerText")
    choose_range = "document.querySelectorAll('.toolbar select')[0]"
    browser.run(f"{choose_range}.value = 'completion'; {choose_range}.dispatchEvent(new Event('change'))")
    assert colors(browser)[:4] == [white, orange, blue, blue]


def test_negative_shares_have_numbers_and_the_color_of_the_lower_end(tmp_path, browser):
    """As a Lehmer mean of the order 2 gives them."""
    browser.open(share_page(tmp_path, [1.2, -0.1, -0.2, 0.0, 0.1], {}))
    orange, blue = [205, 92, 8], [33, 102, 172]
    assert colors(browser)[:4] == [orange, blue, blue, blue]
    assert browser.run("document.querySelectorAll('.heat .missing').length") == 0
    assert "no number" not in browser.run("document.querySelector('.signs').innerText")
    browser.move_to(".heat .token", 1)
    tip = browser.run("document.getElementById('tip').innerText")
    assert f"{MINUS}0.1 ({MINUS}0.5 {TIMES} equal share)" in tip
    assert faults(browser) == []


def share_page(tmp_path, shares, marks):
    """A page of one completion with these shares."""
    texts = [str(number % 10) for number in range(len(shares))]
    numbers = TokenNumbers(2, texts, (), {"share": shares}, marks)
    completion = Completion(0, 1, 0, 0, "prompt", "".join(texts), tokens=[numbers])
    quantity = Quantity("share", "concentration", scale="share")
    return page(tmp_path, Report("shares", [Run("run")], [], [completion], [quantity]))


def test_clipped_tokens_are_marked_by_more_than_color(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    marks = browser.run(
        "[...document.querySelectorAll('.heat .token')].map((token) => getComputedStyle(token, '::after').content)"
    )
    assert marks == [f'"{TIMES}"', "none", "none", "none", f'"{TIMES}"', "none"]
    assert "clipped" in browser.run("document.querySelector('.signs').innerText")
    click(browser, ".segments button", "clip")
    low, none, *_, high, _ = colors(browser)
    assert (low, none, high) == ([33, 102, 172], [255, 255, 255], [205, 92, 8])


def test_the_numbers_of_a_token_are_shown_under_the_pointer(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    browser.move_to(".heat .token", 1)
    tip = browser.run("document.getElementById('tip').innerText")
    for text in ("·b", "token 2 of 6, id 2", f"{MINUS}0.25", f"0.3333 (2 {TIMES} equal share)"):
        assert text in tip
    browser.move_to(".heat .token", 5)
    tip = browser.run("document.getElementById('tip').innerText")
    for text in ("<e>", "untrained", NO_NUMBER):
        assert text in tip


def test_all_numbers_of_the_tokens_are_in_a_table(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    assert browser.run("document.querySelectorAll('.numbers tr').length") == 0
    browser.run("document.querySelector('.numbers summary').click()")
    browser.wait_for("document.querySelectorAll('.numbers tbody tr').length === 6", 5)
    rows = "[...document.querySelectorAll('.numbers tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"
    head, *_, fifth, last = browser.run(rows)
    assert head == ["position", "token", "gradient weight", "concentration", "marks"]
    assert fifth == ["5", "d", "0.5", "0.1667", "clipped"]
    assert last == ["6", "<e>", NO_NUMBER, "0.08333", "untrained"]
    assert faults(browser) == []


def test_text_in_tokens_is_shown_as_it_is(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    assert browser.run("document.querySelector('.heat').textContent") == "a·b⏎\ncd<e>"


def test_text_of_completions_is_data(tmp_path, browser):
    run = make_run(tmp_path / "run</script><b>", texts=HOSTILE, data__reward="<b>reward</b>")
    browser.open(f"{page(tmp_path, run_report([run]))}#completions")
    assert "owned" not in browser.run("document.title")
    assert browser.run("document.querySelectorAll('main script, main b, main img').length") == 0
    texts = browser.run("[...viewer.report.completions.text]")
    assert set(texts) == set(HOSTILE)
    for text in HOSTILE:
        fill(browser, "text", text[:12])
        tokens = browser.run("document.querySelector('.heat').textContent")
        assert tokens.replace("·", " ") == text
        assert "owned" not in browser.run("document.title")
    assert faults(browser) == []


def test_a_link_opens_a_completion_and_its_quantity(several, browser):
    browser.open(f"{several}#completions&run=1&step=5&group=1&sample=2&show=log_ratio")
    assert "pmpo-seed1, step 5, group 1, sample 2" in browser.run("document.querySelector('.heading').innerText")
    assert browser.run("document.querySelector('.heat').dataset.quantity") == "log_ratio"
    click(browser, ".segments button", "concentration")
    address = browser.run("location.hash")
    assert address == "#completions&run=1&step=5&group=1&sample=2&show=concentration"
    browser.open(f"{several}{address}")
    assert browser.run("location.hash") == address
    assert browser.run("document.querySelector('.heat').dataset.quantity") == "concentration"


def test_all_completions_of_a_prompt_are_found(runs, several, browser):
    browser.open(f"{several}#completions&step=5&group=1&sample=2")
    click(browser, ".prompt button", "find all of its completions")
    assert count(browser) == 4 * len(runs)
    assert browser.run("document.querySelector('.heading h2').textContent").startswith("pmpo-seed0, step 5, group 1")


@pytest.mark.parametrize("prompt", ["<|user|>\nHow many?\n<|assistant|>\n", "one\r\ntwo\rthree"])
def test_a_prompt_with_line_breaks_is_found(prompt, tmp_path, browser):
    """The text field has one line, and the browser takes line breaks out of what is put into it."""
    completions = [Completion(0, 1, group, 0, text, "4") for group, text in enumerate((prompt, "another", prompt))]
    browser.open(f"{page(tmp_path, Report('lines', [Run('run')], [], completions))}#completions")
    click(browser, ".prompt button", "find all of its completions")
    assert count(browser) == 2
    fill(browser, "text", prompt.upper())
    assert count(browser) == 2


def test_the_page_has_the_colors_of_the_picture(tmp_path, browser):
    browser.open(heat_map_page(tmp_path))
    for position in (-2.0, -1.0, -0.37, 0.0, 0.001, 0.5, 1.0):
        assert browser.run(f"viewer.colorAt(Math.max(-1, Math.min(1, {position})))") == list(color_at(position))
    values = [0.001 * number for number in range(-40, 200)]
    bound = browser.run(f"viewer.boundOf({{scale: 'diverging'}}, {values}, [{len(values)}], [0], [0])")
    assert bound == color_bound(values) == pytest.approx(0.197)


def test_five_thousand_completions_open_and_scroll(tmp_path, browser):
    run = make_run(tmp_path / "run", steps=2000, rollouts=range(1, 20 * 40, 20), groups=16, samples=8)
    path = page(tmp_path, run_report([run]))
    assert path.stat().st_size < 8e6
    seconds = browser.open(f"{path}#completions")
    assert seconds < 20  # measured: under 2
    assert count(browser) == 5000 or count(browser) == 40 * 128
    assert browser.run("document.querySelectorAll('.row').length") < 60  # only those in sight exist
    browser.run("document.querySelector('.list').scrollTop = 1e9")
    last = "document.querySelector('.row:last-child').dataset.index"
    browser.wait_for(f"Number({last}) === viewer.report.completions.count - 1", 5)
    fill(browser, "rewardFrom", "1")
    assert 0 < count(browser) < 5000
    assert faults(browser) == []
    seconds = browser.open(f"{path}#metrics")
    assert faults(browser) == []


def extreme_report():
    """A report of many runs with long names, numbers of all sizes, and completions of 0 to 2,000 tokens."""
    generator = random.Random(0)
    steps = range(10_000, 24_000, 7)
    metrics = {
        "reward": [1e-9 * generator.random() for _ in steps],
        "kl_old": [-1e6 * generator.random() for _ in steps],
        "ratio/max": [10 ** generator.uniform(-3, 8) for _ in steps],
        "grad_norm": [math.inf, *[100 * generator.random() for _ in steps][1:]],
        "skipped_steps": [0.0 for _ in steps],
        "exponent/mean": [math.nan for _ in steps],
        "val/pass@1_sampled": [0.5, *[math.nan for _ in steps][1:]],
        f"rewards/{'a_long_name_' * 7}/mean": [generator.gauss(0, 1) for _ in steps],
        "a" * 80: [-1.234e-5 * step for step in steps],
    }
    runs = [
        Run(
            f"an-experiment-with-a-long-name-{number}",
            {"objective": f"{'Long' * 20}(a=1)"},
            steps=steps,
            metrics=metrics,
        )
        for number in range(11)
    ]
    words = [" the", "\n", "\t", " " * 9, "long" * 30, "\N{SNOWMAN}", "\\xe2"]
    quantities = [Quantity(f"weight/{number}", f"weight of objective {number}", "w") for number in range(11)]
    completions = []
    for number, length in enumerate((2000, 0, 1)):
        texts = generator.choices(words, k=length)
        values = {one.name: [generator.gauss(0, 1) ** 3 for _ in texts] for one in quantities}
        tokens = [TokenNumbers(step, texts, (), values, facts={"exponent": "x" * 300}) for step in (3, 4)]
        text = "".join(texts)
        completions.append(
            Completion(number, 10**6, 10**4, 999, "Long. " * 500, text, -1e-12, 1e30, length, tokens=tokens)
        )
    return Report(
        "A title that is longer than the header has room for. " * 5,
        runs,
        described_metrics(metrics),
        completions,
        quantities,
    )


@pytest.mark.parametrize("view", ["metrics", "completions"])
def test_extreme_numbers_names_and_lengths_fit(view, tmp_path, browser):
    browser.open(f"{page(tmp_path, extreme_report())}#{view}")
    assert faults(browser) == []
    if view == "completions":
        for _ in range(3):
            browser.run(
                "document.querySelector('.list').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown' }))"
            )
            assert faults(browser) == []


def test_a_page_of_tables_and_plots(tmp_path, browser):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="80"><rect width="200" height="80"/></svg>'
    table = Table("Clipped", ["objective", "tokens"], [["<b>", 0.123456], ["gmpo", math.inf]], "Two rows.")
    path = page(tmp_path, Report("results", [Run("grpo")], tables=[table], plots=[Plot("A plot", svg)]))
    browser.open(path)
    text = browser.run("document.querySelector('main').innerText")
    for cell in ("<b>", "0.1235", "inf"):
        assert cell in text
    browser.wait_for("document.querySelector('img').naturalWidth === 200")
    assert faults(browser) == []


@pytest.mark.parametrize("missing", ["metrics", "tokens", "completions"])
def test_a_page_without_some_of_its_parts(missing, tmp_path, browser):
    options = {"metrics": {"steps": 0}, "tokens": {"tokens": False}, "completions": {"rollouts": ()}}[missing]
    browser.open(page(tmp_path, run_report([make_run(tmp_path / "run", **options)])))
    tabs = browser.run("document.getElementById('tabs').innerText")
    assert ("Metrics" in tabs, "Completions" in tabs) == (missing != "metrics", missing != "completions")
    note = {"metrics": "no metrics.csv", "tokens": "TokenWeightsFile", "completions": "CompletionsFile"}[missing]
    assert note in browser.run("document.getElementById('notes').innerText")
    assert faults(browser) == []


def test_a_report_of_nothing_says_so(tmp_path, browser):
    browser.open(page(tmp_path, Report("nothing", [])))
    assert "There is nothing to show" in browser.run("document.body.innerText")
    assert faults(browser) == []
