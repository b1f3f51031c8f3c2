"""Policy optimization of flow-matching models: a trajectory is a completion whose tokens are denoising steps."""

from lightning_modules.flow.dynamics import CPS, ODE, DanceSDE, Dynamics, FlowSDE, StepCoefficients
from lightning_modules.flow.schedule import uniform_times
from lightning_modules.flow.transition import Transition

__all__ = ["CPS", "ODE", "DanceSDE", "Dynamics", "FlowSDE", "StepCoefficients", "Transition", "uniform_times"]
