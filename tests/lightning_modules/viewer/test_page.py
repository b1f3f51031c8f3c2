"""The page as a file: its data are complete, rounded to four digits, and cannot leave their element."""

import base64
import doctest
import gzip
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lightning_modules.viewer import (
    Completion,
    Metric,
    Quantity,
    Report,
    Run,
    Table,
    TokenNumbers,
    page_html,
    write_page,
)
from lightning_modules.viewer import report as report_module
from lightning_modules.viewer.encoding import rounded

ROOT = Path(__file__).resolve().parents[3]
ELEMENT = re.compile(r'<script type="application/octet-stream" id="data">([^<]*)</script>')


def data_of(html):
    """The header of a page's data, and a function that returns an array by its reference."""
    content = gzip.decompress(base64.b64decode(ELEMENT.search(html)[1]))
    length = int.from_bytes(content[:4], "little")
    body = content[4 + length :]

    def array(reference):
        kind = np.dtype(f"<{reference['as']}")
        part = body[reference["at"] : reference["at"] + reference["n"] * kind.itemsize]
        by_byte = np.frombuffer(part, dtype=np.uint8).reshape(kind.itemsize, reference["n"])
        return np.ascontiguousarray(by_byte.T).view(kind).flatten()

    return json.loads(content[4 : 4 + length]), array


@pytest.fixture
def report():
    first = TokenNumbers(2, ["a", "b"], [5, 6], {"weight": [0.1, float("nan")]}, {"clipped": [True, False]})
    second = TokenNumbers(6, ["b"], (), {"gate": [1.0]}, facts={"exponent": "0.5"})
    completions = [
        Completion(0, 1, 0, 0, "one", "ab", 1.0, -0.5, 2, {"answer": "7"}, [first]),
        Completion(1, 5, 3, 1, "one", "b", tokens=[second]),
    ]
    runs = [Run("x", {"seed": "0"}, "0", "same", [1, 2], {"kl": [0.5, float("nan")]}), Run("y", cohort="same")]
    return Report("title", runs, [Metric("kl")], completions, [Quantity("weight", "weight")], notes=["a note"])


def test_all_of_a_report_is_in_the_page(report):
    header, array = data_of(page_html(report))
    assert (header["title"], header["notes"]) == ("title", ["a note"])
    run = header["runs"][0]
    assert (run["name"], run["facts"], run["cohort"]) == ("x", {"seed": "0"}, "same")
    assert array(run["steps"]).tolist() == [1, 2]
    assert array(run["metrics"]["kl"]) == pytest.approx([0.5, float("nan")], nan_ok=True)
    completions = header["completions"]
    assert [array(completions[name]).tolist() for name in ("run", "step", "group", "sample", "length", "prompt")] == [
        *([0, 1], [1, 5], [0, 3], [0, 1]),
        *([2, -1], [0, 0]),
    ]
    assert (completions["prompts"], completions["text"]) == (["one"], ["ab", "b"])
    assert array(completions["reward"]) == pytest.approx([1.0, float("nan")], nan_ok=True)
    assert completions["facts"] == [{"answer": "7"}, {}]


def test_the_numbers_of_all_tokens_are_in_the_page(report):
    header, array = data_of(page_html(report))
    tokens = header["tokens"]
    assert [array(tokens[name]).tolist() for name in ("completion", "step", "length")] == [[0, 1], [2, 6], [2, 1]]
    assert tokens["vocabulary"] == ["a", "b"]
    assert array(tokens["text"]).tolist() == [0, 1, 1]
    assert array(tokens["id"]).tolist() == [5, 6, -1]
    nan = float("nan")
    assert array(tokens["values"]["weight"]) == pytest.approx([0.1, nan, nan], rel=2**-13, nan_ok=True)
    assert array(tokens["values"]["gate"]) == pytest.approx([nan, nan, 1.0], nan_ok=True)
    assert array(tokens["marks"]["clipped"]).tolist() == [1, 0, 0]
    assert tokens["facts"] == [{}, {"exponent": "0.5"}]


def test_the_example_of_a_report_runs():
    results = doctest.testmod(report_module)
    assert results.attempted > 5
    assert results.failed == 0


def test_the_files_of_the_page_are_in_the_wheel():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    folder = ROOT / "lightning_modules"
    packed = {path for pattern in package["lightning_modules"] for path in folder.glob(pattern)}
    assets = {path for path in (folder / "viewer" / "assets").rglob("*") if path.is_file()}
    assert len(assets) > 5
    assert assets <= packed


def test_numbers_keep_four_digits():
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=10_000) * 10.0 ** generator.integers(-30, 30, size=10_000)
    assert np.abs(rounded(numbers) / numbers - 1).max() <= 2**-13
    special = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(rounded(special), special.astype(np.float32))


def test_integers_keep_all_digits_and_no_other_number_becomes_one():
    counts = np.array([8_191, 8_193, 123_457, -123_457, 2**24 - 1], dtype=np.float64)
    np.testing.assert_array_equal(rounded(counts), counts)
    others = np.array([8_192.3, 12_345.6, 999_999.4])
    assert not np.any(rounded(others) % 1 == 0)


def test_a_page_is_one_file_that_asks_for_nothing(report):
    html = page_html(report)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", html)
    assert "default-src 'none'" in html
    assert html.count("<script") == 2


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "{{SCRIPT}}", "\ud800", "\0"])
def test_no_text_can_leave_the_data(text):
    completion = Completion(0, 1, 0, 0, text, text, facts={text: text}, tokens=[TokenNumbers(1, [text])])
    table = Table(text, [text], [[text]])
    html = page_html(Report(text, [Run(text)], [], [completion], tables=[table]))
    html.encode()
    header, _ = data_of(html)
    assert header["completions"]["text"] == [text.encode(errors="replace").decode()]
    assert html.count("<script") == html.count("</script>") == 2
    assert page_html(Report("x", [])).count("function ") == html.count("function ")


def test_cells_of_a_table_may_be_numbers_of_numpy():
    row = [np.float32(0.5), np.int64(123_457), np.float64(0.25), np.float32("nan"), np.bool_(True), -np.inf, "text"]
    header, _ = data_of(page_html(Report("x", [], tables=[Table("t", ["c"] * len(row), [row])])))
    assert header["tables"][0]["rows"] == [[0.5, 123_457, 0.25, "nan", True, "-inf", "text"]]


def test_a_page_is_written_and_its_size_is_returned(report, tmp_path):
    size = write_page(report, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").stat().st_size == size
