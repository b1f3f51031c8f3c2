"""Data sets of `datasets`: local files and folders, columns, filters, and what is refused or skipped."""

import bz2
import gzip
import json
import logging
import lzma
import sys
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
import pyarrow as arrow  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pyarrow import parquet  # noqa: E402

from lightning_modules import HubDataset  # noqa: E402
from lightning_modules.prompts import examples_of  # noqa: E402
from lightning_modules.prompts.columns import ABSENT, value_at  # noqa: E402
from lightning_modules.prompts.loading import _split_of  # noqa: E402

ROWS = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "¿2 + 3?\n😀", "answer": "005"}]
NESTED = [{"question": "a", "extra_info": {"answer": "1"}}, {"question": "b", "extra_info": {"answer": "2"}}]
SHARED = Path(__file__).parents[4] / "shared" / "data"


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_of(rows):
    cells = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in cells).encode()


def table_of(rows):
    return rows if isinstance(rows, arrow.Table) else arrow.Table.from_pylist(rows)


def arrow_of(rows, new=arrow.ipc.new_file):
    buffer, table = arrow.BufferOutputStream(), table_of(rows)
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue().to_pybytes()


def parquet_of(rows):
    buffer = arrow.BufferOutputStream()
    parquet.write_table(table_of(rows), buffer)
    return buffer.getvalue().to_pybytes()


INVALID = arrow.table({"prompt": arrow.array([b"a", b"\xff"]).view(arrow.string())})
FORMS = {
    "jsonl": json_lines(ROWS),
    "json": json.dumps(ROWS, indent=1).encode(),
    "jsonl.gz": gzip.compress(json_lines(ROWS), mtime=0),
    "csv": csv_of(ROWS),
    "csv.xz": lzma.compress(csv_of(ROWS)),
    "tsv.bz2": bz2.compress(csv_of(ROWS).replace(b",", b"\t")),
    "parquet": parquet_of(ROWS),
    "arrow": arrow_of(ROWS),
    "stream.arrow": arrow_of(ROWS, arrow.ipc.new_stream),
}


@pytest.fixture
def read(tmp_path):
    """Write a file, and return its data set."""

    def reader(content, file, /, **options):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content)
        return HubDataset(str(path), cache_dir=str(tmp_path / "cache"), **options)

    return reader


@pytest.fixture
def said(caplog):
    """Lines of the log."""
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return lambda: caplog.messages


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_examples(read, form):
    assert list(read(FORMS[form], f"rows.{form}")) == ROWS


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "csv.xz", "tsv.bz2", "parquet", "arrow"])
def test_a_path_alone_is_read_by_its_form(tmp_path, form):
    (tmp_path / f"rows.{form}").write_bytes(FORMS[form])
    assert list(examples_of("dataset", str(tmp_path / f"rows.{form}"))) == ROWS


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "arrow"])
def test_files_of_a_folder_are_its_splits(tmp_path, form):
    for name in ("train-0", "train-1", "test"):
        (tmp_path / f"{name}.{form}").write_bytes(FORMS[form])
    cache = str(tmp_path / "cache")
    assert list(HubDataset(str(tmp_path), cache_dir=cache)) == ROWS + ROWS
    held_out = HubDataset(str(tmp_path), split="test", cache_dir=cache)
    assert list(held_out) == ROWS
    assert held_out.location(1).startswith(str(tmp_path / f"test.{form}"))
    with pytest.raises(ValueError, match=r"`split` is 'validation', which .* does not have; pass one of train, test\."):
        HubDataset(str(tmp_path), split="validation", cache_dir=cache)


def test_configurations_of_a_folder_are_named(tmp_path):
    lines = ["---", "configs:"]
    for name in ("main", "socratic"):
        lines += [f"- config_name: {name}", f"  data_files: {name}.jsonl"]
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}"}}')
    (tmp_path / "README.md").write_text("\n".join([*lines, "---"]))
    assert list(HubDataset(str(tmp_path), "socratic")) == [{"prompt": "socratic"}]
    for name in (None, "other"):
        with pytest.raises(ValueError, match=r"; pass a `name` or `split` of \['main', 'socratic'\]\."):
            HubDataset(str(tmp_path), name)


