"""How a law is stated, put to the test, and reported."""

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

from aggregate_po.testing.reports import LawBroken, described


@dataclass(frozen=True)
class _Law:
    """What stands behind a test method."""

    body: Callable[..., None]
    inputs: dict[str, Any]
    claimed_by: type | None
    together: bool


def law(
    claimed_by: type | None = None, together: bool = False, **inputs: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a method that states a law, with its inputs as arguments, into a test that draws them.

    The docstring is the law, in one sentence. The body raises an AssertionError where the law does not hold, and may
    call `hypothesis.assume`.

    Args:
        claimed_by: only parts of this class have to keep the law.
        together: the law is about several completions, so that a report shows all of them and not one.
        inputs: a hypothesis strategy for each argument, or a function that makes one from the contract.
    """

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        stated = _Law(body, inputs, claimed_by, together)

        def test(self: Contract) -> None:
            self._hold(body.__name__, stated)

        # Not functools.wraps: pytest would follow `__wrapped__`, and take the inputs for fixtures.
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(test, name, getattr(body, name))
        test.law = stated  # type: ignore[attr-defined]
        return test

    return decorate


class Contract:
    """Laws of one kind of part, as test methods; subclasses name the kind.

    Every law is a method `test_...` that a test runner finds in a subclass. A law that a part breaks on purpose is
    switched off there with `test_that_law = None`. Examples follow the active hypothesis profile, but for its deadline:
    how long an example takes is no law.

    Attributes:
        settings: hypothesis settings of all laws; those of the active profile when None.
    """

    settings: ClassVar[hypothesis.settings | None] = None

    _attribute: ClassVar[str]
    _kind: ClassVar[type]
    # Where one of these does not hold, what the other laws find has the same cause.
    _first: ClassVar[tuple[str, ...]] = ("test_shapes",)

    @property
    def part(self) -> Any:
        """The instance that is tested.

        Raises:
            TypeError: the subclass gives none of the right kind.
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
        """The law behind each test method that is not switched off; first those that the others build on."""
        names = dict.fromkeys(name for name in (*cls._first, *dir(cls)) if name.startswith("test_"))
        methods = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
        return {name: _sentence(method) for name, method in methods.items() if hasattr(method, "law")}

    def applies(self, name: str) -> bool:
        """Whether the part has to keep the law of this name."""
        claimed_by = getattr(type(self), name).law.claimed_by
        return claimed_by is None or isinstance(self.part, claimed_by)

    def _hold(self, name: str, law: _Law) -> None:
        part = self.part
        if not self.applies(name):
            raise SkipTest(f"{part!r} does not claim to be a {law.claimed_by.__name__}")  # type: ignore[union-attr]
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
                heading = f"{part!r} breaks {name.removeprefix('test_')}: {_sentence(law.body)}"
                report = _report(heading, broken, inputs, row)
                raise AssertionError(report) from broken.__cause__

        # Tells the laws apart in hypothesis' database of failures, which knows functions by their source.
        example._hypothesis_internal_add_digest = f"{type(self).__qualname__}.{name}".encode()  # type: ignore[attr-defined]
        _settings(self.settings)(given(st.fixed_dictionaries(strategies))(example))()


class KeptLaws(list[str]):
    """Names of the laws that a part keeps; prints as a list with their sentences."""

    def __init__(self, part: object, laws: dict[str, str]) -> None:
        super().__init__(laws)
        self._part = part
        self._laws = laws

    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0)
        lines = [f"  {name:<{width}}  {sentence}" for name, sentence in self._laws.items()]
        return "\n".join([f"{self._part!r} keeps {len(self)} laws:", *lines])


def check(
    contract: type[Contract], part: object, skip: Iterable[str] = (), examples: int | None = None, **attributes: Any
) -> KeptLaws:
    """Run all laws of a contract outside a test runner.

    Args:
        contract: the laws.
        part: the instance to test.
        skip: names of laws that it breaks on purpose.
        examples: inputs to try for each law; as many as the active hypothesis profile says when None.
        attributes: attributes of the contract to change, such as `rounding`.

    Raises:
        AssertionError: laws are broken; the message has all of them, each with its input, or only the first where the
            others build on it.
        TypeError: the contract has no such attribute or law, or the part is of another kind.
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
                raise AssertionError(f"{part!r} breaks a law that the others build on.\n\n{broken[0]}") from None
        else:
            kept[name.removeprefix("test_")] = sentence
    if broken:
        heading = f"{part!r} breaks {len(broken)} of {len(broken) + len(kept)} laws."
        raise AssertionError("\n\n".join([heading, *broken]))
    return KeptLaws(part, kept)


def _settings(chosen: hypothesis.settings | None) -> hypothesis.settings:
    chosen = hypothesis.settings() if chosen is None else chosen
    return hypothesis.settings(
        chosen,
        deadline=None,
        suppress_health_check=[*chosen.suppress_health_check, HealthCheck.too_slow],
        # The report has the input in words; hypothesis would add the same as nested dataclasses.
        verbosity=Verbosity.quiet if chosen.verbosity == Verbosity.normal else chosen.verbosity,
        # Which lines of this package were run explains nothing.
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
