"""Sources of prompts, and their order in training."""

from lightning_modules.prompts.base import Example, PromptDataset
from lightning_modules.prompts.format import PromptFormat, PromptTemplate
from lightning_modules.prompts.hub import HubDataset
from lightning_modules.prompts.json_lines import JSONLines
from lightning_modules.prompts.limits import SequenceLimits
from lightning_modules.prompts.mixture import Mixture
from lightning_modules.prompts.order import Candidate, CandidateStage, PromptOrder
from lightning_modules.prompts.parquet import Parquet
from lightning_modules.prompts.reasoning_gym import ReasoningGym
from lightning_modules.prompts.sources import PromptFile, PromptSource, examples_of
from lightning_modules.prompts.stream import Prompt, PromptStream
from lightning_modules.prompts.templates import qwen_math, r1_zero
from lightning_modules.prompts.tokenization import PromptTokenizer

__all__ = [
    "Candidate",
    "CandidateStage",
    "Example",
    "HubDataset",
    "JSONLines",
    "Mixture",
    "Parquet",
    "Prompt",
    "PromptDataset",
    "PromptFile",
    "PromptFormat",
    "PromptOrder",
    "PromptSource",
    "PromptStream",
    "PromptTemplate",
    "PromptTokenizer",
    "ReasoningGym",
    "SequenceLimits",
    "examples_of",
    "qwen_math",
    "r1_zero",
]
