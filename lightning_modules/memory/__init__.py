"""Parts of a memory estimate, below the rollout engines, which answer for their own."""

from lightning_modules.memory.entries import GIB, PHASES, CachePlan, EngineMemory, Entry, Phase
from lightning_modules.memory.fake import Description, cached_numbers, traced
from lightning_modules.memory.live import LiveMemory
from lightning_modules.memory.load import SamplingLoad

__all__ = [
    "GIB",
    "PHASES",
    "CachePlan",
    "Description",
    "EngineMemory",
    "Entry",
    "LiveMemory",
    "Phase",
    "SamplingLoad",
    "cached_numbers",
    "traced",
]
