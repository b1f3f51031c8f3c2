"""Content of a page: runs with their metrics, completions with numbers per token, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["diverging", "share", "sides", "hidden"]


@dataclass(frozen=True)
class Metric:
    """Description of a metric: how its chart is labeled and read.

    Args:
        name: name of the metric, a key of `Run.metrics`.
        section: heading under which its chart is placed; headings are in the order of their first metric.
        symbol: symbol or short name at the vertical axis.
        unit: unit at the vertical axis; empty for none.
        expect: one sentence that says what to expect; empty for none.
        logarithmic: whether the vertical axis is logarithmic; values that are not positive are at its lower end then.
    """

    name: str
    section: str = "Other metrics"
    symbol: str = ""
    unit: str = ""
    expect: str = ""
    logarithmic: bool = False


@dataclass(frozen=True)
class Quantity:
    """Description of a number per token, which the heat map of a completion shows as colors.

    Args:
        name: key of `TokenNumbers.values`.
        label: words for it in the menu.
        symbol: symbol in the legend and next to numbers.
        unit: unit of the numbers; empty for none.
        meaning: one sentence that says what the number is.
        scale: `diverging` colors numbers by sign and size, and leaves 0 uncolored; `share` colors the logarithm of
            the number's multiple of an equal share, 1 / the number of tokens of the completion that are not NaN, and
            leaves an equal share uncolored, with 0 and below at the lower end; `sides` tells -1, 0 and 1 apart;
            `hidden` shows the number of a token under the pointer and has no heat map.
        mark: key of `TokenNumbers.marks` with the tokens that are marked as clipped while this quantity is shown;
            empty for none.
    """

    name: str
    label: str
    symbol: str = ""
    unit: str = ""
    meaning: str = ""
    scale: Scale = "diverging"
    mark: str = "clipped"


@dataclass(frozen=True)
class Run:
    """One run, or anything else that has metrics and completions of its own, such as an objective in a comparison.

    Args:
        name: name, such as that of its folder.
        facts: statements of the header about the run, by label, such as objective, model, data, seed and learning rate.
        seed: value that tells it from the other runs of its cohort; empty for none.
        cohort: runs with the same cohort differ in their seed only, and become one line with a band; when empty, the
            run is a cohort of its own.
        steps: optimizer step of each value of its metrics.
        metrics: values by metric, as many as there are steps, NaN where there is none.
        notes: sentences about what is missing from the run and how to get it.
    """

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    seed: str = ""
    cohort: str = ""
    steps: Sequence[int] = ()
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TokenNumbers:
    """Numbers of the tokens of one completion, in one optimizer step.

    Args:
        step: optimizer step.
        texts: text of each token.
        ids: id of each token in the vocabulary; empty if unknown.
        values: numbers of the tokens by `Quantity.name`, as many as there are tokens; NaN where there is none.
        marks: flags of the tokens by name: `clipped`, `overflow`, `untrained`, or one that a quantity names as its
            `mark`.
        facts: numbers of the completion in this step by label, such as the exponent of its mean.
    """

    step: int
    texts: Sequence[str]
    ids: Sequence[int] = ()
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    marks: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A completion, with the numbers of its tokens where there are any.

    Args:
        run: index of its run in `Report.runs`.
        step: first optimizer step that trains on its rollout.
        group: number of its prompt in the rollout.
        sample: number of the completion in its group.
        prompt: text of the prompt.
        text: text of the completion.
        reward: reward; None without one.
        advantage: advantage, the mean where there is one per token; None without one.
        length: number of tokens; None if unknown.
        facts: other facts, by label.
        tokens: numbers of its tokens, one entry per optimizer step.
    """

    run: int
    step: int
    group: int
    sample: int
    prompt: str
    text: str
    reward: float | None = None
    advantage: float | None = None
    length: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    tokens: Sequence[TokenNumbers] = ()


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        title: heading.
        columns: names of the columns, with units.
        rows: cells by row; numbers, of Python or NumPy, are right-aligned.
        caption: sentences below the heading.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot of a report, as SVG.

    Args:
        title: heading.
        svg: text of the SVG file; it is shown as an image, so that nothing in it can run.
        caption: sentences below the heading.
    """

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """All that a page shows; `page_html` turns it into one HTML file.

    A tab is shown for each kind of content that is there: tables and plots ("Results"), metrics, completions. Texts are
    data: they are shown as they are, whatever they contain.

    Args:
        title: title of the page.
        runs: runs, in the order of their colors.
        metrics: descriptions of metrics, in the order of their charts; a metric of a run without one has a chart under
            "Other metrics".
        completions: completions of all runs.
        quantities: descriptions of the numbers per token, in the order of the menu.
        tables: tables.
        plots: plots.
        notes: sentences for the top of the page, such as what was left out and why.

    Example:
        A comparison of two means on the same data, without metrics:

        >>> from lightning_modules.viewer import Completion, Quantity, Report, Run, Table, TokenNumbers, page_html
        >>> means = ["grpo", "gmpo"]
        >>> quantities = [Quantity(f"weight/{name}", f"weight, {name}", mark=f"clipped/{name}") for name in means]
        >>> values = {"weight/grpo": [0.5, 0.25], "weight/gmpo": [0.4, 0.4]}
        >>> marks = {"clipped/grpo": [False, True], "clipped/gmpo": [False, False]}
        >>> tokens = TokenNumbers(step=1, texts=["1", "2"], values=values, marks=marks)
        >>> completion = Completion(0, 1, 0, 0, prompt="3 * 4 =", text="12", reward=1.0, tokens=[tokens])
        >>> table = Table("Clipped tokens", ["objective", "tokens"], [["grpo", 1], ["gmpo", 0]])
        >>> report = Report("Comparison", [Run("rollouts")], [], [completion], quantities, tables=[table])
        >>> page_html(report)[:15]
        '<!doctype html>'
    """

    title: str
    runs: Sequence[Run]
    metrics: Sequence[Metric] = ()
    completions: Sequence[Completion] = ()
    quantities: Sequence[Quantity] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()
