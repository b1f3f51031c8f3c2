"""Every metric of the documentation has a reading aid, and every aid a metric."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from lightning_modules.viewer.reading_aids import READING_AIDS, described_metrics

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def documented():
    """Names of metrics in the tables of the page, without those that end in `*`; capitals stand for other names."""
    names = []
    for row in re.findall(r"^\| (`.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        first = ""
        for name in re.findall(r"`([^`]+)`", row):
            # `ratio/quantile_05`, `_50`: what differs from the first name is written alone
            full = re.sub(rf"{re.escape(name[0])}[^{re.escape(name[0])}]*$", name, first) if name[0] in "/_" else name
            first = first or full
            names.append(full)
    return [name for name in names if re.fullmatch(r"[\w/@]+", name) and name != "step"]


def test_every_documented_metric_has_an_aid():
    assert len(documented()) > 50
    missing = [name for name in documented() if not described_metrics([name])]
    assert missing == [], "add it to READING_AIDS"


def test_every_aid_is_for_a_documented_metric():
    text = PAGE.read_text(encoding="utf-8")
    others = [
        aid.name
        for aid in READING_AIDS
        if not any(fnmatchcase(name, aid.name) for name in documented()) and f"`{aid.name}`" not in text
    ]
    assert others == []


def test_aids_are_sentences_and_axes_have_a_symbol():
    for aid in READING_AIDS:
        assert aid.expect == "" or aid.expect.endswith("."), aid.name
        assert len(aid.expect) <= 70, aid.name
        assert aid.symbol or aid.name.endswith("/*"), aid.name


def test_metrics_are_in_the_order_of_the_aids():
    names = ["time/step", "custom", "kl_old", "reward", "rewards/b/mean", "rewards/a/mean"]
    assert [metric.name for metric in described_metrics(names)] == [
        *("reward", "rewards/a/mean", "rewards/b/mean", "kl_old", "time/step")
    ]
    assert described_metrics(["ratio/max"])[0].logarithmic
