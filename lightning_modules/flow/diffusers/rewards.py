"""Rewards of images that need no further model."""

from __future__ import annotations

import io
from typing import Any

from lightning_modules.prompts import Example

_QUALITY = 95  # of the paper


def compressibility(image: Any, example: Example) -> float:
    """Return minus the size of an image as JPEG of quality 95, in kilobytes; it is highest for a flat image.

    The sizes of images of different height or width cannot be compared.

    Args:
        image: PIL image.
        example: example of the image, which is not read.

    Reference: Black et al. (2023), arXiv:2305.13301.
    """
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=_QUALITY)
    return -len(content.getvalue()) / 1000
