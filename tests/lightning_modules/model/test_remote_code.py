"""Models that bring code: nothing asks, nothing runs, and the error says so, wherever a model is loaded."""

import ast
import builtins
import json
import os
import pickle
import pty
import select
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, dynamic_module_utils

from aggregate_po.recipes import grpo
from lightning_modules import PolicyModule
from lightning_modules.memory.fake import Description
from lightning_modules.model.policy import Policy
from lightning_modules.model.remote_code import RemoteCodeError, remote_code_refused
from lightning_modules.planning.source import described
from tests.lightning_modules.training import quiet_trainer, small_data

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model", "AutoModel": "theirs.Model"}
TOKENIZER = {"AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"]}


@pytest.fixture(autouse=True)
def answer(monkeypatch):
    """Someone at the terminal who says yes to everything."""
    monkeypatch.setattr(builtins, "input", lambda question="": "y")


class CodeFolder:
    """A copy of a model with a file of code, which leaves a mark where it runs."""

    def __init__(self, path, model):
        shutil.copytree(model, path)
        self.path, self.mark = path, path.parent / f"{path.name} ran"
        code = f"""
            from pathlib import Path
            from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
            Path({str(self.mark)!r}).touch()
            class Config(Qwen2Config):
                model_type = "theirs"
            class Model(Qwen2ForCausalLM):
                config_class = Config
            class Tokenizer(PreTrainedTokenizerFast):
                pass
            def generate(model, **options):
                return model.generate(**options)
        """
        self.code = "\n".join(line[12:] for line in code.splitlines())
        (path / "theirs.py").write_text(self.code)

    def edit(self, file, **values):
        path = self.path / file
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | values))


def own_architecture(folder):
    folder.edit("config.json", model_type="theirs", auto_map=CLASSES | TOKENIZER)


def own_tokenizer(folder):
    folder.edit("config.json", model_type="theirs")
    folder.edit("tokenizer_config.json", tokenizer_class="Theirs", auto_map=TOKENIZER)


def own_tokenizer_of_a_known_model(folder):
    """A type of model for which transformers lists no tokenizer."""
    folder.edit("config.json", model_type="llama")
    folder.edit("tokenizer_config.json", tokenizer_class="Theirs", auto_map=TOKENIZER)


def own_part(folder):
    """A model that transformers knows, and within it one that it knows by its configuration alone."""
    part = {"model_type": "trocr", "d_model": 32, "decoder_layers": 1, "vocab_size": 271}
    part["auto_map"] = {"AutoModel": f"{folder.path}--theirs.Model"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 271}
    (folder.path / "config.json").write_text(json.dumps({"model_type": "fuyu", "text_config": part, **sizes}))


def adapter_of_such_a_model(folder):
    base = CodeFolder(folder.path.parent / "base", folder.path)
    own_architecture(base)
    folder.mark = base.mark
    (folder.path / "config.json").unlink()
    folder.edit(
        "adapter_config.json", base_model_name_or_path=str(base.path), peft_type="LORA", target_modules=["q_proj"]
    )


REFUSED = [own_architecture, own_tokenizer, own_tokenizer_of_a_known_model, own_part, adapter_of_such_a_model]


@pytest.fixture
def folder_of(tmp_path, model_folder):
    def make(change):
        folder = CodeFolder(tmp_path / "brought", model_folder)
        change(folder)
        return folder

    return make


@pytest.mark.parametrize("change", REFUSED)
def test_code_that_a_model_needs_is_refused_without_a_question(folder_of, change):
    folder = folder_of(change)
    with pytest.raises(RemoteCodeError, match=r"comes with Python code of its own .* never run; pass a model") as error:
        Policy(str(folder.path)).load()
    assert "trust_remote_code" not in str(error.value)  # it is no remedy here
    assert not folder.mark.exists()


@pytest.mark.parametrize("change", [own_architecture, own_tokenizer_of_a_known_model])
def test_a_plan_refuses_the_same(folder_of, change):
    folder = folder_of(change)
    with pytest.raises(RemoteCodeError, match="comes with Python code of its own"):
        described(str(folder.path))
    assert not folder.mark.exists()


def test_a_plan_refuses_it_in_a_part_of_the_model(folder_of):
    folder = folder_of(own_part)
    config, _ = described(str(folder.path))
    with pytest.raises(RemoteCodeError):
        Description(config).model()
    assert not folder.mark.exists()


