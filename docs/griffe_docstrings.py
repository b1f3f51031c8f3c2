"""What the API pages change in docstrings before they are rendered; mkdocs.yml names this file."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Doctests under `Example:` become code, and a cited equation becomes a link to the page on theory."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object as it is read."""
        if obj.docstring is not None:
            # Griffe knows the plural only, and would show the prompts `>>>` as quotations.
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\(eq\. (\d+)\)", r"([eq. \1][eq-\1])", text)
