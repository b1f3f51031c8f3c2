"""Our objectives in TRL's trainer: its own losses and gradients on identical inputs, and real optimizer steps."""

import inspect
import re
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.peers import require_peers

require_peers("trl")

import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler
from trl import GRPOConfig, GRPOTrainer

from aggregate_po import (
    EntropyBonus,
    GaussianKL,
    K3Penalty,
    LagrangePenalty,
    PolicyBatch,
    PolicyObjective,
    SequenceCorrection,
    StepTotals,
    TokenCorrection,
)
from aggregate_po.adapters.trl import ObjectiveGRPOTrainer
from aggregate_po.adapters.trl_entropy import entropy_bonus
from aggregate_po.adapters.trl_options import HONORED, REPLACED, WITHOUT_EFFECT, with_kl
from aggregate_po.recipes import (
    apmpo,
    cispo,
    ctpo,
    dapo,
    dr_grpo,
    flow_dppo,
    flow_grpo,
    gmpo,
    grpo,
    grpo_guard,
    gspo,
    holder_po,
    luspo,
    pmpo,
    real,
    sapo,
    vespo,
)
from lightning_modules import LinearDecay
from tests.parity.test_peers import PEERS
from tests.third_party.lehmer import LehmerMean

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-trl-and-verl.md"
OPTIONS = {field.name for field in fields(GRPOConfig)}
LENGTH = 6
# Values of TRL's losses that contain the log-probability itself are not those of the ratio.
PAIRS = {
    "grpo": (grpo(), {"loss_type": "grpo"}),
    "dapo": (dapo(0.2, 0.2), {"loss_type": "dapo"}),
    "dr_grpo": (dr_grpo(LENGTH, 0.2, 0.2), {"loss_type": "dr_grpo"}),
    "gspo": (gspo(0.1, 0.15), {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilons": (0.1, 0.15)}),
    "sapo": (sapo(), {"loss_type": "sapo"}),
    "luspo": (luspo(0.2, 0.2), {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
    "cispo": (cispo(), {"loss_type": "cispo", "epsilons": (0.2, 5.0)}),
    "vespo": (vespo(), {"loss_type": "vespo"}),
}
GRADIENT_ONLY = ("cispo", "vespo")
KL = {
    "weighted": {"use_bias_correction_kl": True},
    "plain": {"use_bias_correction_kl": False},
}
MODES = ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate")


def reward(completions, **_):
    return [float(sum(map(ord, completion)) % 5) for completion in completions]


def config(folder, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": LENGTH,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
    }
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return GRPOConfig(str(folder), gradient_checkpointing=False, **{**fixed, **defaults, **options})


def arguments(model, args):
    return {
        "model": AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False),
        "reward_funcs": reward,
        "args": args,
        "train_dataset": Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(4) for b in range(4)]),
        "processing_class": AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False),
    }


class Perturbed(ObjectiveGRPOTrainer):
    """Trainer on rollouts far from the policy, with a mask of tools, and a sampler that disagrees with the trainer."""

    with_tools = False

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        generator = torch.Generator().manual_seed(len(self._metrics["train"]))
        old, mask = output["old_per_token_logps"], output["completion_mask"]
        output["old_per_token_logps"] = old + 0.3 * torch.randn(old.shape, generator=generator)
        lengths = torch.randint(2, mask.shape[1] + 1, (len(mask), 1), generator=generator)
        output["completion_mask"] = mask = (torch.arange(mask.shape[1]) < lengths).long() * mask
        if self.with_tools:
            output["tool_mask"] = (torch.rand(mask.shape, generator=generator) < 0.7).long()
            output["tool_mask"][:, 0] = 1
        trained = (mask * output.get("tool_mask", 1)).sum()
        output["num_items_in_batch"] = self.accelerator.gather(trained).sum()
        sampler = output["old_per_token_logps"] + 0.3 * torch.randn(old.shape, generator=generator)
        sampler[0, 0] = torch.nan
        output["sampling_per_token_logps"] = sampler
        return output

    def gradient(self, loss):
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None])

    @contextmanager
    def as_trl(self, loss_type="grpo", epsilons=(0.2, 0.2), **settings):
        """Give TRL's own loss its settings, which the constructor refuses."""
        settings |= {"loss_type": loss_type, "epsilon_low": epsilons[0], "epsilon_high": epsilons[1]}
        kept = {name: getattr(self, name) for name in settings if hasattr(self, name)}
        vars(self).update(settings)
        yield
        vars(self).update(kept)


