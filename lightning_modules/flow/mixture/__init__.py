"""Two-dimensional task for flow-matching models: a mixture whose exact likelihood is the gold metric."""

from lightning_modules.flow.mixture.conditions import MixtureConditions
from lightning_modules.flow.mixture.distribution import log_likelihood, mode_centers, random_points
from lightning_modules.flow.mixture.rewards import GoldLikelihood, NearMode
from lightning_modules.flow.mixture.velocity import MixtureVelocity
from lightning_modules.flow.mixture.warm_start import MixtureWarmStart

__all__ = [
    "GoldLikelihood",
    "MixtureConditions",
    "MixtureVelocity",
    "MixtureWarmStart",
    "NearMode",
    "log_likelihood",
    "mode_centers",
    "random_points",
]
