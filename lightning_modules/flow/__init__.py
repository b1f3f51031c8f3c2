"""Policy optimization of flow-matching models: a trajectory is a completion whose tokens are denoising steps."""

from lightning_modules.flow.data_module import FlowDataModule
from lightning_modules.flow.diffusers import DiffusersPipeline, TransformerLoRA
from lightning_modules.flow.dynamics import CPS, ODE, DanceSDE, Dynamics, FlowSDE, StepCoefficients
from lightning_modules.flow.model import FlowModel, FlowModelSource
from lightning_modules.flow.module import FlowModule
from lightning_modules.flow.schedule import StepWindow, uniform_times
from lightning_modules.flow.step_diagnostics import StepDiagnostics
from lightning_modules.flow.step_weights import InverseStepSize, StepWeights
from lightning_modules.flow.trajectories import Trajectories, sample_trajectories
from lightning_modules.flow.transition import Transition

__all__ = [
    "CPS",
    "ODE",
    "DanceSDE",
    "DiffusersPipeline",
    "Dynamics",
    "FlowDataModule",
    "FlowModel",
    "FlowModelSource",
    "FlowModule",
    "FlowSDE",
    "InverseStepSize",
    "StepCoefficients",
    "StepDiagnostics",
    "StepWeights",
    "StepWindow",
    "Trajectories",
    "TransformerLoRA",
    "Transition",
    "sample_trajectories",
    "uniform_times",
]
