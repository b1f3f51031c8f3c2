"""Error messages of the command line's options: what concerns the value, and a remedy."""

from __future__ import annotations

import difflib
import re
import textwrap
from argparse import ArgumentParser
from collections.abc import Container, Iterator, Sequence

_REMEDY = (
    "Pass the import path of a class or function, such as aggregate_po.recipes.gmpo; your own file must be in the "
    "working folder or be installed."
)
_LIST = "Pass a list, such as '[A, B]', or append a value by `+=`, as in `--data.schemes+=A`."
_ABSTRACT = "Name a class first, as the value of the option itself; its own options follow."
# The message of an option whose value may be of several types: one error for each, of which few concern the value.
_SEVERAL = re.compile(
    r"Does not validate against any of the Union subtypes\n *Subtypes: .*\n *Errors:\n(?P<errors>(?: *- .*\n|  .*\n)*?)"
    r" *Given value type: .*(?:\n *Given value: .*)?"
)
_OF_ANOTHER_TYPE = ("Expected a", "Not of type", "Type ")


def explained(message: str, parser: ArgumentParser) -> str:
    """Return an error message of a parser with a remedy, and without what does not concern the value.

    Args:
        message: the message.
        parser: parser of the command line, or of a class or function.
    """
    message = concerning_the_value(message)
    if re.fullmatch("Option '[^']*' is not accepted", message):
        # Each class or function has its own parser, which knows the accepted options.
        options = [action.dest for action in parser._actions if action.dest.split(".")[-1] != "help"]
        message += f"; pass one of {', '.join(options)}" if options else "; there are no options"
    if re.search("No module named|has no attribute|No \\S+ attribute|Expected a dot import path", message):
        # The parser of an outer class repeats the message of an inner one.
        message = "\n".join([*(line for line in message.splitlines() if line.strip() != _REMEDY), _REMEDY])
    if "Expected a <class 'collections.abc.Sequence'>" in message:
        message += f"\n{_LIST}"
    if "is abstract" in message:
        message += f"\n{_ABSTRACT}"
    if unknown := re.match(r"unrecognized arguments: (--[\w.-]+)", message):
        alike = difflib.get_close_matches(unknown[1], list(_options(parser)), n=1)
        message += f"; did you mean {alike[0]}?" if alike else ""
    if missing := re.fullmatch(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", message):
        message += f"; pass {' '.join(_usage(missing[1].split(', '), set(_options(parser))))}"
    return message


def _usage(names: Sequence[str], options: Container[str]) -> Iterator[str]:
    """Yield how each argument is given, most of them as options without the name of the subcommand."""
    for name in names:
        ways = (f"--{name}", f"--{name.partition('.')[2]}")
        option = next((way for way in ways if way in options), None)
        yield f"{option} VALUE" if option else name.upper()


def _options(parser: ArgumentParser) -> Iterator[str]:
    """Yield the names of the options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if action.dest == "subcommand" and isinstance(action.choices, dict):
            for subparser in action.choices.values():
                yield from _options(subparser)


def concerning_the_value(message: str) -> str:
    """Return an error message of the parser without the types that the value of an option has nothing to do with.

    A value may be the path of a file, a class with its options, or a list, and the parser says of each why it is not
    that. Where the value names a class or function, the reason is the error of that class or function alone.
    """
    return _SEVERAL.sub(_own_errors, message)


def _own_errors(match: re.Match[str]) -> str:
    items: list[str] = []
    for line in textwrap.dedent(match["errors"]).splitlines():
        if line.startswith("- "):
            items.append(line.removeprefix("- "))
        elif items:
            items[-1] += "\n" + line.removeprefix("  ")
    own = dict.fromkeys(item for item in items if not item.startswith(_OF_ANOTHER_TYPE))
    return "\n".join(own) or match[0]
