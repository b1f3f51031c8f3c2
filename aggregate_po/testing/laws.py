"""Statement, test and failure report of a property, which the code calls a law."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.strategies import SearchStrategy
from typing_extensions import override

from aggregate_po.testing.reports import LawBroken, described


@dataclass(frozen=True)
class _Law:
    """Body and inputs of a property test."""

    body: Callable[..., None]
    inputs: dict[str, Any]
    claimed_by: type | tuple[type, ...]
    claimed: str | None
    together: bool

    def applies(self, part: object) -> bool:
        """Return whether a part claims to have the property."""
        return isinstance(part, self.claimed_by) and (self.claimed is None or bool(getattr(part, self.claimed)))

    @property
    def claim(self) -> str:
        """Claim of the parts that must have the property."""
        kinds = self.claimed_by if isinstance(self.claimed_by, tuple) else (self.claimed_by,)
        kind = f"be a {' or '.join(kind.__name__ for kind in kinds)}"
        return kind if self.claimed is None else f"{kind} with `{self.claimed}`"


def law(
    claimed_by: type | tuple[type, ...] = object, claimed: str | None = None, together: bool = False, **inputs: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a method that checks a property of its arguments into a test that generates the arguments.

    The docstring states the property in one sentence. The body raises an AssertionError if the property does not hold,
    and may call `hypothesis.assume`.

    Args:
        claimed_by: class of parts, or several classes, that must have the property.
        claimed: attribute that is True on parts that must have the property; None means all.
        together: True for a property of several completions, whose report shows all of them and not one.
        inputs: hypothesis strategy for each argument, or a function that returns one for a contract.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        stated = _Law(body, inputs, claimed_by, claimed, together)

        def test(self: Contract) -> None:
            self._hold(body.__name__, stated)

        # Not functools.wraps: pytest would follow `__wrapped__` and treat the inputs as fixtures.
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(test, name, getattr(body, name))
        test.law = stated  # type: ignore[attr-defined]
        return test

    return decorate


class Contract:
    """Properties of one kind of part, as test methods; each subclass is for one kind.

    Every property is a method `test_...` that a test runner collects from a subclass. To disable one that a part does
    not have by design, set `test_that_property = None`. Examples follow the active hypothesis profile, except for its
    deadline, which is disabled.

    Attributes:
        settings: hypothesis settings of all properties; None means the active profile.
    """

    settings: ClassVar[hypothesis.settings | None] = None

    _attribute: ClassVar[str]
    _kind: ClassVar[type]
    # If one of these fails, failures of the other properties have the same cause.
    _first: ClassVar[tuple[str, ...]] = ("test_shapes",)

    @property
    def part(self) -> Any:
        """Instance under test.

        Raises:
            TypeError: the subclass does not set an instance of the right kind.
        """
        part = getattr(self, self._attribute, None)
        if not isinstance(part, self._kind):
            raise TypeError(
                f"`{type(self).__name__}.{self._attribute}` is {part!r}; give it an instance of a subclass of "
                f"aggregate_po.{self._kind.__name__}."
            )
        return part

    @classmethod
    def laws(cls) -> dict[str, str]:
        """Return the property of each enabled test method; first those on which the others depend."""
        names = dict.fromkeys(name for name in (*cls._first, *dir(cls)) if name.startswith("test_"))
        methods = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
        return {name: _sentence(method) for name, method in methods.items() if hasattr(method, "law")}

    def applies(self, name: str) -> bool:
        """Return whether the part must have the property of this name."""
        stated: _Law = getattr(type(self), name).law
        return stated.applies(self.part)

    def _hold(self, name: str, law: _Law) -> None:
        part = self.part
        if not self.applies(name):
            raise SkipTest(f"{part!r} does not claim to {law.claim}")
        strategies = {
            argument: strategy if isinstance(strategy, SearchStrategy) else strategy(self)
            for argument, strategy in law.inputs.items()
        }

        def example(inputs: dict[str, Any]) -> None:
            broken = None
            try:
                law.body(self, **inputs)
            except (HypothesisException, SkipTest):
                raise
            except LawBroken as found:
                broken = found
            except Exception as error:
                broken = LawBroken(f"{type(error).__name__}: {error}")
                broken.__cause__ = error
            if broken is not None:
                row = None if law.together else broken.row
                heading = f"{part!r} fails {name.removeprefix('test_')}: {_sentence(law.body)}"
                report = _report(heading, broken, inputs, row)
                raise AssertionError(report) from broken.__cause__

        # Separates the properties in the example database of hypothesis, which identifies functions by source.
        example._hypothesis_internal_add_digest = f"{type(self).__qualname__}.{name}".encode()  # type: ignore[attr-defined]
        _settings(self.settings)(given(st.fixed_dictionaries(strategies))(example))()


class KeptLaws(list[str]):
    """Names of the properties that hold for a part; `repr` lists them with their descriptions."""

    def __init__(self, part: object, laws: dict[str, str]) -> None:
        super().__init__(laws)
        self._part = part
        self._laws = laws

    @override
    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0)
        lines = [f"  {name:<{width}}  {sentence}" for name, sentence in self._laws.items()]
        return "\n".join([f"{self._part!r} has {len(self)} properties:", *lines])


def check(
    contract: type[Contract], part: object, skip: Iterable[str] = (), examples: int | None = None, **attributes: Any
) -> KeptLaws:
    """Check all properties of a contract outside a test runner.

    Args:
        contract: class of property tests.
        part: instance to test.
        skip: names of properties not to check.
        examples: number of inputs per property; None means the number in the active hypothesis profile.
        attributes: attributes of the contract to change, such as `rounding`.

    Raises:
        AssertionError: properties do not hold; the message has a counterexample for each, or for the first only if the
            others depend on it.
        TypeError: the contract has no such attribute or property, or the part is of another kind.
    """
    skipped = [name.removeprefix("test_") for name in skip]
    unknown = [name for name in attributes if not hasattr(contract, name)]
    unknown += [name for name in skipped if not hasattr(contract, f"test_{name}")]
    if unknown:
        raise TypeError(f"{contract.__name__} has no {', '.join(unknown)}; see its attributes and `laws()`.")
    chosen = contract.settings or hypothesis.settings()
    chosen = hypothesis.settings(chosen, max_examples=examples or chosen.max_examples, database=None)
    members = {contract._attribute: part, "settings": chosen, **attributes}
    members |= {f"test_{name}": None for name in skipped}
    instance = type(contract.__name__, (contract,), members)()
    part = instance.part
    kept: dict[str, str] = {}
    broken: list[str] = []
    for name, sentence in instance.laws().items():
        if not instance.applies(name):
            continue
        try:
            getattr(instance, name)()
        except SkipTest:
            continue
        except Exception as error:
            broken.append("\n".join([str(error), *(str(member) for member in getattr(error, "exceptions", ()))]))
            if name in contract._first:
                raise AssertionError(f"{part!r} fails a property on which the others depend.\n\n{broken[0]}") from None
        else:
            kept[name.removeprefix("test_")] = sentence
    if broken:
        heading = f"{part!r} fails {len(broken)} of {len(broken) + len(kept)} properties."
        raise AssertionError("\n\n".join([heading, *broken]))
    return KeptLaws(part, kept)


def _settings(chosen: hypothesis.settings | None) -> hypothesis.settings:
    chosen = hypothesis.settings() if chosen is None else chosen
    return hypothesis.settings(
        chosen,
        deadline=None,
        suppress_health_check=[*chosen.suppress_health_check, HealthCheck.too_slow],
        # The report already shows the input; hypothesis would repeat it as nested dataclasses.
        verbosity=Verbosity.quiet if chosen.verbosity == Verbosity.normal else chosen.verbosity,
        # The lines of this package that were executed explain nothing.
        phases=[phase for phase in chosen.phases if phase != Phase.explain],
        report_multiple_bugs=False,
        print_blob=False,
    )


def _sentence(method: Callable[..., None]) -> str:
    return " ".join((method.__doc__ or method.__name__).split())


def _report(heading: str, broken: LawBroken, inputs: dict[str, Any], row: int | None) -> str:
    lines = [heading, textwrap.indent(broken.finding, "  ")]
    if inputs:
        lines += ["  on the input", textwrap.indent(described(inputs, row, broken.rows), "    ")]
    return "\n".join(lines)
