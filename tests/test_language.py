"""The language of the field: words that are not used, with the word to use instead, and docstrings read alone.

Add a folder to `HELD` or a page to `HELD_PAGES` once it is rewritten. Where a word is right, add it to `ALLOWED`.
"""

import ast
import io
import re
import tokenize
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folders of Python files: identifiers, docstrings (which `--help` shows), messages and comments.
HELD = [
    "aggregate_po",
    "lightning_modules",
    "experiments",
    "tests/aggregate_po",
    "tests/contracts",
    "tests/parity",
    "tests/third_party",
]
HELD_PAGES = ["*.md", "docs/*.md", "docs/api/*.md"]
# Functions whose arguments a user reads.
SPEAKERS = r"print|warn|exit|error|add_note|rank_zero_\w+|\w*Error|SystemExit"

BRITISH = {
    r"(optim|normal|minim|maxim|penal|initial|general|regular|standard|summar|real|recogn|organ|ideal|orthogonal|token)"
    r"is(e|ed|er|es|ing|ation)": "-ize",
    r"(serial|parallel|quant|vector|synchron|special|util|visual|final|random|stabil|character|categor|custom|memor)"
    r"is(e|ed|er|es|ing|ation)": "-ize",
    r"(un|re|de)?(behaviour|favour|colour|neighbour|honour|labour)\w*": "-or",
    r"(re)?cent(re|red|res|ring)": "center",
    r"analys(e|ed|er|es|ing)": "analyze",
    r"(label|model|travel|signal|total|channel|level|fuel)l(ed|ing)": "a single l",
    r"(grey|artefact|catalogue|programme|licence|defence|sceptic)s?": "gray, artifact, catalog, program, ...",
    r"(towards|whilst|amongst|learnt|spelt)": "toward, while, among, learned, spelled",
}
# Full words of an identifier (between underscores and capitals) or of a text.
WORDS = BRITISH | {
    r"figures?": "metrics; plot for a picture",
    r"(draw|draws|drawn|drawing|drew)": "sample (a token), generate (a completion)",
    r"partners?": "tensor-parallel group, rank",
    r"pieces?": "micro-batch, chunk",
    r"laws?": "property",
    r"(cut|cuts|cutting)": "split; truncate (a completion)",
    r"(foretell|foretells|foretold)": "predict",
    r"(wants|wanted)": "requires, needs",
}
# Sequences of words in a text.
PHRASES = {
    r"(a|the|each|all|of|is|are|was|that|which) (closed|closes)\b(?!.form)": "clipped, masked",
    r"\b(close|open)s? (a |the |all |single |whole )?(tokens?|completions?)": "clip, mask; unclipped",
    r"\b(look|looks|looking|looked) into\b": "inspect",
    r"\b(take|takes|taken|taking)\b[^.;:]{0,40}\boff\b": "subtract",
    r"\b(take|takes|taken|taking) the gradient (from|of)\b": "set the gradient of ... to zero",
    r"\bgone through\b": "epoch, pass",
    r"\bthe first rank\b": "rank 0",
    r"\b(divided|spread) (among|over) (the )?ranks\b": "sharded",
    r"\bblown up\b|\bblow up\b": "amplified, amplify",
    r"\btak(e|es|en) back\b|\bTake (it|them) back\b": "restore",
    r"\bbegin(s|ning)? anew\b": "reset, restart",
    r"\bbeside\b": "next to, in addition to",
    r"\bbut for (?!all\b)": "except",
    r"\bfor want of\b": "without, for lack of",
    r"\bto the letter\b": "verbatim",
    r"\b(and|but) not before\b": "only when, once",
    r"\bof the kind\b": "such a",
    r"\battention square\b": "attention matrix",
    r"\bstands? (in|on|there|behind|above|between)\b": "is in, belongs to",
    r"\bwhat (\w+ ){1,2}takes?\b": "memory of",
}
# Where a word is right: pattern of the file, the word, and the identifiers or phrases that may have it.
ALLOWED = [
    ("aggregate_po/testing/*", "law", r"laws?|Law|_Law|LawBroken|KeptLaws|_laws"),  # `property` is a builtin
    ("aggregate_po/testing/*", "law", r"aggregate_po\.testing\.laws?|\ba `?law`?\b"),
    ("docs/benchmarks.md", "law", r"power law"),
    ("docs/notebooks.md", "figure", r"from formula to figure"),  # a title
    ("docs/api/testing.md", "law", r"aggregate_po\.testing\.laws|import law|@law"),
    ("tests/contracts/*", "law", r"law|laws|LAWS"),
    ("aggregate_po/testing/*", "draw", r"draw|DrawFn"),  # names of hypothesis
    ("tests/*", "draw", r"draw"),
    ("experiments/benchmarks/cost_slopes.py", "law", r"power law"),
    ("experiments/figures/*", "figure", r"(experiments\.|runs/|assets/)figures"),
    ("lightning_modules/callbacks/plots.py", "figure", r"figure"),  # of matplotlib
]

