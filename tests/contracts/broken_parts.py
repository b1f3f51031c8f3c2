"""Parts that violate properties, each with the names of all that it violates."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po import (
    AdvantageEstimator,
    ExponentRule,
    GroupObjective,
    HomogeneousMean,
    K2Penalty,
    Mean,
    Normalizer,
    Penalty,
    PrefixAggregate,
    RatioTransform,
    SuffixWeight,
    TokenAggregator,
    TokenWeighting,
)
from aggregate_po.advantages import GroupAdvantage
from aggregate_po.aggregators import EvaluatedAggregator
from aggregate_po.aggregators.power import log_power_mean
from aggregate_po.masked import masked_mean, masked_softmax, masked_sum
from aggregate_po.transforms import EvaluatedTransform
from tests.third_party import AsinhMean


def broken(*laws):
    """Record the properties that an instance of the class violates."""

    def decorate(cls):
        cls.breaks = set(laws)
        return dataclass(frozen=True)(cls)

    return decorate


def without_gradient_mode():
    """True inside `gradient_weights`, false in the value, and false in inference mode."""
    return not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def naive_derivative(function, ratios):
    """Does not leave inference mode."""
    with torch.enable_grad():
        log_ratio = ratios.log_ratio.detach().clone().requires_grad_()
        return torch.autograd.grad(function(replace(ratios, log_ratio=log_ratio)).sum(), log_ratio)[0]


def average(tokens):
    return masked_mean(tokens.log_ratio, tokens.response_mask)


# --- aggregators -----------------------------------------------------------------------------------------------------


class Broken(TokenAggregator):
    def log_aggregate(self, tokens):
        return average(tokens)


@broken("advantages_per_token", "weights_are_the_derivative", "gradient_of_the_objective")
class WrongClosedForm(Broken):
    def token_weights(self, tokens):
        return masked_softmax(tokens.log_ratio, tokens.response_mask)


@broken("advantages_per_token", "shapes")
class WeightsInSinglePrecision(Broken):
    def log_aggregate(self, tokens):
        return average(tokens) * tokens.lengths

    def token_weights(self, tokens):
        return tokens.response_mask.float()


@broken("advantages_per_token", "lets_gradient_through", "gradient_of_the_objective", "splitting_the_step")
class Detached(Broken):
    def log_aggregate(self, tokens):
        return average(tokens).detach()


@broken("finite")
class OverflowsInSinglePrecision(Broken):
    def log_aggregate(self, tokens):
        powers = masked_mean((2 * tokens.log_ratio).exp(), tokens.response_mask)
        return torch.where(tokens.lengths > 0, powers, 1).log() / 2


@broken("finite")
class InfiniteWhereEmpty(Broken):
    def log_aggregate(self, tokens):
        return torch.where(tokens.lengths > 0, average(tokens), -torch.inf)


@broken("padding_changes_nothing")
class ReadsPadding(Broken):
    def log_aggregate(self, tokens):
        return tokens.log_ratio.sum(dim=-1) / tokens.lengths.clamp(min=1)


@broken("padding_changes_nothing")
class DividesByWidth(Broken):
    def log_aggregate(self, tokens):
        return torch.where(tokens.response_mask, tokens.log_ratio, 0).mean(dim=-1)


@broken("padding_changes_nothing")
class WeighsPadding(Broken):
    def token_weights(self, tokens):
        shares = 1 / tokens.lengths.clamp(min=1).to(tokens.log_ratio.dtype)
        return torch.where(tokens.lengths > 0, shares, 0).unsqueeze(-1).expand_as(tokens.log_ratio)


@broken("order_of_tokens")
class LaterTokensCountLess(Broken):
    def log_aggregate(self, tokens):
        place = tokens.response_mask.cumsum(dim=-1).clamp(min=1)
        return masked_mean(tokens.log_ratio / place, tokens.response_mask)


@broken("completions_do_not_see_each_other", "splitting_the_step")
class LessTheBatchMean(Broken):
    def log_aggregate(self, tokens):
        return average(tokens) - average(tokens).detach().mean() / 2


@broken("inputs_are_left_untouched")
class ChangesTheContext(Broken):
    def log_aggregate(self, tokens):
        tokens.saturated.logical_not_()
        return average(tokens)


@broken("inputs_are_left_untouched")
class LeavesAGraph(Broken):
    def token_weights(self, tokens):
        weights = super().token_weights(tokens)
        if not torch.is_inference_mode_enabled():
            tokens.old_log_probs.requires_grad_()
        return weights


@broken("inference_mode")
class FailsInInferenceMode(Broken):
    def token_weights(self, tokens):
        return torch.where(tokens.response_mask, naive_derivative(self.log_aggregate, tokens), 0)


@broken("single_precision_follows_double")
class LosesDigits(Broken):
    def log_aggregate(self, tokens):
        return masked_mean(tokens.log_ratio + 1e4, tokens.response_mask) - 1e4 * (tokens.lengths > 0)


@broken("advantages_per_token", "gradient_of_the_objective")
class AnotherValueWithoutGradient(Broken):
    def log_aggregate(self, tokens):
        return average(tokens) + 0.1 * without_gradient_mode()


@broken("evaluate")
class EvaluatesOutsideTheGraph(Broken):
    def evaluate(self, tokens):
        return replace(super().evaluate(tokens), log_aggregate=self.log_aggregate(tokens).detach())


@broken("advantages_per_token", "evaluate", "gradient_of_the_objective")
class EvaluatesTheSum(Broken):
    def evaluate(self, tokens):
        log_sum = torch.where(tokens.response_mask, tokens.log_ratio, 0).sum(dim=-1)
        return EvaluatedAggregator(log_sum, self.token_weights(tokens))


@broken("mean_of_a_constant", "mean_is_between_the_extremes")
class HalfIsNoMean(Mean):
    def log_aggregate(self, tokens):
        return average(tokens) / 2


@broken("mean_is_between_the_extremes")
class BeyondTheExtremes(Mean):
    def log_aggregate(self, tokens):
        deviations = torch.where(tokens.response_mask, tokens.log_ratio, 0) - average(tokens).unsqueeze(-1)
        return average(tokens) + masked_mean(deviations.square(), tokens.response_mask)


@broken("common_factor_passes_through", "weights_sum_to_one")
class AsinhIsNotHomogeneous(AsinhMean, HomogeneousMean):
    pass


@broken("common_factor_passes_through")
class WeightsOfAnotherMean(AsinhMean, HomogeneousMean):
    def log_aggregate(self, tokens):
        return super().log_aggregate(tokens).detach() + average(tokens) - average(tokens).detach()


@broken("weights_sum_to_one")
class HalfDetached(HomogeneousMean):
    def log_aggregate(self, tokens):
        return (average(tokens) + average(tokens).detach()) / 2


@broken("weights_count_tokens")
class CountsEveryTokenOnce(Broken):
    takes_mean_weights = True


@broken("scale_of_the_weights")
class OrderFollowsTheSumOfTheWeights(Mean):
    takes_mean_weights = True

    def log_aggregate(self, tokens):
        orders = 1 / (1 + tokens.lengths.to(tokens.log_ratio.dtype))
        return log_power_mean(tokens.log_ratio, tokens.response_mask, orders, tokens.mean_weights)


# --- transforms ------------------------------------------------------------------------------------------------------


class BrokenTransform(RatioTransform):
    def __call__(self, ratios):
        return 2 * ratios.log_ratio


@broken("works_somewhere")
class WorksNowhere(BrokenTransform):
    def __call__(self, ratios):
        raise ValueError("`log_ratio` is of no use to me.")


@broken("shapes")
class DerivativeInSinglePrecision(BrokenTransform):
    def derivative(self, ratios):
        return torch.full_like(ratios.log_ratio, 2, dtype=torch.float32)


@broken("finite")
class OverflowingTransform(BrokenTransform):
    def __call__(self, ratios):
        if ratios.log_ratio.ndim == 1:
            raise ValueError("before the mean only, where an objective bounds log ratios")
        return (2 * ratios.log_ratio).exp().log() / 2


@broken("derivative", "gradient_of_the_objective")
class WrongDerivative(BrokenTransform):
    def __call__(self, ratios):
        return torch.tanh(ratios.log_ratio / 100)

    def derivative(self, ratios):
        return 1 - torch.tanh(ratios.log_ratio / 100).square()


@broken("gradient_of_the_objective")
class OverflowsAfterAProduct(BrokenTransform):
    """Finite up to log ratios of 80, and not at the thousands that the ratio of a long completion reaches."""

    def __call__(self, ratios):
        return torch.nn.functional.logsigmoid(ratios.log_ratio.exp() - 1)


@broken("saturated", "evaluate")
class SaturatedOnOneSide(BrokenTransform):
    def __call__(self, ratios):
        return ratios.log_ratio.clamp(-0.5, 0.5)

    def saturated(self, ratios):
        return ratios.log_ratio > 0.5


@broken("evaluate")
class EvaluatesAnotherFunction(BrokenTransform):
    """An objective would not notice: value and derivative of its evaluation agree."""

    def evaluate(self, ratios):
        return EvaluatedTransform.identity(ratios.log_ratio)


@broken("evaluate")
class EvaluatesNoSaturation(BrokenTransform):
    def __call__(self, ratios):
        return ratios.log_ratio.clamp(-0.5, 0.5)

    def evaluate(self, ratios):
        return replace(super().evaluate(ratios), saturated=torch.zeros_like(ratios.response_mask))


@broken("evaluate")
class KeepsTheGraphOfTheDerivative(BrokenTransform):
    def evaluate(self, ratios):
        return replace(super().evaluate(ratios), derivative=2 + 0 * ratios.log_ratio)


@broken("own_derivative_only", "gradient_of_the_objective")
class MixesTokens(BrokenTransform):
    def __call__(self, ratios):
        if ratios.log_ratio.ndim == 1:
            raise ValueError("`log_ratio` has no tokens.")
        log_ratio = ratios.log_ratio - rearrange(average(ratios), "batch -> batch 1")
        return torch.where(ratios.response_mask, log_ratio, 0)


@broken("padding_changes_nothing")
class TransformReadsPadding(BrokenTransform):
    def __call__(self, ratios):
        if ratios.log_ratio.ndim == 1:
            raise ValueError("`log_ratio` has no padding.")
        return ratios.log_ratio - ratios.log_ratio.detach().sum(dim=-1, keepdim=True)


@broken("completions_do_not_see_each_other")
class LessTheBatch(BrokenTransform):
    def __call__(self, ratios):
        return ratios.log_ratio - torch.where(ratios.response_mask, ratios.log_ratio, 0).detach().sum() / 9


@broken("inputs_are_left_untouched")
class TransformChangesTheContext(BrokenTransform):
    def __call__(self, ratios):
        ratios.saturated.logical_not_()
        return 2 * ratios.log_ratio


@broken("inference_mode")
class TransformFailsInInferenceMode(BrokenTransform):
    def derivative(self, ratios):
        return naive_derivative(self, ratios)


@broken("gradient_of_the_objective")
class AnotherTransformWithoutGradient(BrokenTransform):
    def __call__(self, ratios):
        return ratios.log_ratio + 0.1 * without_gradient_mode()


# --- normalizers -----------------------------------------------------------------------------------------------------


class BrokenNormalizer(Normalizer):
    def __call__(self, lengths, totals):
        return lengths / self.at_least_one(totals.tokens)

    def at_least_one(self, count):
        return torch.as_tensor(count).clamp(min=1)


@broken("shapes")
class NormalizesInSinglePrecision(BrokenNormalizer):
    def __call__(self, lengths, totals):
        return (lengths > 0).float() / self.at_least_one(totals.tokens)


@broken("finite_and_not_negative")
class NegativeWhereEmpty(BrokenNormalizer):
    def __call__(self, lengths, totals):
        return (lengths - 1) / self.at_least_one(totals.tokens)


@broken("step_without_tokens")
class DividesByZero(BrokenNormalizer):
    def __call__(self, lengths, totals):
        return lengths / totals.tokens


@broken("only_the_totals_divide")
class DividesByTheMicroBatch(BrokenNormalizer):
    def __call__(self, lengths, totals):
        return lengths / lengths.sum().clamp(min=1)


@broken("totals_of_any_type")
class RoundsTensors(BrokenNormalizer):
    def at_least_one(self, count):
        return count.half().clamp(min=1).double().sqrt() if isinstance(count, Tensor) else max(count, 1) ** 0.5


@broken("inputs_are_left_untouched")
class ChangesTheLengths(BrokenNormalizer):
    def __call__(self, lengths, totals):
        return lengths.clamp_(min=1) / self.at_least_one(totals.completions)


# --- rules -----------------------------------------------------------------------------------------------------------


class BrokenRule(ExponentRule):
    def __call__(self, tokens):
        return 1 / (1 + average(tokens).detach().square())


@broken("shapes")
class ExponentsInSinglePrecision(BrokenRule):
    def __call__(self, tokens):
        return torch.full_like(tokens.lengths, 0.5, dtype=torch.float32)


@broken("finite")
class InfiniteExponents(BrokenRule):
    def __call__(self, tokens):
        return torch.where(tokens.lengths > 0, tokens.log_ratio.new_tensor(0.5), torch.inf)


@broken("no_graph")
class GradientThroughTheExponent(BrokenRule):
    def __call__(self, tokens):
        return 1 / (1 + average(tokens).square())


@broken("padding_changes_nothing")
class RuleReadsPadding(BrokenRule):
    def __call__(self, tokens):
        return 1 / (1 + tokens.log_ratio.detach().square().sum(dim=-1))


@broken("weights_count_tokens")
class RuleCountsEveryTokenOnce(BrokenRule):
    takes_mean_weights = True


@broken("scale_of_the_weights")
class RuleFollowsTheSumOfTheWeights(BrokenRule):
    takes_mean_weights = True

    def __call__(self, tokens):
        return 1 / (1 + tokens.lengths.to(tokens.log_ratio.dtype))


@broken("order_of_tokens")
class FirstTokenRules(BrokenRule):
    def __call__(self, tokens):
        first = tokens.response_mask & (tokens.response_mask.cumsum(dim=-1) == 1)
        return torch.sigmoid(masked_mean(tokens.log_ratio, first)).detach()


@broken("completions_do_not_see_each_other")
class OneExponentForTheBatch(BrokenRule):
    def __call__(self, tokens):
        exponents = super().__call__(tokens)
        return exponents.mean().expand_as(exponents)


@broken("inputs_are_left_untouched")
class RuleChangesTheContext(BrokenRule):
    def __call__(self, tokens):
        tokens.saturated.logical_not_()
        return super().__call__(tokens)


@broken("inference_mode")
class RuleFailsInInferenceMode(BrokenRule):
    def __call__(self, tokens):
        slope = naive_derivative(lambda ratios: average(ratios).square(), tokens)
        return torch.sigmoid(masked_mean(slope, tokens.response_mask))


# --- estimators ------------------------------------------------------------------------------------------------------


class BrokenEstimator(AdvantageEstimator):
    def __call__(self, step):
        return step.rounded(self.centered(step).flatten())

    def centered(self, step):
        return step.groups - step.groups.mean(dim=-1, keepdim=True)


@broken("shapes")
class AdvantagesInDoublePrecision(BrokenEstimator):
    def __call__(self, step):
        return self.centered(step).flatten()


@broken("finite", "completions_without_a_reward")
class SquaresRewards(BrokenEstimator):
    def __call__(self, step):
        return step.rewards * step.rewards.abs()


@broken("order_of_prompts")
class LaterPromptsCountMore(BrokenEstimator):
    def centered(self, step):
        return super().centered(step) * torch.arange(1, len(step.groups) + 1).unsqueeze(-1)


@broken("order_within_a_prompt", "completions_without_a_reward")
class LaterCompletionsCountMore(BrokenEstimator):
    def centered(self, step):
        return super().centered(step) * torch.arange(1, step.group_size + 1)


@broken("completions_without_a_reward")
class CountsMissingRewards(GroupAdvantage):
    def __call__(self, step):
        return step.rounded(self.within_groups(step).flatten())

    def within_groups(self, step):
        deviations = step.groups - step.groups.mean(dim=-1, keepdim=True)
        return deviations / (1 + step.groups.std(dim=-1, keepdim=True, correction=0))


@broken("same_every_time", "no_graph", "rewards_of_steps")
class RemembersCalls(BrokenEstimator):
    calls: ClassVar[list] = []

    def __call__(self, step):
        self.calls.append(None)
        return super().__call__(step) + 1e-7 * (len(self.calls) % 2)


@broken("inputs_are_left_untouched")
class ChangesTheRollout(BrokenEstimator):
    def __call__(self, step):
        step.lengths.clamp_(min=1)
        return super().__call__(step)


@broken("no_graph")
class LearnedBaseline(BrokenEstimator):
    def __call__(self, step):
        return super().__call__(step) - torch.zeros((), requires_grad=not torch.is_inference_mode_enabled())


@broken("groups_do_not_see_each_other")
class ScaledByTheRollout(GroupAdvantage):
    def within_groups(self, step):
        return step.groups / (1 + step.groups.abs().max())


@broken("rewards_of_steps", "completions_without_a_reward")
class ReadsStepRewardsUnannounced(BrokenEstimator):
    def __call__(self, step):
        first = 0 if step.step_rewards is None else step.step_rewards[:, 0]
        return step.rounded(self.centered(step).flatten() + first)


# --- penalties -------------------------------------------------------------------------------------------------------


class BrokenPenalty(Penalty):
    def token_costs(self, log_probs, batch):
        return 0.1 * torch.tanh(log_probs / 100)


@broken("shapes")
class SlopeInSinglePrecision(BrokenPenalty):
    def token_costs(self, log_probs, batch):
        return 0.5 * log_probs.clamp(-1e6, 1e6)

    def token_derivatives(self, log_probs, batch):
        return 0.5 * (log_probs.abs() <= 1e6).float()


@broken("finite")
class UnboundedCost(BrokenPenalty):
    def token_costs(self, log_probs, batch):
        return 0.1 * (log_probs / 100).exp()


@broken("derivatives", "in_an_objective")
class WrongSlope(BrokenPenalty):
    def token_derivatives(self, log_probs, batch):
        return torch.full_like(log_probs, 0.1)


@broken("evaluate")
class ObservesSomethingElseTogether(BrokenPenalty):
    """Adapts to other numbers in training than `observed` tells."""

    def evaluate(self, log_probs, batch):
        return replace(super().evaluate(log_probs, batch), observed=log_probs.detach())


@broken("evaluate")
class CostsOutsideTheGraph(BrokenPenalty):
    def evaluate(self, log_probs, batch):
        return replace(super().evaluate(log_probs, batch), token_costs=self.token_costs(log_probs.detach(), batch))


@broken("completions_do_not_see_each_other", "in_an_objective")
class LessTheAverageCost(BrokenPenalty):
    def token_costs(self, log_probs, batch):
        costs = super().token_costs(log_probs, batch)
        return costs - torch.where(batch.response_mask, costs, 0).detach().sum() / 9


@broken("inputs_are_left_untouched")
class ChangesTheBatch(BrokenPenalty):
    def token_costs(self, log_probs, batch):
        if batch.ref_log_probs is not None:
            batch.ref_log_probs.neg_()
        return super().token_costs(log_probs, batch)


@broken("inference_mode")
class PenaltyFailsInInferenceMode(BrokenPenalty):
    def token_derivatives(self, log_probs, batch):
        with torch.enable_grad():
            inputs = log_probs.detach().clone().requires_grad_()
            return torch.autograd.grad(self.token_costs(inputs, batch).sum(), inputs)[0]


@broken("reference")
class HidesItsReference(K2Penalty):
    coefficient: float = 0.1

    @property
    def needs_reference(self):
        return False


@broken("in_an_objective", "evaluate")
class AnotherSlopeWithoutGradient(BrokenPenalty):
    def token_derivatives(self, log_probs, batch):
        return super().token_derivatives(log_probs, batch) * (2 if without_gradient_mode() else 1)


@broken("state")
class ForgetsItsState(BrokenPenalty):
    coefficient: float = 0.1

    def token_costs(self, log_probs, batch):
        return self.coefficient * torch.tanh(log_probs / 100)

    def adapt(self, mean_observed):
        object.__setattr__(self, "coefficient", self.coefficient + abs(mean_observed))


# --- prefix aggregates -----------------------------------------------------------------------------------------------


class BrokenPrefix(PrefixAggregate):
    def log_prefix(self, tokens):
        return tokens.log_ratio.cumsum(dim=-1)


@broken("shapes")
class PrefixInDoublePrecision(BrokenPrefix):
    def __call__(self, tokens):
        return super().__call__(tokens).double()


@broken("finite")
class PrefixOverflowsInSinglePrecision(BrokenPrefix):
    def log_prefix(self, tokens):
        return (2 * tokens.log_ratio).exp().log()


@broken("single_precision_follows_double")
class PrefixLosesDigits(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) / 3 + 1e5 - 1e5


@broken("padding_changes_nothing", "masked_tokens_change_nothing")
class PrefixAveragedOverColumns(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) / tokens.response_mask.shape[-1]


@broken("masked_tokens_change_nothing")
class PrefixCountsColumns(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) / (1 + torch.arange(tokens.response_mask.shape[-1])).to(tokens.log_ratio)


@broken("later_tokens_change_nothing")
class PrefixKnowsTheLength(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) / tokens.lengths.clamp(min=1).unsqueeze(-1).to(tokens.log_ratio)


@broken("later_tokens_change_nothing")
class Suffix(BrokenPrefix):
    def log_prefix(self, tokens):
        return tokens.log_ratio.flip(-1).cumsum(dim=-1).flip(-1)


@broken("derivative_is_one", "gradient_of_the_objective")
class PrefixWithAGraph(BrokenPrefix):
    def __call__(self, tokens):
        return torch.where(tokens.response_mask, tokens.log_ratio, 0).cumsum(dim=-1)


@broken("completions_do_not_see_each_other", "masked_tokens_change_nothing")
class PrefixDividedByTheBatch(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) / len(tokens.log_ratio)


@broken("inputs_are_left_untouched")
class PrefixChangesTheContext(BrokenPrefix):
    def log_prefix(self, tokens):
        tokens.saturated.logical_not_()
        return super().log_prefix(tokens)


@broken("inference_mode")
class PrefixDiffersInInferenceMode(BrokenPrefix):
    def log_prefix(self, tokens):
        return super().log_prefix(tokens) + 0.1 * torch.is_inference_mode_enabled()


@broken("gradient_of_the_objective")
class AnotherPrefixWithoutGradient(BrokenPrefix):
    def __call__(self, tokens):
        return super().__call__(tokens) + 0.1 * without_gradient_mode()


# --- group objectives ------------------------------------------------------------------------------------------------


class BrokenGroupObjective(GroupObjective):
    def __call__(self, groups):
        return masked_sum(groups.advantages * torch.tanh(groups.log_values), groups.mask)


@broken("shapes")
class GroupsInSinglePrecision(BrokenGroupObjective):
    def __call__(self, groups):
        return super().__call__(groups).float()


@broken("finite")
class UnboundedValue(BrokenGroupObjective):
    def __call__(self, groups):
        return masked_sum(groups.advantages * groups.log_values.exp(), groups.mask)


@broken("derivatives")
class WrongPull(BrokenGroupObjective):
    def derivatives(self, groups):
        return 1.5 * super().derivatives(groups)


@broken("order", "other_groups_and_padding")
class FirstCompletionCounts(BrokenGroupObjective):
    def __call__(self, groups):
        return torch.tanh(groups.log_values[:, 0])


@broken("other_groups_and_padding")
class LessTheOtherGroups(BrokenGroupObjective):
    def __call__(self, groups):
        values = super().__call__(groups)
        return values - values.mean()


@broken("inputs_are_left_untouched")
class ChangesTheGroups(BrokenGroupObjective):
    def derivatives(self, groups):
        derivatives = super().derivatives(groups)
        groups.shares.neg_()
        return derivatives


@broken("inference_mode")
class GroupsFailInInferenceMode(BrokenGroupObjective):
    def derivatives(self, groups):
        with torch.enable_grad():
            log_values = groups.log_values.detach().clone().requires_grad_()
            return torch.autograd.grad(self(replace(groups, log_values=log_values)).sum(), log_values)[0]


# --- suffix weights --------------------------------------------------------------------------------------------------


class BrokenWeight(SuffixWeight):
    def weights(self, tokens):
        return 1 + torch.sigmoid(tokens.log_ratio)


@broken("shapes")
class WeightInDoublePrecision(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens).double()


@broken("finite")
class WeightOverflowsInSinglePrecision(BrokenWeight):
    def weights(self, tokens):
        return (2 * tokens.log_ratio).exp().log1p() * 1e-3


@broken("single_precision_follows_double")
class WeightLosesDigits(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens) + 1e5 - 1e5


@broken("padding_changes_nothing", "masked_tokens_change_nothing")
class WeightByWidth(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens) / tokens.response_mask.shape[-1]


@broken("masked_tokens_change_nothing")
class WeightCountsColumns(BrokenWeight):
    def weights(self, tokens):
        following = tokens.response_mask | (tokens.response_mask.flip(-1).cumsum(dim=-1).flip(-1) > 0)
        return super().weights(tokens) * following.flip(-1).cumsum(dim=-1).flip(-1)


@broken("earlier_tokens_change_nothing")
class WeightOfThePast(BrokenWeight):
    def weights(self, tokens):
        return 1 + torch.sigmoid(tokens.log_ratio.cumsum(dim=-1))


@broken("not_negative")
class NegativeWeight(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens) - 1.5


@broken("detached", "gradient_of_the_objective")
class WeightWithAGraph(BrokenWeight):
    def __call__(self, tokens):
        return 1 + torch.sigmoid(torch.where(tokens.response_mask, tokens.log_ratio, 0))


@broken("completions_do_not_see_each_other", "masked_tokens_change_nothing")
class WeightDividedByTheBatch(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens) / len(tokens.log_ratio)


@broken("inputs_are_left_untouched")
class WeightChangesTheContext(BrokenWeight):
    def weights(self, tokens):
        tokens.saturated.logical_not_()
        return super().weights(tokens)


@broken("inference_mode")
class WeightDiffersInInferenceMode(BrokenWeight):
    def weights(self, tokens):
        return super().weights(tokens) + 0.1 * torch.is_inference_mode_enabled()


@broken("gradient_of_the_objective")
class AnotherWeightWithoutGradient(BrokenWeight):
    def __call__(self, tokens):
        return super().__call__(tokens) + 0.1 * without_gradient_mode()


# --- weights of tokens -----------------------------------------------------------------------------------------------


class BrokenWeighting(TokenWeighting):
    needs_entropies = True

    def __call__(self, response_mask, entropies):
        return torch.ones_like(entropies)


@broken("shapes")
class CountsOfTokens(BrokenWeighting):
    def __call__(self, response_mask, entropies):
        return response_mask.long()


@broken("range")
class NegativeWeights(BrokenWeighting):
    def __call__(self, response_mask, entropies):
        return 1 - entropies


@broken("padding_changes_nothing")
class LargestWithPadding(BrokenWeighting):
    def __call__(self, response_mask, entropies):
        return torch.ones_like(entropies) * entropies.max()


@broken("order_of_completions")
class PlaceInTheBatchCounts(BrokenWeighting):
    def __call__(self, response_mask, entropies):
        return torch.ones_like(entropies) * torch.arange(len(entropies)).unsqueeze(-1)


@broken("inputs_are_left_untouched")
class CapsTheEntropies(BrokenWeighting):
    def __call__(self, response_mask, entropies):
        entropies.clamp_(max=1.0)
        return torch.ones_like(entropies)
