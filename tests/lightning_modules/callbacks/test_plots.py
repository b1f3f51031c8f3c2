"""The plot of a run, and its contents."""

import matplotlib
import pytest

from lightning_modules.callbacks import plots
from lightning_modules.callbacks.plots import plot_run, read_metrics

NAMES = ["step", "reward", "entropy", "ratio/min", "ratio/max", "clip_ratio/region_mean", "completions/mean_length"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """Plots the given text of a metrics file, and returns the bytes and the panels."""
    kept = []
    close = plots.plt.close
    monkeypatch.setattr(plots.plt, "close", kept.append)

    def plot(text, name="reward.png"):
        (tmp_path / "metrics.csv").write_text(text)
        plot_run(tmp_path / "metrics.csv", tmp_path / name)
        return (tmp_path / name).read_bytes(), kept[-1].axes

    yield plot
    for figure in kept:
        close(figure)


def table(rows, names):
    return "\n".join([",".join(names), *(",".join(str(cell) for cell in row) for row in rows)]) + "\n"


def run_of(steps):
    return [[s, s / 10, 2.0 - s / 100, 0.5, 2.0, 0.1, 18 + s] for s in range(1, steps + 1)]


def test_missing_cells_are_none(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,reward,val/pass@1\n0,,0.25\n1,0.5,\n2,1e-3,0.75\n")
    columns = read_metrics(tmp_path / "metrics.csv")
    assert columns == {"step": [0, 1, 2], "reward": [None, 0.5, 0.001], "val/pass@1": [0.25, None, 0.75]}


@pytest.mark.parametrize("text", ["", "step\n", "step,reward\n"])
def test_a_file_without_rows_has_no_values(tmp_path, plotted, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert not any(read_metrics(tmp_path / "metrics.csv").values())
    picture, _ = plotted(text)
    assert picture.startswith(PNG)


def test_every_panel_says_what_it_shows_in_which_unit(plotted):
    picture, panels = plotted(table(run_of(20), NAMES))
    assert picture.startswith(PNG)
    assert [panel.get_xlabel() for panel in panels] == ["optimizer steps"] * 6
    assert [panel.get_ylabel() for panel in panels] == [
        "mean reward of training completions",
        "held-out pass@1",
        "completion length (tokens)",
        "entropy (nats per token)",
        r"token ratio $r_t$, smallest to largest",
        "fraction of tokens clipped",
    ]
    assert panels[4].get_yscale() == "log"


def test_curves_are_the_columns_and_their_running_mean(plotted):
    _, panels = plotted(table(run_of(20), NAMES))
    raw, smooth = panels[0].lines
    assert list(raw.get_xdata()) == list(range(1, 21))
    assert list(raw.get_ydata()) == [step / 10 for step in range(1, 21)]
    # Of the last fifteen steps, or of as many as there are.
    assert smooth.get_ydata()[0] == pytest.approx(0.1)
    assert smooth.get_ydata()[3] == pytest.approx((1 + 2 + 3 + 4) / 40)
    assert smooth.get_ydata()[19] == pytest.approx(sum(range(6, 21)) / 150)
    assert list(panels[2].lines[0].get_ydata()) == [18 + step for step in range(1, 21)]
    assert panels[3].lines[0].get_ydata()[0] == pytest.approx(1.99)
    assert list(panels[5].lines[0].get_ydata()) == [0.1] * 20


def test_the_band_reaches_from_the_smallest_to_the_largest_ratio(plotted):
    rows = [[step, 0, 0, 1 - step / 10, 1 + step, 0, 1] for step in (1, 2, 3)]
    _, panels = plotted(table(rows, NAMES))
    corners = {(round(x), round(float(y), 6)) for x, y in panels[4].collections[0].get_paths()[0].vertices}
    assert corners == {(1, 0.9), (2, 0.8), (3, 0.7), (1, 2.0), (2, 3.0), (3, 4.0)}


def test_held_out_points_stand_at_their_steps(plotted):
    names = [*NAMES, "val/pass@1_sampled", "val/pass@1_greedy"]
    rows = [[0, *[""] * 6, 0.1, 0.2], *[[*row, "", ""] for row in run_of(2)], [3, *run_of(1)[0][1:], 0.3, 0.5]]
    _, panels = plotted(table(rows, names))
    sampled, greedy = panels[1].lines
    assert (list(sampled.get_xdata()), list(sampled.get_ydata())) == ([0, 3], [0.1, 0.3])
    assert (list(greedy.get_xdata()), list(greedy.get_ydata())) == ([0, 3], [0.2, 0.5])
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == ["sampled", "greedy"]
    assert list(panels[0].lines[0].get_xdata()) == [1, 2, 3]


@pytest.mark.parametrize("measure", ["pass@1", "reward"])
def test_named_held_out_sets_have_a_curve_each_and_single_rewards_none(plotted, measure):
    names = [f"val/{name}{measure}_{kind}" for name in ("easy/", "hard/", "rewards/") for kind in ("sampled", "greedy")]
    _, panels = plotted(table([[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], ["step", *names]))
    shown = [text.get_text() for text in panels[1].get_legend().get_texts()]
    assert shown == ["easy sampled", "hard sampled", "easy greedy", "hard greedy"]
    assert [float(line.get_ydata()[0]) for line in panels[1].lines] == [0.1, 0.3, 0.2, 0.4]
    assert panels[1].get_ylabel() == f"held-out {measure}"


def test_a_flow_matching_run_has_the_points_of_its_ode(plotted):
    names = ["step", "val/reward_ode", "val/mean_length_ode", "val/rewards/near_ode"]
    _, panels = plotted(table([[0, 0.1, 8, 0.3]], names))
    assert [(line.get_label(), float(line.get_ydata()[0])) for line in panels[1].lines] == [("ode", 0.1)]


@pytest.mark.parametrize("names", [NAMES, ["step", "reward"], ["step"]], ids=len)
def test_a_single_row_is_enough(plotted, names):
    picture, panels = plotted(table([row[: len(names)] for row in run_of(1)], names))
    assert picture.startswith(PNG)
    assert len(panels[0].lines) == (2 if "reward" in names else 1)


def test_the_ending_chooses_the_format(plotted):
    picture, _ = plotted(table(run_of(3), NAMES), "reward.svg")
    assert b"<svg" in picture[:500]


def test_metrics_are_closed(tmp_path):
    (tmp_path / "metrics.csv").write_text(table(run_of(3), NAMES))
    open_before = matplotlib.pyplot.get_fignums()
    plot_run(tmp_path / "metrics.csv", tmp_path / "reward.png")
    assert matplotlib.pyplot.get_fignums() == open_before


def test_no_window_is_needed():
    assert matplotlib.get_backend().lower() == "agg"