class Compared(Perturbed):
    """Evaluates losses of TRL next to each of ours on the micro-batches of a training run."""

    def __init__(self, *positional, pairs, **options):
        super().__init__(*positional, objective=grpo(), **options)
        self.pairs, self.differences = pairs, {name: [] for name in pairs}

    def compute_loss(self, model, inputs, *positional, **options):
        for name, (objective, settings) in self.pairs.items():
            self.policy_objective, _ = with_kl(objective, self.args)
            self._step_diagnostics = None
            ours = super().compute_loss(model, inputs)
            with self.as_trl(**settings):
                theirs = GRPOTrainer._compute_loss(self, model, self.with_weights(inputs))
            expected = self.gradient(theirs)
            error = (self.gradient(ours) - expected).abs().max() / expected.abs().max()
            self.differences[name].append((float(ours - theirs), float(error)))
            self._step_diagnostics = None
        return ours

    def with_weights(self, inputs):
        """Add the weights that TRL's own generation with vLLM would have added."""
        if not self.use_vllm:
            return inputs
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        log_weights = torch.nan_to_num((inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]) * mask)
        level, _, outside = self.vllm_importance_sampling_mode.partition("_")
        weights = (log_weights.sum(dim=-1, keepdim=True) if level == "sequence" else log_weights).exp()
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        inside = (weights >= low) & (weights <= high)
        weights = weights.clamp(low, high) if outside == "truncate" else torch.where(inside, weights, 0)
        return {**inputs, "importance_sampling_ratio": weights}


def differences(model, folder, pairs, tools=False, **options):
    trainer_options = {name: options.pop(name) for name in ("peft_config",) if name in options}
    trainer = Compared(**arguments(model, config(folder, **options)), pairs=pairs, **trainer_options)
    trainer.with_tools = tools
    trainer.train()
    assert all(len(found) == 4 for found in trainer.differences.values())
    return trainer.differences


def assert_equal(found, values=True):
    for loss, gradient in found:
        assert gradient < 5e-6
        assert abs(loss) < 1e-6 or not values


@pytest.fixture(scope="module")
def plain(tiny_model, tmp_path_factory):
    return differences(tiny_model, tmp_path_factory.mktemp("plain"), PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient_under_accumulation(plain, name):
    assert_equal(plain[name], values=name not in GRADIENT_ONLY)


@pytest.mark.parametrize("kind", KL)
def test_beta_and_tool_mask(tiny_model, tmp_path, kind):
    pairs = {name: PAIRS[name] for name in ("grpo", "dapo", "dr_grpo")}
    found = differences(tiny_model, tmp_path, pairs, tools=True, beta=0.04, **KL[kind])
    for name in pairs:
        assert_equal(found[name])


def test_trl_weights_the_divergence_by_the_ratio_of_the_completion_where_its_loss_has_that_ratio(tiny_model, tmp_path):
    """Here the penalty is a function of tokens under any objective, so only the unweighted one is equal."""
    for kind, options in KL.items():
        found = differences(tiny_model, tmp_path / kind, {"gspo": PAIRS["gspo"]}, beta=1.0, **options)
        if kind == "plain":
            assert_equal(found["gspo"])
        else:
            assert max(error for _, error in found["gspo"]) > 0.02


def test_adapters_of_peft(tiny_model, tmp_path):
    pairs = {name: PAIRS[name] for name in ("grpo", "gspo")}
    adapters = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    found = differences(tiny_model, tmp_path, pairs, peft_config=adapters, beta=0.04, use_bias_correction_kl=False)
    for name in pairs:
        assert_equal(found[name])


class Corrected(Compared):
    """With the correction of vLLM, though another engine has sampled."""

    def compute_loss(self, model, inputs, *positional, **options):
        self.use_vllm = self.vllm_importance_sampling_correction = True
        low, high = 0.7, 1.5
        self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max = low, high
        for mode in MODES:
            level, _, outside = mode.partition("_")
            kind = TokenCorrection if level == "token" else SequenceCorrection
            self._correction, self.vllm_importance_sampling_mode = kind(high, low, outside), mode
            self.pairs = {mode: PAIRS["grpo"]}
            self.differences.setdefault(mode, [])
            loss = super().compute_loss(model, inputs)
        self.use_vllm = False
        return loss


def test_correction_of_the_sampler(tiny_model, tmp_path):
    """A masked token has a value here and none in TRL; no gradient in both."""
    trainer = Corrected(**arguments(tiny_model, config(tmp_path)), pairs={})
    trainer.train()
    for mode in MODES:
        assert_equal(trainer.differences[mode], values=mode != "token_mask")


def test_mask_of_high_entropy(tiny_model, tmp_path):
    found = differences(tiny_model, tmp_path, {"grpo": PAIRS["grpo"]}, top_entropy_quantile=0.3)
    assert_equal(found["grpo"], values=False)


HAS_BONUS = pytest.mark.skipif("entropy_coef" not in OPTIONS, reason="this version of TRL has no entropy bonus")


@HAS_BONUS
def test_entropy_bonus_of_one_micro_batch(tiny_model, tmp_path):
    """TRL averages it over micro-batches, however many tokens they have."""
    pairs = {name: PAIRS[name] for name in ("grpo", "dr_grpo", "gspo")}
    one = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "max_steps": 4}
    found = differences(tiny_model, tmp_path, pairs, tools=True, entropy_coef=0.7, **one)
    for name in pairs:
        assert_equal(found[name])
    several = differences(tiny_model, tmp_path, {"grpo": PAIRS["grpo"]}, entropy_coef=0.7)
    assert max(error for _, error in several["grpo"]) > 1e-3


