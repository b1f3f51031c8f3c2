"""Labels of the chart of each metric, symbol and unit, and what to expect of it, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from lightning_modules.viewer.report import Metric

_LEARNING, _SIGNAL, _COMPLETIONS = "Does it learn?", "Is there signal?", "Completions"
_POLICY, _WEIGHTS, _STEP = "How far does the policy move?", "Who gets the gradient?", "Is a step sound?"
_SAMPLER, _SCHEMES, _ROLLOUT = "Is the sampler the policy?", "Sampling schemes", "Rollouts and time"

# Names may be patterns, as in `fnmatch`; the first that matches counts. docs/metrics.md says what each metric is.
READING_AIDS = (
    Metric("val/*pass@1_*", _LEARNING, "pass rate", "", "Rises: held-out prompts, one completion each."),
    Metric("reward", _LEARNING, "reward R", "", "Rises, with noise: it is of the training prompts of one rollout."),
    Metric("val/*reward_*", _LEARNING, "reward R", "", "Rises: held-out prompts, less noisy than the reward."),
    Metric("val/rewards/*", _LEARNING, "reward R", "", "Rises where this reward counts in the sum."),
    Metric("val/*mean_length_*", _LEARNING, "length T", "tokens", "Follows the length in training."),
    Metric("val/*failed_verdicts_*", _LEARNING, "fraction", "", "Stays at 0; a failure counts as a reward of 0."),
    Metric("rewards/*/mean", _LEARNING, "reward R", "", "Rises where this reward counts in the sum."),
    Metric("frac_reward_zero_std", _SIGNAL, "fraction", "of groups", "Well below 1: equal rewards carry no gradient."),
    Metric("reward_group_std", _SIGNAL, "std of R", "", "Above 0: the spread within a group is the signal."),
    Metric("reward_std", _SIGNAL, "std of R", "", "Above 0; it includes differences between prompts."),
    Metric("group_objective/without_gradient", _SIGNAL, "fraction", "of groups", "Well below 1."),
    Metric("completions/trained_ratio", _SIGNAL, "fraction", "", "Completions with a gradient; more are better."),
    Metric("tokens/trained_ratio", _SIGNAL, "fraction", "of tokens", "As `data.token_weights` selects."),
    Metric("completions/mean_length", _COMPLETIONS, "length T", "tokens", "Steady growth is fine; a jump is not."),
    Metric("completions/clipped_ratio", _COMPLETIONS, "fraction", "", "Near 0; else raise data.max_completion_length."),
    Metric("num_tokens", _COMPLETIONS, "tokens", "", "Completions times their mean length."),
    Metric("completions/failed_ratio", _COMPLETIONS, "fraction", "", "Stays at 0; else see why verdicts fail."),
    Metric("rewards/*/failed/*", _COMPLETIONS, "verdicts", "", "Stays at 0."),
    Metric("*/removed_files", _COMPLETIONS, "files", "", "0 until `max_gigabytes` is reached."),
    Metric("kl_old", _POLICY, "KL", "nats", "0 in the first step of a rollout, small later; can be negative."),
    Metric("kl", _POLICY, "KL", "nats", "Distance to the reference; grows slowly."),
    Metric("ratio/min", _POLICY, "ratio r", "", "1 in the first step of a rollout, then below.", True),
    Metric("ratio/max", _POLICY, "ratio r", "", "1 in the first step of a rollout, then above.", True),
    Metric("ratio/mean", _POLICY, "ratio r", "", "Near 1.", True),
    Metric("ratio/quantile_*", _POLICY, "ratio r", "", "1 in the first step of a rollout, then near 1.", True),
    Metric("ratio/deviation", _POLICY, "|r - 1|", "", "Below the threshold of `RatioDeviationStop`."),
    Metric("clip_ratio/low_mean", _POLICY, "fraction", "of tokens", "0 at first; clipped with an advantage below 0."),
    Metric("clip_ratio/high_mean", _POLICY, "fraction", "of tokens", "0 at first; clipped with an advantage above 0."),
    Metric("clip_ratio/region_mean", _POLICY, "fraction", "of tokens", "The sum of low and high."),
    Metric("clip_ratio/*_position_01", _POLICY, "fraction", "of tokens", "First tenth of a completion: like the last."),
    Metric("clip_ratio/*_position_10", _POLICY, "fraction", "of tokens", "Last tenth: higher if late tokens drift."),
    Metric("log_ratio/quantile_*", _POLICY, "log ratio x", "nats", "0 in the first step of a rollout, then small."),
    Metric("log_ratio/negative/min", _POLICY, "log ratio x", "nats", "Falls most where tokens are pushed down."),
    Metric("log_ratio/positive/max", _POLICY, "log ratio x", "nats", "Compare it with the lowest of the other sign."),
    Metric("weights/gate/*/mean", _WEIGHTS, "gate g", "", "Near 1: the part of the gradient that is not clipped."),
    Metric("weights/magnitude/quantile_*", _WEIGHTS, "value S", "", "1 in the first step of a rollout, then near 1."),
    Metric("weights/ess_fraction/min", _WEIGHTS, "ESS / T", "", "Well above 0: no completion hangs on one token."),
    Metric("weights/top_1_percent_share*", _WEIGHTS, "share", "", "A few hundredths; above 0.2 few tokens decide."),
    Metric("weights/ess_fraction", _WEIGHTS, "ESS / T", "", "1 means equal weights; lower, fewer tokens dominate."),
    Metric("weights/entropy", _WEIGHTS, "entropy", "nats", "At most log of the length, for equal weights."),
    Metric("exponent/*", _WEIGHTS, "exponent p", "", "1 is the arithmetic mean, 0 the geometric, -1 the harmonic."),
    Metric("penalty_*/multiplier", _WEIGHTS, "multiplier", "", "Settles where the penalty meets its bound."),
    Metric("entropy", _STEP, "entropy H", "nats", "Falls slowly; at 0 the completions of a group are copies."),
    Metric("grad_norm", _STEP, "|∇J|", "", "Without growing spikes; before clipping.", True),
    Metric("policy_loss", _STEP, "loss -J", "", "Its level says little: advantages are relative to the group."),
    Metric("weights/overflow", _STEP, "fraction", "of tokens", "0 under a mean; else compare sampler and trainer."),
    Metric("skipped_steps", _STEP, "steps", "", "Stays at 0: no gradient was infinite or NaN."),
    Metric("dropped_updates", _STEP, "steps", "", "Steps that `RatioDeviationStop` left out."),
    Metric("learning_rate", _STEP, "learning rate", "", "As the schedule says."),
    Metric("sampling/sampling_logp_difference/*", _SAMPLER, "|Δ log π|", "nats", "0 up to rounding."),
    Metric("sampling/kl", _SAMPLER, "KL", "nats", "0 up to rounding."),
    Metric("sampling/importance_sampling_ratio/*", _SAMPLER, "weight", "", "1 up to rounding.", True),
    Metric("sampling/ess_fraction", _SAMPLER, "ESS / number", "", "Near 1."),
    Metric("sampling/missing_log_probs", _SAMPLER, "tokens", "", "Stays at 0."),
    Metric("groups/*", _SCHEMES, "", "", ""),
    Metric("prompts/skipped", _SCHEMES, "prompts", "", "Prompts that the scheme expects to have no signal."),
    Metric("curriculum/*", _SCHEMES, "", "", ""),
    Metric("replay/*", _SCHEMES, "", "", ""),
    Metric("drafts/*", _SCHEMES, "", "", ""),
    Metric("rollout/staleness", _ROLLOUT, "age", "steps", "0 without overlap and replay."),
    Metric("rollout/weight_version", _ROLLOUT, "version", "", "Rises by 1 with each rollout."),
    Metric("rollout/lost_servers", _ROLLOUT, "servers", "", "Stays at 0."),
    Metric("rollout/server_losses", _ROLLOUT, "losses", "", "Stays at 0."),
    Metric("time/rollout", _ROLLOUT, "time", "s", "How long training waited for completions."),
    Metric("time/step", _ROLLOUT, "time", "s", "Higher in steps that begin with a rollout."),
)


def described_metrics(names: Iterable[str]) -> list[Metric]:
    """Return descriptions of the named metrics that have a reading aid, in the order of the aids."""
    found: dict[int, list[Metric]] = {}
    for name in sorted(set(names)):
        if (number := _number_of_aid(name)) is not None:
            found.setdefault(number, []).append(replace(READING_AIDS[number], name=name))
    return [metric for number in sorted(found) for metric in found[number]]


def _number_of_aid(name: str) -> int | None:
    return next((number for number, aid in enumerate(READING_AIDS) if fnmatchcase(name, aid.name)), None)
