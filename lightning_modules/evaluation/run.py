"""Evaluation of a model on benchmarks, in batches of problems that survive the process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from aggregate_po.extras import install_command
from lightning_modules.configuration import described, described_arguments, with_contents
from lightning_modules.evaluation.benchmarks import Benchmark, benchmarks_of
from lightning_modules.evaluation.grading import Grader, answer_reader
from lightning_modules.evaluation.records import EvaluationFolder, GradedCompletion
from lightning_modules.evaluation.results import BenchmarkResult, result_of
from lightning_modules.evaluation.sampling import Precision, ProblemSampler, exported_model
from lightning_modules.evaluation.tables import write_results
from lightning_modules.model.policy import ModelSource
from lightning_modules.parquet_files import has_pyarrow, write_rows
from lightning_modules.progress import progress_bar
from lightning_modules.prompts import PromptFormat, PromptTemplate
from lightning_modules.prompts.base import shown
from lightning_modules.rewards import AnyReward, MathReward
from lightning_modules.rollouts import RolloutEngine, TransformersEngine
from lightning_modules.seeding import derived_seed
from lightning_modules.validation import require_at_least

_FREE = ("output", "workers", "accelerator")  # arguments that change nothing in the results


def evaluate(
    model: str | ModelSource,
    benchmarks: str | Sequence[str],
    output: str,
    samples: int | None = None,
    temperature: float = 0.6,
    top_p: float = 0.95,
    greedy: bool = True,
    max_completion_length: int = 3000,
    reward: AnyReward | None = None,
    workers: int = 2,
    verdict_limit: float = 5.0,
    rollouts: RolloutEngine | None = None,
    chat_template: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
    system_prompt: str | None = None,
    prompt_template: PromptTemplate | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    completions_per_batch: int = 256,
    precision: Precision | None = None,
    accelerator: str = "auto",
    seed: int = 0,
) -> list[BenchmarkResult]:
    """Evaluate a model on benchmarks, without an objective, and write the results to a folder.

    Each batch of problems is written to the folder when it is sampled and graded. The same call continues an evaluation
    that was killed, with the results that it would have had.

    Args:
        model: Hub id or folder of a Hugging Face causal language model, or the folder of a finished run.
        benchmarks: Names of benchmarks, files of problems, or NAME=FILE, separated by commas.
        output: Folder of the results; an evaluation with the same settings is continued in it.
        samples: Number of sampled completions of each problem; that of the benchmark when None.
        temperature: Sampling temperature.
        top_p: Probability of the nucleus to sample tokens from; 1.0 for all tokens.
        greedy: Whether to generate a greedy completion of each problem as well.
        max_completion_length: Maximum number of tokens of a completion.
        reward: Reward that grades completions, from 0 to 1, with 1 for a right one; `MathReward` when None. A function
            runs in other processes, and must be importable by its module and name.
        workers: Number of processes that grade completions.
        verdict_limit: Time limit of a verdict in seconds; the completion of a failed verdict counts as wrong.
        rollouts: Engine that generates the completions; transformers in this process when None.
        chat_template: Whether to format problems with the chat template of the tokenizer.
        chat_template_kwargs: Arguments of the chat template, such as `enable_thinking`.
        system_prompt: Text of a system message before each problem; it requires `chat_template`.
        prompt_template: Text with `{prompt}` in the place of a problem, or a function from the text of a problem to
            that of the prompt, such as `lightning_modules.prompts.qwen_math`.
        prompt_field: Field of the problem in files; the first of prompt, problem and question when None.
        answer_field: Field of the reference answer in files; when None, that of the benchmark whose name the file is
            given, or "answer".
        completions_per_batch: Number of completions that are sampled and graded together, and lost together by a kill;
            those of one problem at least.
        precision: Precision of the model; "bf16-true" on a GPU and "32-true" elsewhere when None.
        accelerator: Accelerator of Lightning, such as cpu or gpu.
        seed: Seed of sampling.

    Returns:
        The results of each benchmark, in their order.

    Raises:
        FileNotFoundError: a file of problems does not exist.
        ValueError: an argument is out of its range, a benchmark is unknown, the model cannot hold a problem, or
            `output` has an evaluation with other settings.
    """
    arguments = described_arguments(locals())
    require_at_least(1, samples=samples, max_completion_length=max_completion_length)
    require_at_least(1, completions_per_batch=completions_per_batch)
    _require_distribution(temperature, top_p)
    prompt_format = PromptFormat(chat_template, system_prompt, chat_template_kwargs or {}, prompt_template)
    reward = MathReward() if reward is None else reward
    engine = TransformersEngine() if rollouts is None else rollouts
    model = exported_model(model)
    found = benchmarks_of(benchmarks, samples, prompt_field, answer_field)
    parts = {"model": described(model), "reward": described(reward), "rollouts": described(engine)}
    folder = EvaluationFolder(Path(output), _settings({**arguments, **parts}, found))
    if any(_missing(one, folder, completions_per_batch) for one in found):
        with ExitStack() as stack:
            grader = stack.enter_context(Grader(reward, workers, verdict_limit))
            lengths = max_completion_length, prompt_format
            sampler = ProblemSampler(model, found, engine, *lengths, precision, accelerator)
            stack.callback(sampler.close)
            complete = _Batches(sampler, grader, temperature, top_p, greedy, seed)
            for one in found:
                _complete(one, folder, completions_per_batch, complete)
    return _written(found, folder, votes=answer_reader(reward) is not None)


class _Batches:
    """Samples and grades the completions of some problems."""

    def __init__(
        self, sampler: ProblemSampler, grader: Grader, temperature: float, top_p: float, greedy: bool, seed: int
    ) -> None:
        self._sampler, self._grader, self._greedy, self._seed = sampler, grader, greedy, seed
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, benchmark: Benchmark, problems: range) -> list[GradedCompletion]:
        """Return the sampled completions of the problems, and the greedy ones if there are any."""
        examples = [benchmark.problems[index] for index in problems]
        seed = derived_seed(self._seed, problems.start)
        distributions = [(False, self._temperature, self._top_p, benchmark.samples)]
        distributions += [(True, 0.0, 1.0, 1)] if self._greedy else []
        graded = []
        for greedy, temperature, top_p, samples in distributions:
            sampled = self._sampler(benchmark.name, problems, temperature, top_p, samples, seed)
            graded += self._grader(sampled, problems, examples, greedy)
        return graded


def _missing(benchmark: Benchmark, folder: EvaluationFolder, completions: int) -> list[range]:
    """Return the batches of problems that are not finished, each with at most so many sampled completions."""
    count, size = len(benchmark.problems), max(completions // benchmark.samples, 1)
    starts = range(0, count, size)
    return [range(start, min(start + size, count)) for start in starts if not folder.has(benchmark.name, start)]


def _complete(
    benchmark: Benchmark,
    folder: EvaluationFolder,
    completions: int,
    complete: Callable[[Benchmark, range], list[GradedCompletion]],
) -> None:
    """Finish all batches of a benchmark."""
    missing, count = _missing(benchmark, folder, completions), len(benchmark.problems)
    finished = count - sum(map(len, missing))
    with progress_bar(total=count, initial=finished, desc=benchmark.name, unit="problem") as progress:
        for problems in missing:
            graded = complete(benchmark, problems)
            folder.write(benchmark.name, problems.start, graded)
            progress.set_postfix(reward=f"{fmean(one.score for one in graded):.3f}", refresh=False)
            progress.update(len(problems))


def _written(found: Sequence[Benchmark], folder: EvaluationFolder, votes: bool) -> list[BenchmarkResult]:
    """Write the results of all benchmarks, and the Parquet file of their completions, and return the results."""
    graded = {one.name: list(folder.read(one.name)) for one in found}
    results = [result_of(one, graded[one.name], votes) for one in found]
    if has_pyarrow():
        rows = [row for one in found for row in _rows(one, graded[one.name])]
        write_rows(rows, folder.path / "completions.parquet")
    else:
        rank_zero_warn(
            "completions.parquet is not written: pyarrow is not installed; run "
            f"{install_command('parquet')} and repeat the command, or read the files of the folder `batches`."
        )
    write_results(results, folder.path)
    return results


def _rows(benchmark: Benchmark, graded: Sequence[GradedCompletion]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the Parquet file."""
    counts: Counter[tuple[int, bool]] = Counter()
    for one in graded:
        example = benchmark.problems[one.problem]
        sample = counts[one.problem, one.greedy]
        counts[one.problem, one.greedy] += 1
        about = {"prompt": shown(example["prompt"]), "answer": example["answer"], "sample": sample}
        yield {"benchmark": benchmark.name, **about, **asdict(one)}


def _settings(arguments: Mapping[str, Any], found: Sequence[Benchmark]) -> dict[str, Any]:
    """Return what the results depend on, as plain values."""
    # Training keeps the size of a file of weights, so a model is known by all its bytes.
    kept = {name: with_contents(value, whole=True) for name, value in arguments.items() if name not in _FREE}
    problems = {one.name: {"samples": one.samples, "problems": described([*one.problems])} for one in found}
    return {**kept, "benchmarks": problems}


def _require_distribution(temperature: float, top_p: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}; pass a positive number; `greedy` adds greedy ones.")
    if not 0 < top_p <= 1:
        raise ValueError(f"`top_p` is {top_p}; pass a probability above 0, and 1.0 for all tokens.")
