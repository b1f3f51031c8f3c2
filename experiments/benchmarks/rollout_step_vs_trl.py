"""A rollout step of the addition model, 0.7 million parameters, by this project and by TRL's GRPOTrainer.

16 prompts with 8 completions of at most 40 tokens, two updates, GRPO's objective, AdamW, and a checkpoint of the
addition model that works out every sum and gets about half of them right, as in most of a run of the default
configuration. TRL must be installed:

    python -m experiments.benchmarks.rollout_step_vs_trl
"""

from __future__ import annotations

from experiments.benchmarks.against_trl import Job, compare, parser_of, run_side
from lightning_modules import boxed_answer
from lightning_modules.addition import AdditionProblems, AdditionWarmStart


def main() -> None:
    """Compare both sides."""
    options = parser_of(__doc__, pairs=5, rollouts=20).parse_args()
    model = AdditionWarmStart(guess_share=0.0).prepare()
    if options.side:
        examples = [dict(example) for example in AdditionProblems(4096)]
        job = (model, examples, boxed_answer, 16, 8, 2, 40)
        run_side(Job(*job, options.engine, options.precision), options)
        return
    shared = ("engine", "precision", "rollouts", "skipped")
    own = [part for name in shared for part in (f"--{name}", str(getattr(options, name)))]
    compare(own, options.pairs, "experiments.benchmarks.rollout_step_vs_trl")


if __name__ == "__main__":
    main()
