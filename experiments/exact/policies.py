"""Softmax policies over short sequences, with every sequence enumerated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """All sequences of a vocabulary, as the paths of a tree with one softmax at each of its prefixes.

    Args:
        tokens: Tokens of each sequence, 0 after its end; shape `sequence time`.
        prefixes: Number of the prefix before each token, 0 after the end; shape `sequence time`.
        mask: True on the tokens of each sequence; shape `sequence time`.
        vocabulary: Number of symbols.

    A policy is given by its logits, shape `prefix symbol`.

    Example:
        >>> sequences = Sequences.of(vocabulary=2, length=2)
        >>> sequences.tokens.tolist(), sequences.prefixes.tolist()
        ([[0, 0], [0, 1], [1, 0], [1, 1]], [[0, 1], [0, 1], [0, 2], [0, 2]])
    """

    tokens: Tensor
    prefixes: Tensor
    mask: Tensor
    vocabulary: int

    @classmethod
    def of(cls, vocabulary: int, length: int, stop: bool = False) -> Sequences:
        """Return all sequences of this length, or those that end with symbol 0 or have this length.

        Args:
            vocabulary: Number of symbols, 2 or more.
            length: Number of tokens, 1 or more.
            stop: Whether symbol 0 ends a sequence.

        Raises:
            ValueError: a number is too small.
        """
        if vocabulary < 2 or length < 1:
            raise ValueError(
                f"`vocabulary` is {vocabulary} and `length` {length}; pass 2 or more symbols and 1 or more tokens."
            )
        running, ended, prefix_count = [([], [])], [], 0
        for _ in range(length):
            numbered = [(tokens, [*prefixes, prefix_count + i]) for i, (tokens, prefixes) in enumerate(running)]
            prefix_count += len(running)
            longer = [([*tokens, token], prefixes) for tokens, prefixes in numbered for token in range(vocabulary)]
            ended += [one for one in longer if stop and one[0][-1] == 0]
            running = [one for one in longer if not (stop and one[0][-1] == 0)]
        every = [*ended, *running]

        def padded(rows: list[list[int]]) -> Tensor:
            return torch.tensor([row + [0] * (length - len(row)) for row in rows])

        lengths = torch.tensor([len(tokens) for tokens, _ in every])
        mask = torch.arange(length) < rearrange(lengths, "sequence -> sequence 1")
        return cls(
            padded([tokens for tokens, _ in every]), padded([prefixes for _, prefixes in every]), mask, vocabulary
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the logits of a policy, `prefix symbol`."""
        return int(self.prefixes.max()) + 1, self.vocabulary

    def log_probs(self, logits: Tensor) -> Tensor:
        """Return the log-probability of each token, 0 after the end; shape `sequence time`; nats.

        Args:
            logits: Logits of the policy; shape `prefix symbol`.
        """
        return torch.where(self.mask, torch.log_softmax(logits, dim=-1)[self.prefixes, self.tokens], 0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each sequence; shape `sequence`."""
        return self.log_probs(logits).sum(dim=-1).exp()

    def gradient(self, logits: Tensor, weights: Tensor, rows: Tensor | None = None) -> Tensor:
        r"""Return $\sum w_t \nabla \log \pi(o_t)$ over all tokens of some sequences, without the scores themselves.

        Args:
            logits: Logits of the policy; shape `prefix symbol`.
            weights: Weight $w_t$ of each token, in one batch or several; shape `batch sequence time`.
            rows: Numbers of the sequences; all sequences without any.

        Returns:
            Weighted sum of each batch; shape `batch parameter`.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        weights = weights * self.mask[rows]
        of_tokens = weights.new_zeros(len(weights), logits.numel())
        at = self.prefixes[rows] * self.vocabulary + self.tokens[rows]
        of_tokens.index_add_(1, at.flatten(), weights.flatten(1))
        # What a softmax adds to the logit of a token it subtracts from all logits of the prefix by their probability.
        of_tokens = rearrange(of_tokens, "batch (prefix symbol) -> batch prefix symbol", symbol=self.vocabulary)
        centered = of_tokens - of_tokens.sum(dim=-1, keepdim=True) * torch.softmax(logits, dim=-1)
        return rearrange(centered, "batch prefix symbol -> batch (prefix symbol)")

    def squared_scores(self, logits: Tensor) -> Tensor:
        r"""Return $|\nabla \log \pi(o_t)|^2$ of each token, 0 after the end; shape `sequence time`."""
        probabilities = torch.softmax(logits, dim=-1)
        others = probabilities.square().sum(dim=-1)[self.prefixes]
        return (1 - 2 * probabilities[self.prefixes, self.tokens] + others) * self.mask

    def expected_reward(self, logits: Tensor, rewards: Tensor) -> Tensor:
        """Return the expected reward of the policy, a scalar attached to the graph of the logits.

        Args:
            logits: Logits of the policy; shape `prefix symbol`.
            rewards: Reward of each sequence; shape `sequence`.
        """
        return self.probabilities(logits) @ rewards

    def policy_gradient(self, logits: Tensor, rewards: Tensor) -> Tensor:
        """Return the gradient of the expected reward, enumerated; shape `parameter`."""
        weights = repeat(self.probabilities(logits) * rewards, "sequence -> 1 sequence time", time=self.mask.shape[1])
        return self.gradient(logits, weights)[0]

    def token_values(self, logits: Tensor, rewards: Tensor) -> Tensor:
        """Return the expected reward given the sequence up to and including each token; shape `sequence time`."""
        probabilities = self.probabilities(logits)
        values = torch.zeros(self.tokens.shape, dtype=logits.dtype)
        for time in range(self.tokens.shape[1]):
            # Sequences share a prefix if they have the same tokens, ended ones by themselves.
            same = (self.tokens[:, None, : time + 1] == self.tokens[None, :, : time + 1]).all(dim=-1)
            same &= self.mask[:, None, time] == self.mask[None, :, time]
            shares = same * probabilities
            values[:, time] = einsum(shares, rewards, "sequence other, other -> sequence") / shares.sum(dim=-1)
        return torch.where(self.mask, values, 0)
