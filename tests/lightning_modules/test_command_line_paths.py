"""Paths on the command line: no file is read as configuration or imported, except by `--config`."""

import contextlib
import sys

import pytest
import yaml

from lightning_modules import JSONLines
from lightning_modules.addition import AdditionProblems
from lightning_modules.prompts import PromptFormat, qwen_math
from tests.end_to_end.test_configs import CONFIGS, ResolvingCLI, run

pytestmark = pytest.mark.slow  # each command line takes a second to be understood

TRAP = """
from pathlib import Path
Path("imported").touch()
from lightning_modules import PromptDataset, boxed_answer

class Trap(PromptDataset):
    def __init__(self):
        Path("built").touch()
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return {"prompt": "1"}
"""
CLASS = '{"class_path": "trap.Trap"}\n'
# Options that expect a class, a function, or a list of them.
OPTIONS = [
    "data.dataset",
    "data.validation",
    "data.reward",
    "data.rollouts",
    "data.advantages",
    "data.correction",
    "data.schemes",
    "data.schemes+",
    "model.model_name",
    "model.objective",
    "model.layout",
    "model.lora",
    "model.optimizer",
    "trainer.callbacks",
    "trainer.callbacks+",
    "trainer.logger",
    "trainer.plugins",
    "trainer.strategy",
]
PARTS = [
    ("aggregate_po.PolicyObjective", "aggregator"),
    ("aggregate_po.recipes.grpo", "penalties"),
    ("aggregate_po.recipes.grpo", "penalties+"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module that notes its import, and data files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "trap.py").write_text(TRAP)
    return tmp_path


def resolved(*arguments):
    """Return the command line, with its modules built."""
    return run(["fit", "--config", str(CONFIGS / "addition.yaml"), *arguments], ResolvingCLI)


def parsed_without_harm(folder, *arguments):
    """Parse arguments that may be refused, and return the files that tell of an import or of a class."""
    with contextlib.suppress(SystemExit):
        resolved(*arguments)
    return {path.name for path in folder.iterdir()} & {"imported", "built"}


@pytest.mark.parametrize(
    ("option", "name"),
    [*((option, "other.yaml") for option in OPTIONS), ("data.dataset", "other"), ("data.validation", "other.jsonl")],
)
def test_a_file_is_not_read_as_configuration(folder, option, name):
    (folder / name).write_text(CLASS)
    assert parsed_without_harm(folder, f"--{option}={name}") == set()


@pytest.mark.parametrize(("class_path", "part"), PARTS)
def test_a_file_is_not_read_as_the_configuration_of_a_part(folder, class_path, part):
    (folder / "other.yaml").write_text(CLASS)
    objective = f"--model.objective.class_path={class_path}"
    assert parsed_without_harm(folder, objective, f"--model.objective.{part}=other.yaml") == set()


@pytest.mark.parametrize(
    ("option", "name"), [("dataset", "trap.jsonl"), ("validation", "trap.jsonl.gz"), ("validation", "trap.lines")]
)
def test_a_data_file_beside_a_module_of_its_name_does_not_import_it(folder, option, name):
    """As an import path, `trap.jsonl` would be the name `jsonl` of the module `trap`."""
    (folder / name).write_text('{"prompt": "1 + 1?"}\n')
    data = resolved(f"--data.{option}={name}").datamodule
    examples = data.dataset if option == "dataset" else data.validation[""].dataset
    assert isinstance(examples, JSONLines)
    assert not (folder / "imported").exists()


def test_a_data_file_that_does_not_exist_imports_nothing(folder, capsys):
    assert parsed_without_harm(folder, "--data.dataset=trap.jsonl") == set()
    with pytest.raises(SystemExit, match=r"`dataset` is 'trap\.jsonl', which is not a file"):
        resolved("--data.dataset=trap.jsonl")


def test_a_configuration_names_data_files_in_the_same_way(folder):
    (folder / "trap.jsonl").write_text(CLASS)
    (folder / "mine.yaml").write_text(yaml.safe_dump({"data": {"dataset": "trap.jsonl"}}))
    assert parsed_without_harm(folder, "--config=mine.yaml") == set()
    with pytest.raises(SystemExit, match=r"trap\.jsonl, line 1: no field 'prompt', found \['class_path'\]"):
        resolved("--config=mine.yaml")


def test_an_empty_file_of_held_out_prompts_is_refused(folder):
    for content in ("", "null\n"):
        (folder / "held_out.jsonl").write_text(content)
        with pytest.raises(SystemExit, match=r"held_out\.jsonl"):
            resolved("--data.validation=held_out.jsonl")
    assert resolved("--data.validation=null").datamodule.validation is None


@pytest.mark.parametrize("name", ["null", "7", "{a}.jsonl", "a: b.jsonl", "-"])
def test_a_name_that_reads_as_another_value_is_a_path(folder, name):
    (folder / name).write_text('{"prompt": "1 + 1?"}\n')
    assert isinstance(resolved(f"--data.dataset={name}").datamodule.dataset, JSONLines)


def test_a_home_folder_in_a_configuration_is_expanded_before_anything_reads_it(folder, monkeypatch):
    """No shell expands it there, but Lightning does, in the run folder alone."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    lines = ["trainer: {default_root_dir: ~/runs/mine}", "ckpt_path: ~/runs/other/checkpoints/step-3.ckpt"]
    (folder / "mine.yaml").write_text("\n".join(lines))
    config = resolved("--config", "mine.yaml").config.fit
    runs = folder / "home" / "runs"
    assert config.trainer.default_root_dir == str(runs / "mine")
    assert config.checkpoint.dirpath == str(runs / "mine" / "checkpoints")
    assert config.ckpt_path == str(runs / "other" / "checkpoints" / "step-3.ckpt")


def test_classes_are_named_as_ever(folder):
    (folder / "questions.jsonl").write_text('{"question": "1 + 1?"}\n')
    named = ["--data.dataset=lightning_modules.JSONLines", "--data.dataset.path=questions.jsonl"]
    assert resolved(*named, "--data.dataset.prompt=question").datamodule.dataset[0]["prompt"] == "1 + 1?"
    assert isinstance(resolved("--data.dataset=AdditionProblems").datamodule.dataset, AdditionProblems)
    with pytest.raises(SystemExit, match=r"`path` is 'none\.parquet', which is not a file"):
        resolved("--data.dataset=lightning_modules.Parquet", "--data.dataset.path=none.parquet")


def test_options_of_a_chat_template_are_set_and_written(folder):
    """Values of any kind, in a mapping or one by one."""
    given = ["--data.chat_template=true", "--data.system_prompt=no: yes", "--data.skip_special_tokens=true"]
    whole = resolved(*given, "--data.chat_template_kwargs={enable_thinking: false, level: low}")
    single = resolved(
        *given, "--data.chat_template_kwargs.enable_thinking=false", "--data.chat_template_kwargs.level=low"
    )
    for cli in (whole, single):
        form = cli.datamodule.prompt_format
        assert form == PromptFormat(True, "no: yes", {"enable_thinking": False, "level": "low"})
        assert cli.datamodule.skip_special_tokens
    whole.parser.save(whole.config, "saved.yaml", skip_none=False, multifile=False)
    data = yaml.safe_load((folder / "saved.yaml").read_text())["fit"]["data"]
    assert (data["system_prompt"], data["chat_template_kwargs"]["enable_thinking"]) == ("no: yes", False)
    with pytest.raises(SystemExit, match="`system_prompt` is 'a', but `chat_template` is False"):
        resolved("--data.system_prompt=a")


@pytest.mark.parametrize(
    "template", ["Q: {prompt}\nA:", "Put it in \\boxed{}. {prompt}", "lightning_modules.prompts.qwen_math"]
)
def test_a_prompt_template_is_a_text_or_the_path_of_a_function(folder, template):
    cli = resolved(f"--data.prompt_template={template}", "--data.max_prompt_length=9")
    form = cli.datamodule.prompt_format
    assert form.prompt_template == (qwen_math if template.startswith("lightning") else template)
    assert cli.datamodule.max_prompt_length == 9
    cli.parser.save(cli.config, "saved.yaml", skip_none=False, multifile=False)
    saved = yaml.safe_load((folder / "saved.yaml").read_text())["fit"]["data"]["prompt_template"]
    (folder / "again.yaml").write_text(yaml.safe_dump({"data": {"prompt_template": saved}}))
    assert resolved("--config=again.yaml").datamodule.prompt_format == form


def test_a_prompt_template_without_a_place_for_the_prompt_is_refused(folder):
    with pytest.raises(
        SystemExit, match=r"`prompt_template` is 'lightning_modules\.prompts\.qwen', which has no {prompt}"
    ):
        resolved("--data.prompt_template=lightning_modules.prompts.qwen")


def test_a_data_file_is_written_into_the_configuration_as_its_path(folder):
    (folder / "trap.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    cli = resolved("--data.dataset=trap.jsonl", "--data.validation=trap.jsonl")
    cli.parser.save(cli.config, "saved.yaml", skip_none=False, multifile=False)
    saved = yaml.safe_load((folder / "saved.yaml").read_text())
    assert (saved["fit"]["data"]["dataset"], saved["fit"]["data"]["validation"]) == ("trap.jsonl", "trap.jsonl")
    assert {path.name for path in folder.iterdir()} == {"saved.yaml", "trap.jsonl", "trap.py"}
