"""The memory that a training takes, before any weights are loaded."""

from lightning_modules.planning.memory_plan import MemoryPlan, ModelSizes, PassSizes, Sharding, memory_plan

__all__ = ["MemoryPlan", "ModelSizes", "PassSizes", "Sharding", "memory_plan"]
