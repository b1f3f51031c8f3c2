"""Names of the arguments that a chat template reads."""

from __future__ import annotations

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser
from typing_extensions import override


class _Generation(Extension):
    """Tag `{% generation %}` of Transformers around the messages of the assistant, read as its content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it for an instance

    @override
    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def names_read(template: str) -> set[str]:
    """Return the names that a chat template reads from outside, without loop variables, literal text and the like.

    Raises:
        ValueError: the template cannot be parsed.
    """
    environment = Environment(extensions=[_Generation, loopcontrols])
    environment.globals["raise_exception"] = None  # a function that Transformers gives to every template
    try:
        return find_undeclared_variables(environment.parse(template))
    except TemplateError as error:
        raise ValueError(f"the chat template cannot be parsed ({error}); correct it, or pass another model.") from None
