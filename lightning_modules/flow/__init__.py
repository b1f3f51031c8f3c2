"""Policy optimization of flow-matching models: a trajectory is a completion whose tokens are denoising steps."""

from lightning_modules.flow.dynamics import CPS, ODE, DanceSDE, Dynamics, FlowSDE, StepCoefficients
from lightning_modules.flow.model import FlowModel, FlowModelSource
from lightning_modules.flow.schedule import StepWindow, uniform_times
from lightning_modules.flow.trajectories import Trajectories, sample_trajectories
from lightning_modules.flow.transition import Transition

__all__ = [
    "CPS",
    "ODE",
    "DanceSDE",
    "Dynamics",
    "FlowModel",
    "FlowModelSource",
    "FlowSDE",
    "StepCoefficients",
    "StepWindow",
    "Trajectories",
    "Transition",
    "sample_trajectories",
    "uniform_times",
]