class Whole(Perturbed):
    """Compares the gradient that the optimizer gets with that of the objective on the step; records the totals."""

    def __init__(self, *positional, **options):
        super().__init__(*positional, **options)
        self.errors, self.totals = [], []

    def _policy_batch(self, *inputs):
        batch = super()._policy_batch(*inputs)
        self.totals.append(batch.totals)
        return batch

    def training_step(self, model, *positional, **options):
        loss = super().training_step(model, *positional, **options)
        if self.accelerator.sync_gradients:
            parts = [self._buffered_inputs[number] for number in self._micro_batches]
            one = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}
            log_probs, entropies, _ = self._evaluated_tokens(model, one)
            totals = StepTotals.of(one["completion_mask"].bool())
            batch = PolicyBatch(one["old_per_token_logps"], one["completion_mask"], one["advantages"], totals)
            bonus = getattr(self, "entropy_coef", 0) * entropies[batch.response_mask].mean()
            whole = self.gradient(-self.policy_objective(log_probs, batch) - bonus)
            received = torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])
            self.errors.append(float((received - whole).abs().max() / whole.abs().max()))
        return loss


@pytest.mark.parametrize(
    ("objective", "options"),
    [(gmpo(), {}), (pmpo(), {}), (dapo(), {}), pytest.param(gmpo(), {"entropy_coef": 0.7}, marks=HAS_BONUS)],
    ids=["gmpo", "pmpo", "dapo", "entropy bonus"],
)
def test_the_optimizer_gets_the_gradient_of_the_step(tiny_model, tmp_path, objective, options):
    """With several optimizer steps to a generation too, where TRL's own token mean divides by another number."""
    args = config(tmp_path, steps_per_generation=4, num_iterations=1, **options)
    trainer = Whole(**arguments(tiny_model, args), objective=objective)
    trainer.train()
    assert len(trainer.errors) == 2
    assert max(trainer.errors) < 5e-6
    assert [totals.progress for totals in trainer.totals] == [0.0, 0.0, 0.5, 0.5]
    assert all(totals.completions == 8 for totals in trainer.totals)
    logged = {row["step"]: row for row in trainer.state.log_history if "reward" in row}
    assert trainer.totals[0].reward_mean == pytest.approx(logged[1]["reward"])
    assert trainer.totals[0].reward_std > 0


def test_trl_divides_a_token_mean_by_the_tokens_of_the_generation(tiny_model, tmp_path):
    args = config(tmp_path, steps_per_generation=4, num_iterations=1)
    trainer = Compared(**arguments(tiny_model, args), pairs={"dapo": PAIRS["dapo"], "grpo": PAIRS["grpo"]})
    trainer.train()
    assert_equal(trainer.differences["grpo"])
    assert max(error for _, error in trainer.differences["dapo"]) > 1e-4


# --- real steps ------------------------------------------------------------------------------------------------------

