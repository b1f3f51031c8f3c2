"""What the API pages change in docstrings before they are rendered; mkdocs.yml names this file."""

import re
from typing import Any

import griffe

CHANGES = [
    # Griffe knows the plural only, and would show the prompts `>>>` as quotations.
    (r"^Example:$", "Examples:"),
    # A section that griffe does not know would fold up; the title looks like that of the others.
    (r"^Gradient weight:\n +(\$.+\$)$", r'<span class="doc-section-title">Gradient weight:</span> \1'),
    (r"\(eq\. (\d+)\)", r"([eq. \1][eq-\1])"),
    (r"\barXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)"),
]


class Docstrings(griffe.Extension):
    """Doctests under `Example:` become code, formulas of recipes a section, equations and papers links.

    An overriding method without a docstring shows that of the method that it overrides.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object as it is read."""
        if obj.docstring is not None:
            for pattern, replacement in CHANGES:
                obj.docstring.value = re.sub(pattern, replacement, obj.docstring.value, flags=re.MULTILINE)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Complete the docstrings once all classes of a package and their bases are known."""
        inherit_docstrings(pkg)


def inherit_docstrings(module: griffe.Module | griffe.Class) -> None:
    """Give each overriding method without a docstring that of the nearest base class that has one."""
    for name, member in module.members.items():
        if member.is_alias:
            continue
        if member.is_module or member.is_class:
            inherit_docstrings(member)
        elif module.is_class and member.docstring is None:
            inherited = (base.members[name].docstring for base in module.mro() if name in base.members)
            member.docstring = next((docstring for docstring in inherited if docstring is not None), None)
