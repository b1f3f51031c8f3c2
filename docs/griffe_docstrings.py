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
    """Doctests under `Example:` become code, formulas of recipes a section, equations and papers links."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object as it is read."""
        if obj.docstring is not None:
            for pattern, replacement in CHANGES:
                obj.docstring.value = re.sub(pattern, replacement, obj.docstring.value, flags=re.MULTILINE)
