"""GRPO and GMPO side by side in one short loop: sample, score, compare, update.

    python experiments/minimal_loop.py

It downloads nothing and takes less than a minute on a CPU. Read `Learner.step` first. Both objectives see the ratios of
a completion's tokens, new probability over old. GRPO takes their arithmetic mean, so a token's gradient is weighted by
its own ratio, and clips at 0.8 and 1.2. GMPO takes their geometric mean, so all unclipped tokens have the same weight,
and clips at 0.67 and 1.49. The last lines of the output show these weights for one completion.

The loop needs torch, transformers (with tokenizers) and `aggregate_po` only. Four things are simpler than with
`lightning_modules`:

1. The model is a tiny transformer with random weights. Its task is to repeat a digit four times and then to stop. For a
   model of your own, call `from_pretrained` in `tiny_model`, and replace `PROMPTS` and `reward`.
2. One process trains on the whole rollout in one pass, without ranks, micro-batches or packed sequences.
3. The trainer computes `old_log_probs`. A faster sampler, such as vLLM, returns log-probabilities of its own.
4. There is no KL penalty, no held-out set, no learning-rate schedule and no checkpoint.
"""

import argparse

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aggregate_po import GroupedRewards, PolicyBatch
from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import gmpo, grpo

GROUP_SIZE, MAX_NEW_TOKENS, UPDATES_PER_ROLLOUT = 16, 8, 4
PROMPTS = [f"{digit}:" for digit in range(10)]


def reward(prompt, completion):
    """Return the share of four places that hold the prompt's digit; what is longer is divided by its length."""
    return sum(character == prompt[0] for character in completion[:4]) / max(len(completion), 4)


def tiny_model():
    """Return a tokenizer with one token per character, and a causal language model that has learned nothing yet."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *"0123456789:"])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer, characters.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, pad_token="<pad>", eos_token="<eos>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": len(vocabulary), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return tokenizer, LlamaForCausalLM(LlamaConfig(**sizes, **tokens))


class Learner:
    """A policy and the objective that trains it."""

    def __init__(self, objective, learning_rate, seed):
        torch.manual_seed(seed)  # every learner begins with the same weights
        self.tokenizer, self.model = tiny_model()
        self.objective = objective
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, weight_decay=0.0)

    def step(self, seed):
        """Sample one rollout and make several updates with it; return rewards, last log-probabilities and batch."""
        sequences, attention_mask, response_mask, rewards = self.rollout(seed)
        time = response_mask.shape[1]
        with torch.no_grad():
            old_log_probs = self.log_probs(sequences, attention_mask, time)
        # A completion is as good as its distance from the mean of its group, in standard deviations.
        advantages = GroupNormalized()(GroupedRewards(rewards, GROUP_SIZE))
        batch = PolicyBatch(old_log_probs, response_mask, advantages)
        for _ in range(UPDATES_PER_ROLLOUT):
            log_probs = self.log_probs(sequences, attention_mask, time)
            loss = -self.objective(log_probs, batch)  # GRPO and GMPO differ here and nowhere else
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        return rewards, log_probs.detach(), batch

    @torch.no_grad()
    def rollout(self, seed):
        """Sample `GROUP_SIZE` completions of each prompt and score them."""
        torch.manual_seed(seed)
        prompts = self.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
        # The distribution that `log_probs` scores: no temperature, top-k or top-p.
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": MAX_NEW_TOKENS}
        sequences = self.model.generate(**prompts, **sampling, num_return_sequences=GROUP_SIZE)
        completions = sequences[:, prompts.input_ids.shape[1] :]
        # The first end of sequence is a token of the completion; everything behind it is padding.
        ends = completions == self.tokenizer.eos_token_id
        response_mask = ends.cumsum(dim=-1) - ends.long() == 0
        prompt_mask = prompts.attention_mask.repeat_interleave(GROUP_SIZE, dim=0)
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        rewards = [reward(PROMPTS[number // GROUP_SIZE], text) for number, text in enumerate(texts)]
        return sequences, torch.cat([prompt_mask, response_mask], dim=1), response_mask, torch.tensor(rewards)

    def log_probs(self, sequences, attention_mask, time):
        """Return the log-probability of the last `time` tokens of each sequence; shape `batch time`."""
        positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = self.model(sequences, attention_mask=attention_mask, position_ids=positions).logits
        predicted = logits[:, -time - 1 : -1].log_softmax(dim=-1)  # a token is predicted one place before it
        return predicted.gather(-1, sequences[:, -time:].unsqueeze(-1)).squeeze(-1)


def row(objective, rewards, log_probs, batch):
    """Return the metrics of a step: mean reward, and how far ratios have moved from 1 by the last update."""
    ratios = (log_probs - batch.old_log_probs)[batch.response_mask].exp()
    clipped = objective.gradient_weights(log_probs, batch).clipped[batch.response_mask].float().mean()
    return f"{rewards.mean():6.3f} {ratios.min():6.2f} to {ratios.max():5.2f} {clipped:8.3f}"


def explain(learners, log_probs, batch):
    """Print the gradient weights of one good completion under each objective; on policy all of them would be 1."""
    log_ratio = torch.where(batch.response_mask, log_probs - batch.old_log_probs, 0)
    chosen = torch.where(batch.advantages > 0, log_ratio.std(dim=-1), 0).argmax().reshape(1)
    one, length = batch.select(chosen), batch.response_mask[chosen].sum()
    columns = {"ratio": log_ratio[chosen].exp()}
    for name, learner in learners.items():
        weights = learner.objective.gradient_weights(log_probs[chosen], one)
        columns[name] = length * weights.magnitude * weights.concentration * weights.gate
    print("\none completion of the first rollout, at its last update: ratio and gradient weight of each token")
    for name, values in columns.items():
        print(f"{name:5}" + "".join(f"{value:7.2f}" for value in values[one.response_mask]))


def main(steps=60, learning_rate=5e-4, seed=0):
    """Train with both objectives, print a line per step, and return the mean rewards of each."""
    learners = {"GRPO": Learner(grpo(), learning_rate, seed), "GMPO": Learner(gmpo(), learning_rate, seed)}
    print("step |" + " |".join(f" {name}: reward, ratios, clipped  " for name in learners))
    results = []
    for step in range(steps):
        results.append({name: learner.step(seed + step) for name, learner in learners.items()})
        rows = [row(learners[name].objective, *result) for name, result in results[-1].items()]
        print(f"{step:4} | " + " | ".join(rows), flush=True)
    explain(learners, *results[0]["GRPO"][1:])
    return {name: [result[name][0].mean().item() for result in results] for name in learners}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="number of rollouts; each serves four updates")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of sampling")
    main(**vars(parser.parse_args()))