TRAINED = {
    "grpo": grpo(),
    "gmpo": gmpo(),
    "pmpo": pmpo(),
    "ctpo": ctpo(),
    "a user's aggregator": PolicyObjective(LehmerMean(2.0)),
    "by the reward": apmpo(),
    "by the progress": holder_po(),
    "with a reference": gmpo(penalties=[K3Penalty(0.04), EntropyBonus(0.01)]),
}


@pytest.mark.parametrize("name", TRAINED)
def test_four_real_steps(tiny_model, tmp_path, name):
    inputs = arguments(tiny_model, config(tmp_path, max_steps=4))
    trainer = ObjectiveGRPOTrainer(**inputs, objective=TRAINED[name])
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    rows = [row for row in trainer.state.log_history if "policy_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    for row in rows:
        assert {"weights/ess_fraction", "clip_ratio/region_mean", "kl_old", "ratio/max", "entropy", "loss"} <= {*row}
        assert ("kl" in row) == (name == "with a reference")
    assert rows[0]["ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["ratio/max"] > 1
    assert ("exponent/mean" in rows[0]) == (name in ("pmpo", "by the reward", "by the progress"))


def test_a_generation_without_a_single_reward_leaves_those_of_the_last(tiny_model, tmp_path):
    """The mean of no rewards would make the exponent of a rule NaN."""
    scores, seen = iter([[1.0, 0.0] * 4, [None] * 8]), []

    class Recorded(ObjectiveGRPOTrainer):
        def _totals(self, mask):
            seen.append(super()._totals(mask))
            return seen[-1]

    def rewarded(completions, **_):
        return next(scores)

    inputs = arguments(tiny_model, config(tmp_path, num_iterations=1)) | {"reward_funcs": rewarded}
    trainer = Recorded(**inputs, objective=apmpo())
    trainer.train()
    assert [(totals.reward_mean, totals.reward_std) for totals in seen] == [(0.5, 0.5)] * 4
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (pmpo(), {"top_entropy_quantile": 0.3}),
        (gmpo(penalties=[LagrangePenalty(K3Penalty(1.0), bound=0.1, step_size=0.1)]), {}),
        pytest.param(dapo(), {"beta": 0.1, "entropy_coef": 0.5}, marks=HAS_BONUS),
    ],
    ids=["quantile", "penalty", "bonus"],
)
def test_a_step_whose_completions_are_all_masked_changes_nothing(tiny_model, tmp_path, objective, options):
    """As with `mask_truncated_completions` if none has ended."""

    class Truncated(ObjectiveGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            return output | {"completion_mask": torch.zeros_like(output["completion_mask"])}

    args = config(tmp_path, weight_decay=0.0, **options)
    trainer = Truncated(**arguments(tiny_model, args), objective=objective)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    assert torch.equal(before, after)
    rows = [row for row in trainer.state.log_history if "policy_loss" in row]
    assert [(row["policy_loss"], row["entropy"], row["grad_norm"]) for row in rows] == [(0, 0, 0)] * 2


def test_the_lines_of_the_page(tiny_model, tmp_path):
    code = re.search(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    given = arguments(tiny_model, config(tmp_path))
    names = {name: given[name] for name in ("reward_funcs", "args", "train_dataset")}
    exec(code, names | (found := {"model": str(tiny_model)}), found)
    assert repr(found["trainer"].policy_objective) == repr(gmpo())


def test_the_learning_rate_of_the_page_is_that_of_the_defaults(tmp_path):
    """The learning rate falls linearly to 0 from the peak in the first step."""
    args = config(tmp_path)
    assert (args.lr_scheduler_type, args.get_warmup_steps(10)) == ("linear", 0)
    optimizers = [torch.optim.SGD([torch.zeros(1)], lr=1e-6) for _ in range(2)]
    theirs, ours = get_scheduler("linear", optimizers[0], 0, 10), LinearDecay(optimizers[1], decay_steps=10)
    for _ in range(9):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr())
        for schedule, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.step()
            schedule.step()
    assert "class_path: lightning_modules.LinearDecay" in PAGE.read_text(encoding="utf-8")


def test_evaluation_logs_the_same_metrics(tiny_model, tmp_path):
    args = config(tmp_path, per_device_eval_batch_size=4)
    inputs = arguments(tiny_model, args)
    trainer = ObjectiveGRPOTrainer(**inputs, eval_dataset=inputs["train_dataset"].select([0]), objective=gmpo())
    metrics = trainer.evaluate()
    assert {"eval_weights/ess_fraction", "eval_policy_loss"} <= {*trainer.state.log_history[-1]}
    assert metrics["eval_loss"] == pytest.approx(trainer.state.log_history[-1]["eval_policy_loss"], abs=1e-6)


def test_penalties_adapt_once_a_step_and_resume(tiny_model, tmp_path):
    """By the average of the step, which is nearly all of its loss: the multiplier is large, and advantages sum to 0."""

    def trained(steps, **options):
        penalty = LagrangePenalty(EntropyBonus(1.0), bound=0.0, step_size=0.25, multiplier=20.0)
        args = config(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        trainer = ObjectiveGRPOTrainer(**arguments(tiny_model, args), objective=grpo(penalties=[penalty]))
        trainer.train(**options)
        return penalty.multiplier, [row["policy_loss"] for row in trainer.state.log_history if "policy_loss" in row]

    reached, losses = trained(2)
    assert len(losses) == 2
    first = 20 + 0.25 * losses[0] / 20
    assert reached == pytest.approx(first + 0.25 * losses[1] / first, abs=0.02)
    assert reached < first - 1 < 18
    checkpoint = tmp_path / "checkpoint-2"
    resumed, losses = trained(3, resume_from_checkpoint=str(checkpoint))
    assert resumed == pytest.approx(reached + 0.25 * losses[-1] / reached, abs=0.02)
    (checkpoint / "objective.pt").unlink()
    with pytest.raises(ValueError, match=r"there is no objective.pt with the state of the penalties"):
        trained(3, resume_from_checkpoint=str(checkpoint))


@HAS_BONUS
def test_the_coefficient_of_the_bonus_adapts_once_a_step_and_resumes(tiny_model, tmp_path):
    def trained(steps, target, **options):
        adaptive = {"use_adaptive_entropy": True, "entropy_coef_delta": 0.3, "entropy_target": target}
        args = config(tmp_path, max_steps=steps, save_strategy="steps", save_steps=4, **adaptive)
        trainer = ObjectiveGRPOTrainer(**arguments(tiny_model, args), objective=grpo())
        trainer.train(**options)
        return trainer, [row["entropy_coef"] for row in trainer.state.log_history if "entropy_coef" in row]

    trainer, rising = trained(4, target=100.0)
    assert rising == pytest.approx([0.3, 0.6, 0.9, 1.0])
    logged = [row["entropy"] for row in trainer.state.log_history if "entropy" in row]
    assert trainer._last_world_entropy == pytest.approx(logged[-1])
    _, both = trained(6, target=0.0, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert both == pytest.approx([*rising, 0.7, 0.4])


def test_the_bonus_is_idle_until_the_entropy_falls_to_the_target():
    entropies, batch = (
        torch.tensor([[1.0, 2.0, 9.0]]),
        PolicyBatch(torch.zeros(1, 3), torch.tensor([[1, 1, 0]]), torch.ones(1)),
    )
    trainer = SimpleNamespace(_entropy_bonus_enabled=True, use_adaptive_entropy=False, entropy_coef=0.5)
    assert entropy_bonus(trainer, entropies, batch) == 0.75
    trainer.use_adaptive_entropy, trainer.args = True, SimpleNamespace(entropy_target=1.2)
    for entropy, expected in ((1.3, 0.0), (1.2, 0.75)):
        trainer._last_world_entropy = entropy
        assert entropy_bonus(trainer, entropies, batch) == expected
    assert entropy_bonus(SimpleNamespace(), entropies, batch) == 0


# --- options ---------------------------------------------------------------------------------------------------------


def test_every_option_that_the_loss_reads_is_honored_or_refused():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    read = {name.replace("epsilon_low", "epsilon") for name in re.findall(r"self\.(?:args\.)?(\w+)", source)} & OPTIONS
    assert len(read) > 15
    assert read <= {*REPLACED, *HONORED, *WITHOUT_EFFECT}
    if trl.__version__ == PEERS["trl"]:
        assert {*REPLACED, *HONORED, *WITHOUT_EFFECT} <= OPTIONS


OTHER = {
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"), 0.3),
}


@pytest.mark.parametrize("name", [name for name in REPLACED if name in OPTIONS])
def test_an_option_that_the_objective_replaces_is_refused(tmp_path, name):
    args = config(tmp_path, **{name: OTHER.get(name, 7.0)})
    with pytest.raises(ValueError, match=rf"^`{name}` is .*, but the objective is the loss.*; leave it at .* and pass"):
        ObjectiveGRPOTrainer("no model", reward, args, objective=grpo())


@pytest.mark.parametrize(
    ("options", "objective", "message"),
    [
        ({"steps_per_generation": 3}, grpo(), "`steps_per_generation` is 3 and `gradient_accumulation_steps` 2"),
        ({"beta": 0.04}, grpo(penalties=[K3Penalty(0.1)]), "`beta` is 0.04, but `objective` has penalties of its own"),
        ({}, real(), "`objective` has the group objective LabelLogistic"),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "token_mask"},
            gspo(),
            "`vllm_importance_sampling_mode` is 'token_mask', but the sequence transform",
        ),
        pytest.param(
            {"entropy_coef": 0.1, "top_entropy_quantile": 0.5},
            grpo(),
            "`entropy_coef` is 0.1 and `top_entropy_quantile` 0.5",
            marks=HAS_BONUS,
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"},
            vespo(),
            "`vllm_importance_sampling_correction` is True, but the token transform of `objective` has GammaKernel",
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "tokn_mask"},
            grpo(),
            "`vllm_importance_sampling_mode` is 'tokn_mask'; pass one of token_mask, token_truncate, sequence_mask",
        ),
        pytest.param(
            {"use_vllm": True, "vllm_importance_sampling_clip_max": 0.0},
            grpo(),
            "`vllm_importance_sampling_clip_max` is 0.0 and `vllm_importance_sampling_clip_min` None, but they are",
            marks=pytest.mark.skipif("vllm_importance_sampling_clip_max" not in OPTIONS, reason="TRL before 1.6"),
        ),
        ({"beta": -1.0}, grpo(), "`beta` is -1.0; pass a finite number, 0 or more"),
    ],
    ids=["steps", "beta", "groups", "token weights", "entropy", "kernel", "mode", "bounds", "negative beta"],
)
def test_refusals(tmp_path, options, objective, message):
    args = config(tmp_path, per_device_train_batch_size=4, **options)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ObjectiveGRPOTrainer("no model", reward, args, objective=objective)


