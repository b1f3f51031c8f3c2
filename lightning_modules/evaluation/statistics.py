"""Estimates of accuracy from several samples per problem, with intervals over problems, or over samples alone.

Problems are taken as a sample of the problems that could have been asked, and completions as samples from the policy;
the spread of the problems' own estimates contains both. The spread within the problems is that of the samples alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

Scores = Sequence[Sequence[float]]
"""Scores in [0, 1] of the completions of each problem, such as 1 for a right answer; one sequence per problem."""


@dataclass(frozen=True)
class Estimate:
    """Estimate with its interval.

    Args:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


def avg_at_k(scores: Scores, level: float = 0.95) -> Estimate:
    """Return the mean score over the completions of each problem, averaged over problems.

    Args:
        scores: scores of each problem.
        level: probability that the interval covers the mean over all problems.

    Raises:
        ValueError: there is no problem, a problem has no score, a score is not in [0, 1], or `level` is not in (0, 1).
    """
    _require_scores(scores)
    return _estimate([fmean(problem) for problem in scores], level)


def avg_at_k_over_samples(scores: Scores, level: float = 0.95) -> Estimate:
    """Return `avg_at_k` with an interval over samples: where it would be if the same problems were sampled again.

    The variance of the mean is that within the problems. As in the interval over problems, `z^2 / 2` wrong completions
    are added and as many right ones: few completions near 0 or 1 have too little spread of their own. In simulations of
    120 to 480 completions it covers in 93 to 97 % of cases, and in 86 to 92 % where 2 % of the completions are right.

    Args:
        scores: scores of each problem, at least two of them.
        level: probability that the interval covers the policy's mean score on these problems.

    Raises:
        ValueError: as in `avg_at_k`, or a problem has a single score, which has no spread.

    Reference: the conditional variance of Miller 2024, arXiv:2411.00640.
    """
    _require_scores(scores)
    if min(map(len, scores)) < 2:
        raise ValueError("`scores` has a problem with one completion, which has no spread; pass two or more of each.")
    z = _quantile(level)
    mean, completions = fmean(map(fmean, scores)), sum(map(len, scores))
    count = completions + z**2
    center = (completions * mean + z**2 / 2) / count
    of_mean = sum(variance(problem) / len(problem) for problem in scores) / len(scores) ** 2
    reach = z * math.sqrt((completions**2 * of_mean + z**2 / 4) / count / count)
    return _within_0_and_1(mean, center, reach)


def pass_at_k(scores: Scores, k: int, level: float = 0.95) -> Estimate:
    """Return the probability that at least one of `k` completions of a problem is right, averaged over problems.

    The estimate is unbiased: of all sets of `k` of the problem's completions it counts those with a right one. A
    completion is right if its score is 1.

    Args:
        scores: scores of each problem, at least `k` of them.
        k: number of completions.
        level: probability that the interval covers the mean over all problems.

    Raises:
        ValueError: as in `avg_at_k`, or a problem has fewer than `k` completions, or `k` is less than 1.

    Reference: Chen et al. 2021, arXiv:2107.03374.
    """
    _require_scores(scores)
    if not 1 <= k <= min(map(len, scores)):
        raise ValueError(
            f"`k` is {k}, but a problem has {min(map(len, scores))} completions; pass 1 to that, or sample more."
        )
    values = [1.0 - _without_right(len(problem), _right(problem), k) for problem in scores]
    return _estimate(values, level)


def maj_at_k(answers: Sequence[Sequence[Hashable]], scores: Scores, level: float = 0.95) -> Estimate:
    """Return the accuracy of the most frequent answer of each problem, averaged over problems.

    Each of several equally frequent answers is chosen with the same probability. Completions without an answer, None,
    do not vote; a problem without any answer is wrong.

    Args:
        answers: answer of each completion of each problem, None for none; equal answers must be equal objects.
        scores: scores of the same completions; a completion is right if its score is 1.
        level: probability that the interval covers the mean over all problems.

    Raises:
        ValueError: as in `avg_at_k`, or there are more answers than scores, or fewer.

    Reference: self-consistency, arXiv:2203.11171.
    """
    _require_scores(scores)
    pairs = list(zip(answers, scores, strict=True))
    return _estimate([_majority(*pair) for pair in pairs], level)


def paired_difference(first: Scores, second: Scores, level: float = 0.95) -> Estimate:
    """Return the difference `second - first` of two policies' mean scores on the same problems.

    Its interval is that of the problems' own differences, with half a problem added in which one policy alone is
    right, half a problem in which the other is, and one in which they agree (Agresti and Min 2005, for the difference
    of matched proportions), so that it covers at its level for few problems, too. With `k` completions per problem the
    added differences are smaller by the square root of `k`, as those of sampled completions are.

    Args:
        first: scores of the first policy by problem.
        second: scores of the second policy by problem, in the same order.
        level: probability that the interval covers the difference over all problems.

    Raises:
        ValueError: as in `avg_at_k`, or the policies have different numbers of problems.
    """
    _require_scores(first)
    _require_scores(second)
    if len(first) != len(second):
        raise ValueError(f"`second` has {len(second)} problems, but `first` has {len(first)}; pass the same problems.")
    differences = [fmean(after) - fmean(before) for before, after in zip(first, second, strict=True)]
    count = len(differences) + 2
    added = 1 / min(min(map(len, first)), min(map(len, second)))  # squared
    center = sum(differences) / count
    spread = (sum(value**2 for value in differences) + added) / count - center**2
    reach = _quantile(level) * math.sqrt(spread / count)
    return Estimate(fmean(differences), max(center - reach, -1.0), min(center + reach, 1.0))


def _estimate(values: Sequence[float], level: float) -> Estimate:
    """Return the mean with an interval, which never ends beyond 0 and 1.

    The interval is that of the values with `z^2 / 2` problems added that are wrong and as many that are right (Agresti
    and Coull 1998, for a proportion): few values near 0 or 1 have too little spread of their own.

    Args:
        values: unbiased estimates in [0, 1], one per problem.
        level: probability that the interval covers.
    """
    z = _quantile(level)
    count = len(values) + z**2
    center = (sum(values) + z**2 / 2) / count
    spread = (sum(value**2 for value in values) + z**2 / 2) / count - center**2
    return _within_0_and_1(fmean(values), center, z * math.sqrt(spread / count))


def _within_0_and_1(mean: float, center: float, reach: float) -> Estimate:
    return Estimate(mean, max(min(center - reach, mean), 0.0), min(max(center + reach, mean), 1.0))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; pass a probability between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf((1 + level) / 2)


def _without_right(completions: int, right: int, k: int) -> float:
    """Return the probability that none of `k` of the completions is right."""
    return math.comb(completions - right, k) / math.comb(completions, k)


def _right(problem: Sequence[float]) -> int:
    return sum(score == 1 for score in problem)


def _majority(answers: Sequence[Hashable], scores: Sequence[float]) -> float:
    if len(answers) != len(scores):
        raise ValueError(f"`answers` has {len(answers)} of a problem with {len(scores)} scores; pass one for each.")
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    chosen = [answer for answer, count in votes.items() if count == most]
    right = {answer for answer, score in zip(answers, scores, strict=True) if score == 1}
    return sum(answer in right for answer in chosen) / len(chosen)


def _require_scores(scores: Scores) -> None:
    if not scores or not all(scores):
        raise ValueError("`scores` has no problem, or one without a completion; pass at least one score for each.")
    for problem in scores:
        for score in problem:
            if not 0 <= score <= 1:
                raise ValueError(f"`scores` has {score}; pass scores between 0 and 1.")