CLAUSE = re.compile(r"(What|How|Where|When|Which|Who|Whose|Why|That)\b")
PRONOUN = re.compile(
    r"(It|Its|They|Their|Them|This one|These|Those|The same|The other|He|She|None|Nowhere|Nothing|Likewise)\b"
)
OBJECT = re.compile(r"(?!How|Wh)[A-Z][a-z]+ (it|them|its)\b")
# Texts of parameters stand alone in `--help` and in the API pages.
ENTRY = re.compile(r"^ +([a-z]\w*): (of|what|how|where|when|likewise|the same|as|there|it|its|they|this)\b")


def files():
    return sorted(path.relative_to(ROOT) for folder in HELD for path in (ROOT / folder).rglob("*.py"))


def pages():
    return sorted({path.relative_to(ROOT) for pattern in HELD_PAGES for path in ROOT.glob(pattern)})


def allowed(path, text):
    """Return a text without what is allowed in this file."""
    for pattern, _, phrase in ALLOWED:
        if fnmatch(path.as_posix(), pattern):
            text = re.sub(phrase, " ", text)
    return text


def forbidden_words(path, text):
    """Return the words of a text that are not used, each with the word to use."""
    text = allowed(path, re.sub(r"https?://\S+|`[^`\n]*`|\$[^$]*\$", " ", text))
    found = [(match[0], use) for word, use in WORDS.items() for match in re.finditer(rf"\b({word})\b", text, re.I)]
    plain = " ".join(text.split())
    return found + [(match[0], use) for phrase, use in PHRASES.items() for match in re.finditer(phrase, plain, re.I)]


def forbidden_identifier(path, name):
    """Return the words of an identifier that are not used, each with the word to use."""
    if any(fnmatch(path.as_posix(), pattern) and re.fullmatch(names, name) for pattern, _, names in ALLOWED):
        return []
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [(name, use) for part in parts for word, use in WORDS.items() if re.fullmatch(word, part, re.I)]


def defined_names(tree):
    """Yield the names that a file defines; names that it only uses belong to others."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def docstrings(tree):
    """Yield each definition that has a docstring, with the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node, docstring


