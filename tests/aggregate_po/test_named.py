"""Objectives by name and by import path."""

import pytest
import torch

from aggregate_po import GeometricMean, PolicyBatch, PolicyObjective, objective_of, recipes

UNFINISHED = GeometricMean()
FINISHED = PolicyObjective(GeometricMean())


def with_penalty(log_clip: float = 0.3) -> PolicyObjective:
    return recipes.gmpo(log_clip)


class Configured:
    """An object that makes objectives when it is called."""

    def __call__(self) -> PolicyObjective:
        return FINISHED


CONFIGURED = Configured()
HERE = "tests.aggregate_po.test_named"
OPTIONAL_ARGUMENTS = sorted(set(recipes.__all__) - {"dr_grpo", "fspo", "grpo_guard"})


def value(objective):
    log_probs = torch.tensor([[0.6, -0.5, 0.2]], dtype=torch.float64)
    batch = PolicyBatch(torch.zeros_like(log_probs), torch.ones(1, 3), torch.ones(1, dtype=torch.float64))
    return objective(log_probs, batch).item()


@pytest.mark.parametrize("name", OPTIONAL_ARGUMENTS)
def test_every_recipe_with_defaults_has_its_name(name):
    assert repr(objective_of(name)) == repr(getattr(recipes, name)())


def test_arguments_are_those_of_the_recipe():
    assert value(objective_of("gmpo", log_clip=0.1)) == value(recipes.gmpo(0.1)) != value(recipes.gmpo())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("aggregate_po.GeometricMean", PolicyObjective(GeometricMean())),
        ("aggregate_po.recipes.gmpo", recipes.gmpo()),
        (f"{HERE}.with_penalty", recipes.gmpo(0.3)),
        (f"{HERE}.UNFINISHED", FINISHED),
        (f"{HERE}.FINISHED", FINISHED),
        (f"{HERE}.CONFIGURED", FINISHED),
    ],
)
def test_paths_lead_to_classes_functions_and_objects(path, expected):
    assert value(objective_of(path)) == value(expected)


def test_an_aggregator_of_another_package_is_an_objective():
    objective = objective_of("tests.third_party.PseudoHuberMean")
    assert (type(objective.aggregator).__name__, objective.token_transform) == ("PseudoHuberMean", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gmpoo", "`name` is 'gmpoo'; pass one of .*gmpo.*, or an import path"),
        ("nowhere.Mean", "`name` is 'nowhere.Mean', which cannot be imported: No module named 'nowhere'; pass"),
        (".Mean", "`name` is '.Mean', which cannot be imported: Empty module name; pass"),
        ("tests.third_party.NoMean", "which cannot be imported: .*NoMean"),
        ("math.tau", "`name` is 'math.tau', which gives 6.28.*; pass an objective or an aggregator"),
        ("fractions.Fraction", r"which gives Fraction\(0, 1\); pass an objective or an aggregator"),
        ("builtins.dict", "`arguments` of 'builtins.dict' are {}: no signature found"),
        ("dr_grpo", "`arguments` of 'dr_grpo' are {}: missing a required argument: 'max_completion_length'; pass"),
    ],
)
def test_what_is_no_objective_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        objective_of(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n    pass\n", r"SyntaxError: .*{file}, line 1"),
        ("\nscale = 1 / 0\n", r"ZeroDivisionError: division by zero \(raised in .*{file}, line 2\)"),
        (
            "import nowhere_at_all\n",
            r"ModuleNotFoundError: No module named 'nowhere_at_all' \(raised in .*{file}, line 1\)",
        ),
        ("import json\n\njson.loads('{{')\n", r"JSONDecodeError: .* \(raised in .*{file}, line 3\)"),
        ("def __getattr__(name):\n    raise KeyError(name)\n", r"KeyError: 'f' \(raised in .*{file}, line 2\)"),
    ],
)
def test_an_error_of_a_file_that_is_imported_names_the_file_and_the_line(tmp_path, monkeypatch, request, text, message):
    module = f"broken_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(text.replace("{{", "{"))
    monkeypatch.syspath_prepend(tmp_path)
    expected = message.replace("{file}", rf"{module}\.py")
    with pytest.raises(ValueError, match=rf"^`name` is '{module}\.f', which cannot be imported: {expected}.*; pass "):
        objective_of(f"{module}.f")


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`arguments` of 'gmpo' are \{'clip': 0.2\}: got an unexpected .*'clip'"):
        objective_of("gmpo", clip=0.2)
    with pytest.raises(ValueError, match=f"`arguments` are {{'log_clip': 0.2}}, but `name` '{HERE}.FINISHED' takes"):
        objective_of(f"{HERE}.FINISHED", log_clip=0.2)
