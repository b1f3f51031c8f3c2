"""What memory a training will take, before any weights are loaded."""

from lightning_modules.planning.live_memory import LiveMemory
from lightning_modules.planning.memory import PHASES, Entry, MemoryPlan, ModelSizes, PassSizes, Sharding, memory_plan

__all__ = ["PHASES", "Entry", "LiveMemory", "MemoryPlan", "ModelSizes", "PassSizes", "Sharding", "memory_plan"]
