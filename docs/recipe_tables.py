"""Tables of the recipes and of the advantage estimators, generated from the code while the pages are built.

mkdocs.yml names this file as a hook. A table stands where a page has the comment with its name, and what it says comes
from signatures, docstrings and `gradient_weights`; a docstring without the sections that it needs stops the build. It
also cleans the tooltips of links to the API.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from weight_plots import BOUND, TOKENS, figure, plot

from aggregate_po import PolicyObjective, advantages, recipes
from aggregate_po.advantages import AdvantageEstimator
from aggregate_po.transforms import Chain

# A sentence about a definition has one of these in a formula.
RELATION = re.compile(r"\$[^$]*(=|/| - |\\frac)[^$]*\$")
SENTENCE_END = re.compile(r"(?<=[\w)$`\"]\.) (?=[A-Z$`])")
# The title that a link has from the heading of a class or function, with the heading's labels on lines of their own.
TOOLTIP = re.compile(r'(<a class="autorefs[^"]*" title=")([^"\n]*\n[^"]*)"')
CITATION = re.compile(r"(.*?(?:arXiv:\d{4}\.\d{5}|no paper).*?)(?:\. |\.?$)")


class AnyNumber(float):
    """A number that a recipe cannot do without: the length of the completions in the picture, or a bound."""

    def __new__(cls, name: str) -> "AnyNumber":
        """The number, which remembers what it is called."""
        number = super().__new__(cls, TOKENS if "length" in name or name == "steps" else BOUND)
        number.name = name
        return number


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add a large figure of each recipe's weights to the site; MkDocs calls this once."""
    for name in recipes.__all__:
        drawing = figure(with_any_arguments(getattr(recipes, name)), name)
        files.append(File.generated(config, figure_of(name), content=drawing))
    return files


def figure_of(name: str) -> str:
    """Path of the large figure of a recipe, below the folder of the pages."""
    return f"assets/weights/{name}.svg"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables where a page asks for them; MkDocs calls this for every page."""
    for comment, table in TABLES.items():
        if comment in markdown:
            markdown = markdown.replace(comment, table(markdown))
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """Take the labels of a heading, such as "dataclass", out of the tooltips of links to it; called for every page."""

    def without_labels(link: re.Match[str]) -> str:
        name, *others = link[2].split()
        return f'{link[1]}{" ".join([name, *(word for word in others if word.startswith("("))])}"'

    return TOOLTIP.sub(without_labels, output)


def recipe_table(page: str) -> str:
    """One row for each recipe; its name leads to the section of the page that shows how to configure it."""
    titles = ["recipe", "parts", "arguments", "gradient weight of a token", "that weight times $n_i$, against $x$"]
    return _table(titles, [recipe_row(name, section) for name, section in sections_of(page).items()])


def recipe_row(name: str, section: str) -> list[str]:
    """The cells of one recipe."""
    recipe = getattr(recipes, name)
    objective = with_any_arguments(recipe)
    docstring = inspect.getdoc(recipe) or ""
    weight = re.search(r"^Gradient weight:\n +(\$.+?\$)$", docstring, re.MULTILINE | re.DOTALL)
    equation = re.search(r"\(eq\. (\d+)\)", docstring)
    if weight is None:
        raise PluginError(f"the docstring of `{name}` has no section `Gradient weight:` with one formula.")
    return [
        f"[`{name}`](#{section})<br>{paper_of(recipe)}",
        "<br>".join(parts_of(objective)),
        arguments_of(recipe, without="penalties"),
        weight[1] + (f"<br>of [eq. {equation[1]}][eq-{equation[1]}]" if equation else ""),
        f"[{plot(objective, name)}]({figure_of(name)})",
    ]


def advantage_table(page: str) -> str:
    """One row for each estimator."""
    exported = [getattr(advantages, name) for name in advantages.__all__]
    estimators = [part for part in exported if issubclass(part, AdvantageEstimator) and not inspect.isabstract(part)]
    titles = ["estimator", "advantage", "arguments"]
    return _table(titles, [advantage_row(estimator) for estimator in estimators])


def advantage_row(estimator: type[AdvantageEstimator]) -> list[str]:
    """The cells of one estimator."""
    name = f"[`{estimator.__name__}`][{_path(estimator)}]"
    return [f"{name}<br>{paper_of(estimator)}", definition_of(estimator), arguments_of(estimator)]


def with_any_arguments(recipe: Callable[..., PolicyObjective]) -> PolicyObjective:
    """The recipe with its defaults, and with any value where it has none."""
    parameters = _parameters(recipe)
    return recipe(**{name: AnyNumber(name) for name, given in parameters if given.default is given.empty})


def sections_of(page: str) -> dict[str, str]:
    """For each recipe, in the order of the page, the anchor of the first section with a snippet that names it."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title, text = section.split("\n", 1)
        for name in recipes.__all__ if "```yaml" in text else ():
            if re.search(rf"\brecipes\.{name}\b|`{name}`", text):
                found.setdefault(name, slugify(title, "-"))
    if missing := sorted(set(recipes.__all__) - set(found)):
        raise PluginError(f"no section of the page names the recipes {missing}; say how to configure them.")
    return found