def code_beside_a_known_model(folder):
    folder.edit("config.json", auto_map=CLASSES | TOKENIZER)
    folder.edit("tokenizer_config.json", auto_map=TOKENIZER)


def own_generation(folder):
    (folder.path / "custom_generate").mkdir()
    (folder.path / "custom_generate" / "generate.py").write_text(folder.code)
    folder.edit("generation_config.json", custom_generate=str(folder.path))


@pytest.mark.parametrize("change", [code_beside_a_known_model, own_generation])
def test_code_that_a_model_can_do_without_is_not_run(folder_of, change):
    folder = folder_of(change)
    policy = Policy(str(folder.path))
    policy.load()
    policy.keep_reference()
    assert (
        type(policy.model).__module__ == type(policy.reference).__module__ == "transformers.models.qwen2.modeling_qwen2"
    )
    assert type(policy.tokenizer).__module__.startswith("transformers.")
    described(str(folder.path))
    assert not folder.mark.exists()


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled_weights(folder):
    (folder.path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(folder.mark)}, folder.path / "pytorch_model.bin")


def pickled_adapter(folder):
    folder.edit("adapter_config.json", base_model_name_or_path="", peft_type="LORA", target_modules=["q_proj"], r=1)
    torch.save({"base_model.model.x": Payload(folder.mark)}, folder.path / "adapter_model.bin")


@pytest.mark.parametrize("change", [pickled_weights, pickled_adapter])
def test_pickled_weights_run_nothing(folder_of, change):
    folder = folder_of(change)
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError, RuntimeError)):
        Policy(str(folder.path)).load()
    assert not folder.mark.exists()


def test_a_checkpoint_in_a_file_runs_nothing(model_folder, tmp_path):
    """As `fit --ckpt_path` reads it."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": Payload(mark)}, tmp_path / "theirs.ckpt")
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        trainer.fit(PolicyModule(model_folder, grpo()), small_data(), ckpt_path=str(tmp_path / "theirs.ckpt"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.mkdir(mark) }}"]
)
def test_a_chat_template_is_confined(folder_of, template):
    folder = folder_of(lambda folder: folder.edit("tokenizer_config.json", chat_template=template))
    (folder.path / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False)
    with pytest.raises(Exception, match=r"unsafe|undefined"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], mark=str(folder.mark))
    assert not folder.mark.exists()


def test_other_errors_and_later_loads_are_as_they_were():
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(ValueError, match="another") as error, remote_code_refused("x"):
        raise ValueError("another")
    assert not isinstance(error.value, RemoteCodeError)
    assert seconds == dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0


LOADED = [
    path
    for folder in ("lightning_modules", "aggregate_po", "experiments")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", LOADED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_load_says_that_remote_code_is_not_trusted(path):
    """`from_pretrained` and `from_config` of the classes that would run code."""
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if getattr(call.func, "attr", "").startswith("from_") and owner.startswith("Auto"):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("trust_remote_code") == "False", ast.unparse(call)


# On a terminal


def on_terminal(command, answers=b"y\n" * 8, seconds=120):
    """Run a command on a terminal with these answers typed in; return its status and all that it wrote."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(command[0], command, {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    os.write(terminal, answers)
    written = b""
    while select.select([terminal], [], [], seconds)[0]:
        try:
            written += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), written.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("subcommand", ["fit", "plan", "evaluate"])
def test_no_command_asks_on_a_terminal(folder_of, tmp_path, subcommand):
    folder = folder_of(own_architecture)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1+1", "answer": "2"}\n')
    options = [
        "--model.objective",
        "aggregate_po.recipes.grpo",
        "--data.dataset",
        str(data),
        "--data.max_completion_length",
        "4",
    ]
    options += ["--data.reward", "lightning_modules.rewards.boxed_answer", "--trainer.accelerator", "cpu"]
    options += ["--model.model_name", str(folder.path), "--trainer.default_root_dir", str(tmp_path / "run")]
    if subcommand == "evaluate":
        run = tmp_path / "run"
        run.mkdir()
        shutil.copytree(folder.path, run / "model")
        shutil.copy(ROOT / "experiments" / "configs" / "addition.yaml", run / "config.yaml")
        options = [str(run)]
    status, written = on_terminal([sys.executable, "-m", "lightning_modules", subcommand, *options])
    assert status != 0
    assert "comes with Python code of its own" in written
    assert "[y/N]" not in written
    assert not folder.mark.exists()