@pytest.mark.parametrize(
    ("objective", "missing"),
    [
        (grpo_guard(10), "`scale` is None, but RatioNorm reads it of each token"),
        (flow_dppo(), "`divergence` is None, but GaussianKLMask reads it of each token"),
        (flow_grpo(penalties=[GaussianKL(0.1)]), "`ref_divergence` is None, but the objective has a GaussianKL"),
    ],
    ids=["scale", "divergence", "divergence from the reference"],
)
def test_an_objective_that_reads_what_a_batch_of_trl_has_not_is_refused_before_the_model_is_loaded(
    tmp_path, objective, missing
):
    message = f"`objective` is {objective!r}, which needs what TRL does not pass to a loss: {missing}. Choose"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ObjectiveGRPOTrainer("no model", reward, config(tmp_path), objective=objective)


def test_what_is_no_objective_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"^`objective` is 'gmpo'; pass a PolicyObjective"):
        ObjectiveGRPOTrainer("no model", reward, config(tmp_path), objective="gmpo")
    with pytest.raises(ValueError, match=r"^`args` is None; pass a GRPOConfig"):
        ObjectiveGRPOTrainer("no model", reward, objective=grpo())


def test_log_probs_without_a_gradient_are_refused(tiny_model, tmp_path):
    inputs = arguments(tiny_model, config(tmp_path))
    inputs["model"].requires_grad_(False)
    inputs["model"].get_input_embeddings().weight.requires_grad_(True)
    trainer = ObjectiveGRPOTrainer(**inputs, objective=grpo())
    evaluate = trainer._get_per_token_logps_and_entropies

    def detached(*positional, **options):
        log_probs, *rest = evaluate(*positional, **options)
        return log_probs.detach(), *rest

    trainer._get_per_token_logps_and_entropies = detached
    with pytest.raises(RuntimeError, match=r"^The log-probabilities of the completions have no gradient"):
        trainer.train()


def test_a_loss_outside_of_a_training_loop_is_refused(tiny_model, tmp_path):
    trainer = ObjectiveGRPOTrainer(**arguments(tiny_model, config(tmp_path)), objective=grpo())
    trainer.model.train()
    with pytest.raises(RuntimeError, match=r"^The micro-batches of the optimizer step are unknown"):
        trainer._totals(torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match=r"^`return_outputs` is True"):
        trainer.compute_loss(trainer.model, {}, return_outputs=True)
