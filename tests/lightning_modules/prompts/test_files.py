"""Files of prompts: encodings, compression, Parquet, and what a damaged or unusual file is refused for."""

import bz2
import gzip
import importlib.util
import json
import lzma
import re
import time
from pathlib import Path

import pytest

from lightning_modules.prompts import JSONLines, Parquet, examples_of
from lightning_modules.prompts.base import location_in

TWO_LINES = '{"prompt": "¿1 + 1? 😀", "answer": 2}\n\n{"prompt": "b"}\n'


def prompts(examples):
    return [example["prompt"] for example in examples]


@pytest.fixture
def written(tmp_path):
    """Write a file, and return its path."""

    def write(content, name="prompts.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def refused(written):
    """Return the error of a file; `PATH` stands for its path."""

    def error(content, name="prompts.jsonl"):
        path = written(content, name)
        with pytest.raises(ValueError, match=re.escape(path)) as refusal:
            examples_of("dataset", path)
        return str(refusal.value).replace(path, "PATH")

    return error


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_of_unicode_are_read(written, encoding):
    assert prompts(JSONLines(written(TWO_LINES.encode(encoding)))) == ["¿1 + 1? 😀", "b"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=lambda call: call.__module__)
@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.jsonl.gz"])
def test_compressed_files_are_told_by_their_first_bytes(written, compress, name):
    assert prompts(examples_of("dataset", written(compress(TWO_LINES.encode()), name))) == ["¿1 + 1? 😀", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(TWO_LINES.encode() * 100, mtime=0)[:-20], "PATH: damaged or incomplete compressed file"),
        (gzip.compress(TWO_LINES.encode(), mtime=0)[:-6] + b"\0" * 6, "PATH: damaged or incomplete compressed file"),
        (bz2.compress(TWO_LINES.encode())[:-9], "PATH: damaged or incomplete compressed file"),
        (lzma.compress(TWO_LINES.encode())[:-9], "PATH: damaged or incomplete compressed file"),
        (b"\x28\xb5\x2f\xfd...", "PATH: not a text file, it is compressed by Zstandard; decompress it with `zstd -d`."),
        (b"PK\x03\x04...", "PATH: not a text file, it is a ZIP archive; unpack it."),
        (b"PAR1...PAR1", "PATH: not a readable Parquet file"),
        (
            b'{"prompt": "a"}\n{"prompt": "\xe9 1"}\n',
            "PATH, line 2: byte 0xe9 at offset 28 is not valid UTF-8 (invalid continuation byte); save the file as",
        ),
        ('{"prompt": "a"}\n'.encode("utf-16") + b"\x00", "PATH, line 2: byte 0x00 at offset 34 is not valid UTF-16"),
        ('{"prompt": "a"}\n{"prompt": "\\ud83d"}', "PATH, line 2: a text has half of a surrogate pair"),
        ('{"prompt": "a", "answer": ["\\uDC00"]}', "PATH, line 1: a text has half of a surrogate pair"),
        ('{"prompt": "a", "\\udfff": 1}', "PATH, line 1: a text has half of a surrogate pair"),
        (f'{{"prompt": "a", "answer": {"9" * 5000}}}', "PATH, line 1: a number has too many digits for an integer"),
        ("\n" + "[" * 200_000, "PATH, line 2: nested deeper than 100 levels"),
        (f'{{"prompt": "a", "x": {"[" * 101}{"]" * 101}}}', "PATH, line 1: nested deeper than 100 levels"),
        (f'{{"prompt": {"{" * 500}', "PATH, line 1: nested deeper than 100 levels"),
        ('[{"prompt": "a"}]', "PATH, line 1: found [{'prompt': 'a'}], which is no JSON object; write one JSON object"),
        ('[\n{"prompt": "a"}\n]', "PATH, line 1: not JSON"),
        ('"prompt"', "PATH, line 1: found 'prompt', which is no JSON object"),
        ("null", "PATH, line 1: found None, which is no JSON object"),
        ('{"prompt": null}', "PATH, line 1: the prompt is None; write a text that is not empty, or a list of messages"),
        ('{"prompt": ""}', "PATH, line 1: the prompt is ''; write a text that is not empty."),
        ('{"prompt": "\\u00a0\\n"}', r"PATH, line 1: the prompt is '\xa0\n'; write a text"),
        ('{"prompt": []}', "PATH, line 1: the prompt is []; write a text that is not empty, or a list of messages"),
        ('{"prompt": ["a"]}', 'PATH, line 1: message 0 of the prompt is \'a\'; write {"role": "user", "content": '),
        ('{"prompt": [{"role": "user"}]}', "message 0 of the prompt is {'role': 'user'}; write"),
        ('{"prompt": [{"role": "user", "content": [{"type": "text"}]}]}', "message 0 of the prompt is"),
        ('{"prompt": [{"role": "user", "content": " "}]}', "message 0 of the prompt is ' '; write a text"),
        (
            '{"prompt": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}',
            "PATH, line 1: the last message of the prompt has the role 'assistant'; end with the message that",
        ),
        ("", "`dataset` is 'PATH', which has no prompts; pass at least one example."),
        ("\n  \n\t\n", "`dataset` is 'PATH', which has no prompts; pass at least one example."),
        (b"\xef\xbb\xbf", "`dataset` is 'PATH', which has no prompts; pass at least one example."),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_line_and_remedy(refused, content, message):
    assert message in refused(content)


def test_a_missing_field_is_refused_with_the_option_that_names_it(refused):
    assert refused('{"question": "1 + 1?"}') == (
        "PATH, line 1: no field 'prompt', found ['question']; name the prompt's field by the option `prompt` of the "
        "data set: --data.dataset lightning_modules.JSONLines --data.dataset.path FILE --data.dataset.prompt FIELD, "
        "and the same for --data.validation."
    )


def test_what_is_nested_or_escaped_and_no_fault_is_read(written):
    line = {"prompt": "[{" * 5000 + '\\"', "answer": [[[1]]], "emoji": "😀"}
    assert list(JSONLines(written(json.dumps(line)))) == [line]
    assert prompts(JSONLines(written(json.dumps({"prompt": "\\ud800 is no character"})))) == ["\\ud800 is no character"]
    nested = f'{{"prompt": "a", "x": {"[" * 99}{"]" * 99}}}'
    assert len(JSONLines(written(nested))) == 1


def test_a_long_line_is_read_at_once_and_a_prompt_of_that_length_is_refused(written):
    """Tokenizers need much more than linear time for some texts of this length."""
    megabytes = "x y " * 5_000_000
    path = written(json.dumps({"prompt": "1 + 1?", "tests": megabytes}))
    started = time.process_time()
    assert JSONLines(path)[0]["tests"] == megabytes
    assert time.process_time() - started < 10
    with pytest.raises(ValueError, match=r"line 1: the prompt has 20,000,000 characters; write at most 4,000,000"):
        JSONLines(written(json.dumps({"prompt": megabytes})))
    with pytest.raises(ValueError, match="line 1: the prompt is ' ") as refusal:
        JSONLines(written(json.dumps({"prompt": " " * 1_000_000})))
    assert len(str(refusal.value)) < 400


def test_a_list_of_messages_is_a_prompt(written):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "1 + 1?"}]
    assert prompts(JSONLines(written(json.dumps({"prompt": messages})))) == [messages]
    assert prompts(examples_of("dataset", [{"prompt": tuple(messages)}])) == [tuple(messages)]


