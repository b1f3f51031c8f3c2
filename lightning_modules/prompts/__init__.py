"""Sources of prompts, and their order in training."""

from lightning_modules.prompts.base import Example, PromptDataset
from lightning_modules.prompts.json_lines import JSONLines
from lightning_modules.prompts.order import PromptOrder
from lightning_modules.prompts.parquet import Parquet
from lightning_modules.prompts.sources import PromptFile, examples_of
from lightning_modules.prompts.stream import Prompt, PromptStream

__all__ = [
    "Example",
    "JSONLines",
    "Parquet",
    "Prompt",
    "PromptDataset",
    "PromptFile",
    "PromptOrder",
    "PromptStream",
    "examples_of",
]
