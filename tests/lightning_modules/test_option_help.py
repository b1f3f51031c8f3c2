"""`--help`: of each subcommand, of each class and function that an option can name; every option is explained."""

import inspect
import re
import sys

import docstring_parser.google
import pytest

import aggregate_po
import lightning_modules
from aggregate_po import advantages, recipes
from lightning_modules import flow, rollouts
from lightning_modules.__main__ import main
from lightning_modules.flow import mixture
from lightning_modules.option_help import help_of_import_path

# What parts receive and return, which no option names.
RECORDS = {"CorrectionWeights", "Completions", "Evaluated", "GradientWeights", "GroupedRewards", "PolicyBatch"}
RECORDS |= {"CompletionValues", "GroupTerms", "GroupValues", "SamplingParameters", "StepTotals", "TokenRatios"}
RECORDS |= {"StepCoefficients", "Trajectories", "Transition"}
OWN = {"model", "data", "report", "checkpoint", "device_memory", "prompt_length"}


def printed(capsys, *arguments):
    """Standard output of a command line, which must end with status 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aggregate-po", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def parts():
    """Every concrete class and every recipe that a configuration can name, by its import path."""
    found = {}
    for package in (aggregate_po, advantages, recipes, lightning_modules, rollouts, flow, mixture):
        for name in package.__all__:
            part = getattr(package, name)
            is_part = inspect.isclass(part) and not inspect.isabstract(part) and name not in RECORDS
            if is_part or package is recipes:
                found[f"{package.__name__}.{name}"] = part
    return found


def explained(part):
    """Arguments of a class or function with their texts, from its docstring or from that of its base."""
    texts = {}
    for owner in reversed(inspect.getmro(part)) if inspect.isclass(part) else [part]:
        entries = docstring_parser.google.parse(owner.__doc__ or "").params
        texts |= {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}
    return texts


@pytest.mark.parametrize("part", parts().values(), ids=parts().keys())
def test_every_option_of_a_part_is_explained(part):
    texts = explained(part)
    for name, parameter in inspect.signature(part).parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert re.match(r"[A-Z$0-9]", texts.get(name, "")), f"{name}: {texts.get(name)}"
            assert texts[name].endswith("."), f"{name}: {texts[name]}"


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_has_help(name):
    text = help_of_import_path(["fit", "--model.objective.help", f"aggregate_po.recipes.{name}"])
    for option in inspect.signature(getattr(recipes, name)).parameters:
        assert re.search(rf"--model\.objective\.{option}\b", text)


def test_the_command_line_prints_it(capsys):
    text = printed(capsys, "fit", "--model.objective.help=aggregate_po.recipes.gmpo")
    assert "Geometric mean of token ratios" in text
    assert "--model.objective.log_clip LOG_CLIP\n" in text
    assert "(type: float, default: 0.4)" in text


def test_a_class_without_options_is_explained_by_its_docstring():
    text = help_of_import_path(["--data.advantages.help", "aggregate_po.advantages.GroupCentered"])
    assert "Rewards minus the group mean" in text
    assert "It has no options." in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.objective.help"],
        ["--model.objective.help", "aggregate_po.PolicyObjective"],  # the parser explains it
        ["--model.objective.help", "aggregate_po.recipes.none"],
        ["--model.objective.help", "no path"],
        ["--model.objective.help", "os.path.join"],
        ["--model.objective.help", "int"],
        ["--model.objective", "aggregate_po.recipes.gmpo", "--help"],
    ],
)
def test_the_parser_is_asked_otherwise(arguments):
    assert help_of_import_path(["fit", *arguments]) is None


def test_an_own_recipe_has_help(tmp_path, monkeypatch):
    (tmp_path / "own_recipes.py").write_text(
        "from aggregate_po import PolicyObjective, PowerMean\n\n\n"
        "def own(order: float = 2.0) -> PolicyObjective:\n"
        '    """Power mean without a clip.\n\n    Args:\n        order: Order of the mean.\n    """\n'
        "    return PolicyObjective(PowerMean(order))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = help_of_import_path(["fit", "--model.objective.help", "own_recipes.own"])
    assert "Power mean without a clip:" in text
    assert "Order of the mean. (type: float, default: 2.0)" in " ".join(text.split())


def test_a_file_that_fails_is_left_to_the_parser(tmp_path, monkeypatch):
    (tmp_path / "broken_recipes.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert help_of_import_path(["--model.objective.help", "broken_recipes.own"]) is None


@pytest.mark.parametrize("command", ["fit", "validate", "plan"])
def test_every_option_of_a_command_is_explained(command, capsys):
    """Lightning explains those of the trainer."""
    options = re.split(r"\n +(?=--)", printed(capsys, command, "--help").partition("\noptions:")[2])[1:]
    texts = dict(re.match(r"--([\w.]+)[^\n]*?(?:\n| {2,})(.*)", option, re.DOTALL).groups() for option in options)
    own = {name: text for name, text in texts.items() if name.split(".")[0] in OWN}
    assert len(own) > 30
    assert (command == "plan") == ("prompt_length" in own)
    for name, text in own.items():
        sentence = " ".join(re.split(r"\((?:required|type|default)\b", text)[0].split())
        assert re.match(r"[A-Z].*\.", sentence), f"{name}: {sentence}"


def test_every_option_of_an_evaluation_is_explained(capsys):
    options = re.split(r"\n +(?=--)", printed(capsys, "evaluate", "--help").partition("\noptions:")[2])[1:]
    texts = dict(re.match(r"--([\w.]+)[^\n]*?(?:\n| {2,})(.*)", option, re.DOTALL).groups() for option in options)
    assert {"model", "benchmarks", "output", "samples", "temperature", "top_p", "reward", "rollouts"} < texts.keys()
    for name, text in texts.items():
        sentence = " ".join(re.split(r"\((?:required|type|default)\b", text)[0].split())
        assert name.endswith("help") or re.match(r"[A-Z].*\.", sentence), f"{name}: {sentence}"


def test_evaluate_has_help(capsys):
    text = printed(capsys, "evaluate", "--help")
    assert "Evaluate the exported model of a finished run" in text
    assert "Folder of the finished run" in text


@pytest.mark.parametrize("arguments", [[], ["--data.group_size", "4"]])
def test_evaluate_asks_for_a_run(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aggregate-po", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "RUN" in capsys.readouterr().err


def test_only_what_works_is_a_subcommand(capsys):
    """There is neither a test set nor anything to predict."""
    assert "{fit,validate}" in printed(capsys, "--help")