def test_saved_data_sets_are_read(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(tmp_path / "two")
    assert list(HubDataset(str(tmp_path / "one"))) == ROWS
    assert list(HubDataset(str(tmp_path / "two"))) == ROWS
    assert list(HubDataset(str(tmp_path / "two"), split="test")) == ROWS[1:]
    for folder, options in (("one", {"split": "train"}), ("one", {"name": "main"}), ("two", {"split": "all"})):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` is '"):
            HubDataset(str(tmp_path / folder), **options)


def test_cells_of_csv_in_a_data_set_of_the_hub_stay_texts(tmp_path):
    """By the function for the hub, which takes a folder as well."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("prompt,answer\na,6\nb,007\nc,NA\n")
    rows = list(_split_of(datasets, str(tmp_path / "data"), None, "train[:2]", str(tmp_path / "cache")))
    assert rows == [{"prompt": "a", "answer": "6"}, {"prompt": "b", "answer": "007"}]


def test_without_a_network_local_forms_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"`path` is 'openai/gsm8k', which is no .* a local copy: a JSON Lines"):
        HubDataset("openai/gsm8k", "main", cache_dir=str(tmp_path))


@pytest.mark.parametrize("path", ["nowhere.jsonl", "a/b/c", "nowhere.csv.gz"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(path):
    with pytest.raises(FileNotFoundError, match=f"`path` is '{path}', which is no file, folder or hub id; pass a JSON"):
        HubDataset(path)


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[datasets\].*, or pass a JSON"):
        HubDataset(str(tmp_path))
    (tmp_path / "rows.csv").write_bytes(FORMS["csv"])
    assert list(HubDataset(str(tmp_path / "rows.csv"))) == ROWS


# Columns


def test_nested_columns_become_fields(read):
    options = {"prompt": "question", "columns": {"answer": "extra_info.answer"}}
    for form, write in (("jsonl", json_lines), ("parquet", parquet_of), ("arrow", arrow_of)):
        examples = list(read(write(NESTED), f"rows.{form}", **options))
        assert [(example["prompt"], example["answer"]) for example in examples] == [("a", "1"), ("b", "2")]
        assert examples[0]["extra_info"] == {"answer": "1"}


def test_a_column_is_found_by_its_own_name_first_and_in_lists():
    row = {"a.b": 1, "a": {"b": 2, "c": [3, {"d": 4}]}}
    assert [value_at(row, name) for name in ("a.b", "a.c.0", "a.c.1.d")] == [1, 3, 4]
    assert all(value_at(row, name) is ABSENT for name in ("b", "a.x", "a.c.2", "a.c.x", "a.c.-1", "a.b.c"))


@pytest.mark.parametrize("write", [json_lines, parquet_of], ids=["jsonl", "parquet"])
def test_a_missing_column_is_refused_with_those_that_exist(read, write):
    with pytest.raises(ValueError, match=r"no column 'prompt' for the field 'prompt'; name one of extra_info, extra_"):
        read(write(NESTED), "rows")
    with pytest.raises(ValueError, match=r"name one of extra_info, extra_info\.answer, question with `columns`\."):
        read(write(NESTED), "rows", prompt="question", columns={"answer": "extra_info.solution"})


def test_the_prompt_is_no_other_field(read):
    with pytest.raises(ValueError, match=r"`columns` is .*, which names the prompt"):
        read(FORMS["jsonl"], "rows.jsonl", columns={"prompt": "answer"})


# Rows that are left out


def test_a_filter_keeps_and_counts(read, said):
    kept = read(FORMS["csv"], "rows.csv", filter=lambda example: example["answer"] == "005")
    assert list(kept) == ROWS[1:]
    assert kept.location(0).endswith("rows.csv, line 3")
    assert any("1 of 2 rows are left out, 1 by the filter " in line for line in said())
    with pytest.raises(ValueError, match=r"2 of 2 rows are left out, 2 by the filter .*, so that none remains"):
        read(FORMS["csv"], "rows.csv", filter=lambda example: False)
    with pytest.raises(ValueError, match=r"line 2: the filter .* raised KeyError: 'level'; correct it for this row"):
        read(FORMS["csv"], "rows.csv", filter=lambda example: example["level"])


HOLES = [{"prompt": "a", "answer": "1"}, {"prompt": "", "answer": "2"}, {"prompt": "b", "answer": ""}]
WITHOUT = [HOLES[0], {"prompt": None, "answer": "2"}, {"prompt": "b", "answer": None}]
EMPTY = [HOLES[0], {"prompt": "a", "answer": float("nan")}, {"prompt": "b", "answer": []}]


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("csv", csv_of(HOLES)),
        ("jsonl", json_lines(HOLES)),
        ("jsonl", json_lines([{"prompt": "a", "answer": "1"}, {"answer": "2"}, {"prompt": "b"}])),
        ("json", json.dumps(WITHOUT).encode()),
        ("json", json.dumps(EMPTY).encode()),
        ("parquet", parquet_of(WITHOUT)),
        ("arrow", arrow_of(WITHOUT)),
    ],
)
def test_rows_without_prompt_or_answer_are_refused_or_skipped_and_counted(read, said, form, content):
    with pytest.raises(ValueError, match=r"(line 3|row 1|line 2).*: the column '\w+' .* is missing or empty; .*'skip'"):
        read(content, f"rows.{form}")
    assert list(read(content, f"rows.{form}", incomplete="skip")) == HOLES[:1]
    assert any("2 of 3 rows are left out, 2 without 'prompt' or 'answer'." in line for line in said())
    with pytest.raises(ValueError, match="`incomplete` is 'drop'; pass one of refuse, skip"):
        read(content, f"rows.{form}", incomplete="drop")


def test_an_answer_is_only_asked_for_where_there_are_answers(read):
    rows = [{"prompt": "a", "tests": None}, {"prompt": "b", "tests": "x"}]
    assert list(read(json_lines(rows), "rows.jsonl")) == rows
    with pytest.raises(ValueError, match="line 1: the column 'tests' for the field 'cases' is missing or empty"):
        read(json_lines(rows), "rows.jsonl", columns={"cases": "tests"})


# Damaged files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"prompt": "a"}\n{"prompt":', "line 2: not JSON .*; write one JSON object per line"),
        ("r.jsonl", b'{"prompt": "a"}\n7\n', "line 2: found 7, which is no JSON object; write an object"),
        ("r.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}', "line 2: byte 0xe9 .* save the file as UTF-8"),
        ("r.jsonl", b'{"prompt": 7, "answer": "1"}', "line 1: the prompt is 7; write a text"),
        ("r.jsonl.gz", FORMS["jsonl.gz"][:-12], "damaged or incomplete compressed file .*; copy it again"),
        ("r.json", FORMS["json"][:-12], "not JSON"),
        ("r.json", b'[{"prompt": "a"}, 7]', r"row 1 \(from 0\): found 7, which is no JSON object"),
        ("r.json", b'[{"prompt": {"text": "a"}}]', r"row 0 \(from 0\): the prompt is {'text': 'a'}; write a text"),
        ("r.csv", b"prompt,answer\na,1\nb,2,3\n", "line 3: found 3 cells for the 2 columns .*; put a cell"),
        ("r.csv", b'prompt,answer\na,1\n"b\n', r"line 3: not CSV \(unexpected end of data\); put cells"),
        ("r.csv", b"prompt,answer\na,1\n\xe9,2\n", "line 3: byte 0xe9 .* save the file as UTF-8"),
        ("r.csv", b"prompt,prompt\na,1\n", r"line 1: the column names \['prompt'\] are empty or occur twice"),
        ("r.csv", b"", "which has no rows; pass a data set with at least one"),
        ("r.csv.xz", FORMS["csv.xz"][:-12], "damaged or incomplete compressed file"),
        ("r.parquet", FORMS["parquet"][:-30], "not a readable Parquet file .*; write it again"),
        ("r.parquet", parquet_of([{"prompt": 1}]), r"row 0 \(from 0\): the prompt is 1; write a text"),
        ("r.parquet", parquet_of(INVALID), "not a readable Parquet file .*0xff"),
        ("r.arrow", arrow_of(INVALID), "cannot be read .*Invalid UTF8 sequence .*; write the file again"),
        ("r.arrow", FORMS["arrow"][:-40], "cannot be read .*; write the file again"),
        ("r.arrow", FORMS["stream.arrow"][:200], "cannot be read .*; write the file again"),
        ("r.arrow", arrow_of([{"prompt": 1.5}]), r"row 0 \(from 0\): the prompt is 1.5; write a text"),
    ],
)
def test_a_damaged_file_is_refused_with_file_row_and_remedy(read, name, content, message):
    with pytest.raises(ValueError, match=rf"(?s)r\.\w+.*{message}"):
        read(content, name)


def test_a_damaged_saved_data_set_is_refused_by_its_folder(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"saved: cannot be read \(.*\); write the file again\."):
        HubDataset(str(tmp_path / "saved"))


def test_options_that_a_file_does_not_have_are_refused(read):
    for option in ("name", "split"):
        with pytest.raises(ValueError, match=f"`{option}` is 'x', but `path` is the file .*; leave `{option}` out"):
            read(FORMS["jsonl"], "rows.jsonl", **{option: "x"})


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="doesn't contain any data files; pass a JSON Lines"):
        HubDataset(str(tmp_path))


def test_long_cells_are_read_and_the_limit_of_the_process_stays(read):
    import csv

    limit = csv.field_size_limit()
    assert len(read(csv_of([{"prompt": "x " * 100_000}]), "rows.csv")[0]["prompt"]) == 200_000
    assert csv.field_size_limit() == limit


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": CELLS, "answer": CELLS}), min_size=1, max_size=4))
def test_any_text_survives_every_form(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for form, write in (("jsonl", json_lines), ("csv", csv_of), ("parquet", parquet_of)):
        path = folder / f"rows.{form}"
        path.write_bytes(write(rows))
        assert list(HubDataset(str(path))) == rows


@pytest.mark.parametrize("name", ["gsm8k_train", "math500_first300", "aime24", "amc23"])
def test_files_of_known_benchmarks_are_read(name):
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    lines = path.read_text(encoding="utf-8").strip("\n").split("\n")
    column = next(column for column in ("prompt", "question", "problem") if column in json.loads(lines[0]))
    examples = HubDataset(str(path), prompt=column)
    assert len(examples) == len(lines)
    assert {"prompt", "answer"} <= examples[0].keys()


# Reports on any source


@pytest.mark.parametrize("source", [list, lambda rows: HubDataset(rows)], ids=["list", "file"])
def test_duplicate_prompts_are_counted(tmp_path, said, source):
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines(rows))
    examples_of("dataset", source(rows if source is list else str(path)))
    assert said().count("`dataset`: 1 of 4 prompts are duplicates of others.") == 1


@pytest.mark.parametrize("form", ["list", "jsonl", "parquet"])
def test_examples_without_the_answer_that_others_have_are_warned_of(tmp_path, form):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": None}]
    path = tmp_path / f"rows.{form}"
    path.write_bytes(parquet_of(rows) if form == "parquet" else json_lines(rows))
    with pytest.warns(UserWarning, match='`dataset`: 1 of 2 examples have no "answer", which the others have'):
        assert list(examples_of("dataset", rows if form == "list" else str(path))) == rows
