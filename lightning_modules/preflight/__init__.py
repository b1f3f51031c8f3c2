"""`aggregate-po preflight`: a check on completions of the start model of whether a run can learn."""

from lightning_modules.preflight.signal import PassRates
from lightning_modules.preflight.trial_rollout import TrialRollout

__all__ = ["PassRates", "TrialRollout"]