def paper_of(documented: Any) -> str:
    """A docstring's `Reference:`, up to the end of the sentence that cites a paper, with a link."""
    reference = re.search(r"^Reference: (.+?)(\n\n|\Z)", inspect.getdoc(documented) or "", re.MULTILINE | re.DOTALL)
    cited = CITATION.match(_one_line(reference[1])) if reference else None
    if cited is None:
        raise PluginError(
            f"the docstring of `{documented.__name__}` has no `Reference:` with `arXiv:` and a number, or with the "
            "words `no paper`."
        )
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", cited[1])


def definition_of(estimator: type[AdvantageEstimator]) -> str:
    """The summary of a docstring; what follows it up to the last formula, if the summary has none."""
    paragraphs = [_one_line(text) for text in (inspect.getdoc(estimator) or "").split("\n\n")]
    definition = paragraphs[0]
    if not RELATION.search(definition):
        sentences = SENTENCE_END.split(paragraphs[1])
        last = max([number for number, text in enumerate(sentences) if RELATION.search(text)], default=len(sentences))
        definition = " ".join([definition, *sentences[: last + 1]])
    return definition


def parts_of(objective: PolicyObjective) -> list[str]:
    """The parts in the order in which they act, each with a link to its page."""
    parts = [linked(objective.aggregator)]
    if objective.prefix is not None:
        parts.append(f"prefixes: {linked(objective.prefix)}")
    if objective.token_transform is not None:
        parts.append(f"tokens: {linked(objective.token_transform)}")
    if objective.sequence_transform is not None:
        parts.append(f"completion: {linked(objective.sequence_transform)}")
    if objective.suffix_weight is not None:
        parts.append(f"advantages: {linked(objective.suffix_weight)}")
    if objective.group_objective is not None:
        parts.append(f"group: {linked(objective.group_objective)}")
    parts.append(linked(objective.normalizer))
    return parts + [f"less {linked(penalty)}" for penalty in objective.penalties]


def linked(part: object) -> str:
    """A part in short, with a link; the transforms of a chain one after the other."""
    if isinstance(part, Chain):
        return ", then ".join(linked(transform) for transform in part.transforms)
    return f"[`{short(part)}`][{_path(type(part))}]"


def short(value: object) -> str:
    """A part as a call with its arguments in order, or a plain value."""
    if isinstance(value, AnyNumber):
        return value.name
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Chain):
        return ", then ".join(short(transform) for transform in value.transforms)
    if inspect.isfunction(value):
        return value.__name__
    if not type(value).__module__.startswith("aggregate_po"):
        return repr(value)
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(vars(value))
    return f"{type(value).__name__}({', '.join(short(getattr(value, name)) for name in names)})"


def arguments_of(function: Callable[..., object], without: str = "") -> str:
    """The signature, an argument on each line."""
    lines = [
        f"`{name}`, required" if parameter.default is parameter.empty else f"`{name}={short(parameter.default)}`"
        for name, parameter in _parameters(function)
        if name != without
    ]
    return "<br>".join(lines) or "none"


def _parameters(function: Callable[..., object]) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(function).parameters.items())


def _path(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    for cell in [cell for row in rows for cell in row if "|" in cell or "\n" in cell]:
        raise PluginError(f"a cell of a table cannot hold a line break or a vertical bar, but one has {cell!r}.")
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = {"<!-- table of recipes -->": recipe_table, "<!-- table of advantages -->": advantage_table}
