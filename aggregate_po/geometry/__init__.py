"""Distribution of a completion's gradient over its tokens: measures of any weights, and the theory of power means."""

from aggregate_po.geometry.committal import (
    committal_exponent,
    extreme_weight,
    residual_weight,
    residual_weight_bound,
)
from aggregate_po.geometry.effective_size import exponent_of_ess, log_power_ess_derivative, power_ess
from aggregate_po.geometry.inequalities import (
    am_gm_bounds,
    am_gm_gap,
    log_power_mean_derivative,
    order_gap_bound,
)
from aggregate_po.geometry.measures import effective_sample_size, gated_fraction, weight_entropy
from aggregate_po.geometry.power_family import (
    power_entropy,
    power_entropy_derivative,
    power_weights,
    power_weights_derivative,
    tilted_mean,
    tilted_variance,
)
from aggregate_po.geometry.variance import log_variance_proxy, variance_minimizing_exponent, variance_proxy

__all__ = [
    "am_gm_bounds",
    "am_gm_gap",
    "committal_exponent",
    "effective_sample_size",
    "exponent_of_ess",
    "extreme_weight",
    "gated_fraction",
    "log_power_ess_derivative",
    "log_power_mean_derivative",
    "log_variance_proxy",
    "order_gap_bound",
    "power_entropy",
    "power_entropy_derivative",
    "power_ess",
    "power_weights",
    "power_weights_derivative",
    "residual_weight",
    "residual_weight_bound",
    "tilted_mean",
    "tilted_variance",
    "variance_minimizing_exponent",
    "variance_proxy",
    "weight_entropy",
]
