"""`aggregate-po preflight`: a check on completions of the start model of whether a run can learn."""

from lightning_modules.preflight.check import preflight
from lightning_modules.preflight.findings import Disagreement, Findings
from lightning_modules.preflight.signal import PassRates
from lightning_modules.preflight.trial_rollout import TrialData, TrialRollout

__all__ = ["Disagreement", "Findings", "PassRates", "TrialData", "TrialRollout", "preflight"]
