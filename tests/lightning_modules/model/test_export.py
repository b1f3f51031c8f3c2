"""What the export after the training needs is tried before it."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from aggregate_po.recipes import gmpo
from lightning_modules import LoRA, PolicyModule, RunReport
from lightning_modules.model import export
from lightning_modules.run_folder import lock_run_folder
from tests.lightning_modules.training import RecordingEngine, fitted, small_data


@pytest.fixture
def own_model(tmp_path, model_folder):
    """A folder of the model that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "own")


class Broken(PolicyModule):
    """Policy that `spoil` changes once it is loaded."""

    def configure_model(self):
        super().configure_model()
        self.spoil(self.policy)


def fit(folder, model, spoil=None, **options):
    engine = RecordingEngine()
    module = Broken(str(model), gmpo(), learning_rate=1e-3, **options)
    module.spoil = spoil or (lambda policy: None)
    fitted(folder, None, data=small_data(rollouts=engine), module=module, callbacks=[RunReport(0)])
    return module, engine


def generation_config(folder):
    settings = json.loads((folder / "generation_config.json").read_text())
    settings.pop("transformers_version")
    return settings


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (
            {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1},
            {"do_sample": False, "eos_token_id": 1},
        ),
        ({"temperature": 0.6, "max_length": 50, "eos_token_id": [1, 9]}, {"max_length": 50, "eos_token_id": [1, 9]}),
        ({"pad_token_id": -1, "max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"length_penalty": 2.0, "early_stopping": True}, {}),
    ],
)
def test_a_generation_config_that_transformers_would_not_save(given, kept, own_model, tmp_path):
    (own_model / "generation_config.json").write_text(json.dumps(given))
    dropped = [name for name in given if name not in kept]
    with pytest.warns(match="the trained model is saved without") as warned:
        fit(tmp_path / "run", own_model)
    text = next(str(one.message) for one in warned if "is saved without" in str(one.message))
    assert all(f"{name}={given[name]!r}" in text for name in dropped)
    assert generation_config(tmp_path / "run" / "model") == kept
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    "given", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 4, "num_return_sequences": 3}, {"eos_token_id": 1}]
)
def test_a_valid_generation_config_is_kept(given, own_model, tmp_path, recwarn):
    (own_model / "generation_config.json").write_text(json.dumps(given))
    fit(tmp_path / "run", own_model)
    assert generation_config(tmp_path / "run" / "model") == given
    assert not any("is saved without" in str(one.message) for one in recwarn)


def refuse(*arguments, **options):
    raise RuntimeError("no method to write this")


def spoil_config(policy):
    policy.model.config.extra = object()


def spoil_tokenizer(policy):
    policy.tokenizer.save_pretrained = refuse


def spoil_weights(policy):
    """Share a weight that the model's class does not know to be shared."""
    layers = policy.model.model.layers
    layers[0].self_attn.q_proj.weight = layers[1].self_attn.q_proj.weight


@pytest.mark.parametrize(
    ("spoil", "part"), [(spoil_config, "config"), (spoil_tokenizer, "tokenizer"), (spoil_weights, "weights")]
)
def test_what_cannot_be_saved_is_refused_before_anything_is_generated(spoil, part, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(RecordingEngine, "generate", lambda *arguments: pytest.fail("a completion was generated"))
    message = rf"`model_name` is '{model_folder}', whose {part} cannot be saved, (?s:.*); repair the {part} in"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", model_folder, spoil)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_adapters_are_tried_too(form, model_folder, tmp_path, monkeypatch):
    tried = []
    save = LoRA.save
    monkeypatch.setattr(
        LoRA, "save", lambda self, model, folder: (tried.append(str(folder)), save(self, model, folder))
    )
    (tmp_path / "run" / ".trial").mkdir(parents=True)  # left by a process that was killed
    fit(tmp_path / "run", model_folder, lora=LoRA(2, export=form))
    assert [".trial" in folder for folder in tried] == [True, False]
    assert not (tmp_path / "run" / ".trial").exists()


def test_the_weights_of_a_large_model_are_not_tried(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SMALL", 1000)
    monkeypatch.setattr("lightning_modules.model.policy.Policy.save_pretrained", refuse)
    policy = PolicyModule(model_folder, gmpo()).policy
    policy.load()
    export.try_export(policy, tmp_path)
    spoil_config(policy)
    with pytest.raises(ValueError, match="whose config cannot be saved"):
        export.try_export(policy, tmp_path)


def test_a_disk_without_room_is_said(model_folder, tmp_path, monkeypatch):
    policy = PolicyModule(model_folder, gmpo()).policy
    policy.load()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(export.shutil, "disk_usage", lambda folder: usage)
    with pytest.warns(match=r"has 0.0 GB free, but the model will take 0.0 GB"):
        export.try_export(policy, tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/run"])
def test_a_folder_that_cannot_be_written_to(place, model_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`trainer.default_root_dir` is '.*', where no files can be written \(.*"):
        lock_run_folder(tmp_path / place)
    policy = PolicyModule(model_folder, gmpo()).policy
    policy.load()
    with pytest.raises(ValueError, match=r"will be exported to '.*', which cannot be written to \(.*\); make"):
        export.try_export(policy, tmp_path / place)
