"""The base classes: each docstring says what a subclass must and may do, and the page on them leaves none out."""

from pathlib import Path

import pytest

import aggregate_po as core
from lightning_modules import (
    MicroBatchObserver,
    PromptDataset,
    RolloutObserver,
    SamplingScheme,
    SequenceLayout,
    SpanRule,
)
from lightning_modules.model.policy import ModelSource
from lightning_modules.rollouts import RolloutEngine
from lightning_modules.rollouts.servers.weight_channels import WeightChannel

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"
DOCUMENTED = [
    core.TokenAggregator,
    core.PrefixAggregate,
    core.SuffixWeight,
    core.RatioTransform,
    core.ExponentRule,
    core.GroupObjective,
    core.Normalizer,
    core.Penalty,
    core.AdvantageEstimator,
    core.SamplerCorrection,
    SequenceLayout,
    PromptDataset,
    SamplingScheme,
    SpanRule,
    RolloutObserver,
    MicroBatchObserver,
    ModelSource,
    RolloutEngine,
    WeightChannel,
]


def requirements(base):
    """The section of the docstring, in which each base class says what it asks of a subclass."""
    return (base.__doc__ or "").partition("Subclass requirements:\n")[2]


@pytest.mark.parametrize("base", DOCUMENTED, ids=lambda base: base.__name__)
def test_docstring_names_every_method_that_a_subclass_must_implement(base):
    abstract = getattr(base, "__abstractmethods__", frozenset())
    assert [name for name in sorted(abstract) if f"`{name}`" not in requirements(base)] == []
    assert "- Implement " in requirements(base)


@pytest.mark.parametrize("base", DOCUMENTED, ids=lambda base: base.__name__)
def test_docstring_names_every_method_that_a_subclass_may_override(base):
    own = [name for name, member in vars(base).items() if callable(member) or isinstance(member, property)]
    public = [name for name in own if not name.startswith("_")]
    assert [name for name in public if f"`{name}`" not in requirements(base)] == []


def test_the_page_has_a_section_for_every_base_class():
    headings = {line.removeprefix("### ") for line in PAGE.read_text(encoding="utf-8").splitlines()}
    names = {base.__name__ for base in DOCUMENTED} | {"Reward"}
    assert names <= headings