def comments(source):
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def messages(tree):
    """Yield the texts of errors, warnings and output, without what is formatted into them."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if re.fullmatch(SPEAKERS, name):
            for argument in node.args:
                literals = [part for part in ast.walk(argument) if isinstance(part, ast.Constant)]
                yield " ".join(part.value for part in literals if isinstance(part.value, str))


def problems_of_docstring(node, docstring):
    """Return the reasons why a docstring cannot be read alone."""
    problems = [
        reason
        for pattern, reason in ((CLAUSE, "noun clause"), (PRONOUN, "pronoun"), (OBJECT, "pronoun as object"))
        if pattern.match(docstring)
    ]
    returns = getattr(node, "returns", None)
    if docstring.startswith("Whether ") and not (returns is not None and ast.unparse(returns) == "bool"):
        problems.append("`Whether` is for bools")
    # Indented by at least one level: entries of Args, Returns and Raises.
    entries = [match[1] for line in docstring.splitlines() if (match := ENTRY.match(line))]
    return problems + [f"text of `{entry}`" for entry in entries]


@pytest.mark.parametrize("path", files(), ids=Path.as_posix)
def test_words_of_the_field_in_code(path):
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    texts = [docstring for _, docstring in docstrings(tree)] + list(comments(source)) + list(messages(tree))
    found = [problem for text in texts for problem in forbidden_words(path, text)]
    found += [problem for name in sorted(set(defined_names(tree))) for problem in forbidden_identifier(path, name)]
    assert found == []


@pytest.mark.parametrize("path", pages(), ids=Path.as_posix)
def test_words_of_the_field_on_pages(path):
    text = re.sub(r"^```.*?^```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert forbidden_words(path, re.sub(r"\]\([^)]*\)", "]", text)) == []


@pytest.mark.parametrize("path", files(), ids=Path.as_posix)
def test_docstrings_can_be_read_alone(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = {
        getattr(node, "name", "module"): problems
        for node, docstring in docstrings(tree)
        if (problems := problems_of_docstring(node, docstring))
    }
    assert found == {}


def test_something_is_held():
    assert len(files()) > 50
    assert pages()


CODE = Path("aggregate_po/objective.py")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("One optimiser step.", "optimiser"),
        ("Rewards that are centred.", "centred"),
        ("The behaviour policy.", "behaviour"),
        ("Figures of a rollout.", "Figures"),
        ("Completions are drawn by vLLM.", "drawn"),
        ("A law of objectives.", "law"),
        ("The step is cut into pieces.", "cut"),
        ("Costs taken off the objective.", "taken off"),
        ("A mask takes the gradient from tokens.", "takes the gradient from"),
        ("The token is closed by the clip.", "is closed"),
        ("A mask closes tokens.", "closes tokens"),
        ("Take it back.", "Take it back"),
        ("A file beside the target.", "beside"),
        ("All are frozen but for the batch.", "but for "),
        ("Equal to the letter or as a number.", "to the letter"),
        ("It is imported when it is used, and not before.", "and not before"),
        ("Tests that stand in such a folder.", "stand in"),
        ("Not counted is what the kernels take.", "what the kernels take"),
    ],
)
def test_forbidden_words_are_found(text, word):
    assert word in [found for found, _ in forbidden_words(CODE, text)]


@pytest.mark.parametrize(
    "text", ["A closed form of the weights.", "Raise otherwise, for precise noise.", "Run `figures.py`, a `law`."]
)
def test_right_words_are_not_found(text):
    assert forbidden_words(CODE, text) == []


def test_forbidden_identifiers_are_found():
    names = ["variance_minimising_exponent", "centred", "RolloutFigures", "draw_completions", "isCut", "_laws"]
    assert [name for name in names if not forbidden_identifier(CODE, name)] == []
    assert forbidden_identifier(CODE, "executed_figure_eight") != []
    assert forbidden_identifier(CODE, "drawer_of_precision") == []


def test_a_word_is_allowed_in_its_place_only():
    assert forbidden_identifier(Path("aggregate_po/testing/laws.py"), "law") == []
    assert forbidden_identifier(CODE, "law") != []


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ('def f():\n    """What it holds."""', "noun clause"),
        ('def f():\n    """How many they are."""', "noun clause"),
        ('def f():\n    """Its configuration."""', "pronoun"),
        ('def f():\n    """Take it back."""', "pronoun as object"),
        ('def f() -> int:\n    """Whether the rank is 0."""', "`Whether` is for bools"),
        (
            'def f(rate):\n    """Build.\n\n    Args:\n        rate: of AdamW, after the warm-up.\n    """',
            "text of `rate`",
        ),
    ],
)
def test_docstrings_that_cannot_be_read_alone_are_found(definition, reason):
    ((node, docstring),) = docstrings(ast.parse(definition))
    assert problems_of_docstring(node, docstring) == [reason]


def test_whether_is_right_for_a_bool():
    ((node, docstring),) = docstrings(ast.parse('def f() -> bool:\n    """Whether the rank is 0."""'))
    assert problems_of_docstring(node, docstring) == []
