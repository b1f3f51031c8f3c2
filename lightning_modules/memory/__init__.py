"""What it takes to say how much memory something needs without running it: below the engines, which say so."""

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
