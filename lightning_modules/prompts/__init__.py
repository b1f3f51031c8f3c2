"""Sources of prompts, and their order in training."""

from lightning_modules.prompts.base import Example, PromptDataset
from lightning_modules.prompts.json_lines import JSONLines, examples_of
from lightning_modules.prompts.order import PromptOrder
from lightning_modules.prompts.stream import Prompt, PromptStream

__all__ = ["Example", "JSONLines", "Prompt", "PromptDataset", "PromptOrder", "PromptStream", "examples_of"]