def test_locations_are_lines_of_the_file(written):
    path = written(TWO_LINES)
    assert [JSONLines(path).location(index) for index in (0, 1)] == [f"{path}, line 1", f"{path}, line 3"]
    assert location_in("validation", JSONLines(path), 1) == f"`validation`, {path}, line 3"
    assert location_in("dataset", [1, 2, 3], 2) == "`dataset`, prompt 2 (of 0 to 2)"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([{"question": "1+1?"}], "`dataset`, prompt 0 (of 0 to 0): no field \"prompt\", found ['question']; put the"),
        ([{"prompt": "a"}, {"prompt": None}], "`dataset`, prompt 1 (of 0 to 1): the prompt is None; write a text"),
        ([{"prompt": 7}], "`dataset`, prompt 0 (of 0 to 0): the prompt is 7; write a text"),
        ([{"prompt": b"1+1?"}], "the prompt is b'1+1?'; write a text"),
        ([{"prompt": "\ud800"}], "the prompt has half of a surrogate pair"),
        ([{"prompt": [{"role": "user", "content": "\udc00"}]}], "message 0 of the prompt has half of a surrogate"),
        ([{"prompt": {"role": "user", "content": "hi"}}], "the prompt is {'content': 'hi', 'role': 'user'}; write"),
        (["1+1?"], "`dataset`, prompt 0 (of 0 to 0): found '1+1?'; pass a mapping"),
        (({1: 2, "x": 3},), "no field \"prompt\", found ['1', 'x']"),
    ],
)
def test_examples_from_python_are_checked_too(dataset, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        examples_of("dataset", dataset)


@pytest.mark.parametrize("dataset", [{"prompt": "a"}, 7, iter([{"prompt": "a"}]), {("prompt", "a")}])
def test_what_holds_no_examples_is_refused_by_its_type(dataset):
    with pytest.raises(
        TypeError, match=rf"`dataset` is of type {type(dataset).__name__}; pass a PromptDataset, a list"
    ):
        examples_of("dataset", dataset)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that nobody can read")
def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(OSError, match=r"^/proc/self/mem: the file cannot be read \(.*\); check its permissions\.$"):
        examples_of("dataset", "/proc/self/mem")


def test_a_path_object_is_a_path(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(TWO_LINES)
    assert len(examples_of("dataset", tmp_path / "prompts.jsonl")) == 2


@pytest.fixture
def parquet(tmp_path):
    """Write rows to a Parquet file, and return its path."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(columns, name="prompts.parquet"):
        parquet.write_table(arrow.table(columns), tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_parquet_file_is_told_by_its_first_bytes(parquet):
    columns = {"prompt": ["1 + 1?", "2"], "answer": [2, None], "tests": [["a", "b"], []]}
    examples = examples_of("dataset", parquet(columns, "prompts.bin"))
    assert list(examples) == [
        {"prompt": "1 + 1?", "answer": 2, "tests": ["a", "b"]},
        {"prompt": "2", "answer": None, "tests": []},
    ]
    assert isinstance(examples, Parquet)


def test_messages_and_other_columns_of_a_parquet_file(parquet):
    messages = [{"role": "user", "content": "1 + 1?"}]
    assert prompts(Parquet(parquet({"messages": [messages]}), prompt="messages")) == [messages]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a", None]}, r"row 1 \(from 0\): the prompt is None; write a text"),
        ({"prompt": ["a", " "]}, r"row 1 \(from 0\): the prompt is ' '; write a text"),
        ({"prompt": [1]}, r"row 0 \(from 0\): the prompt is 1; write a text"),
        (
            {"question": ["a"]},
            r"no field 'prompt', found \['question'\]; .* --data\.dataset lightning_modules\.Parquet ",
        ),
    ],
)
def test_a_row_of_a_parquet_file_is_named_by_its_number(parquet, columns, message):
    with pytest.raises(ValueError, match=message):
        Parquet(parquet(columns))


def test_invalid_text_and_a_cut_end_of_a_parquet_file_are_refused(parquet, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    invalid = arrow.array([b"\xff"]).view(arrow.string())
    with pytest.raises(ValueError, match=r"prompts\.parquet: not a readable Parquet file \(.*0xff"):
        Parquet(parquet({"prompt": invalid}))
    content = (tmp_path / "prompts.parquet").read_bytes()
    (tmp_path / "prompts.parquet").write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"prompts\.parquet: not a readable Parquet file"):
        examples_of("dataset", str(tmp_path / "prompts.parquet"))


def test_without_pyarrow_a_parquet_file_is_refused_with_the_remedy(written, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "lightning_modules.parquet_files.find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"needs `pyarrow`.*; run pip install .*\[parquet\].*, or write"):
        examples_of("dataset", written(b"PAR1"))


def test_json_lines_refuses_a_parquet_file_by_name(written):
    with pytest.raises(ValueError, match=r"it is a Parquet file; pass lightning_modules\.Parquet"):
        JSONLines(written(b"PAR1..."))
