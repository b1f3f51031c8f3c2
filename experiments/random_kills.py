"""Kills runs at random times, resumes them until they are complete, and compares what they leave with an unbroken run.

Run by hand: `OMP_NUM_THREADS=1 python experiments/random_kills.py --kills 100`. It takes about ten seconds per kill on
one core. Half of the kills wait for the last optimizer step, to hit the writing of checkpoint and results. The runs are
plain GMPO, two processes (DDP), LoRA and PMPO. Processes are forked from one that has imported the libraries, so that
the kills hit the run rather than its imports; the ranks of DDP import them again.

Compared are the model bit for bit, `metrics.csv` without times, `samples.md`, `summary.json` without the throughput,
and the presence of `reward.png`. The exit status is 1 if a run differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from lightning_modules.__main__ import main as aggregate_po
from lightning_modules.addition.warm_start import make_model, make_tokenizer
from lightning_modules.cli import run  # noqa: F401, loads what a run needs

CONFIG = Path(__file__).parent / "configs" / "addition.yaml"
STEPS = 6
COMMON = [
    "--model.learning_rate=1e-3",
    "--data.prompts_per_rollout=4",
    "--data.updates_per_rollout=2",
    "--data.max_completion_length=12",
    "--data.validation.size=8",
    f"--trainer.max_steps={STEPS}",
    "--trainer.accumulate_grad_batches=2",
    "--report.evaluate_every_n_steps=4",
    "--checkpoint.every_n_train_steps=2",
    "--ckpt_path=last",
]
KINDS = {
    "plain": [],
    "ddp": ["--trainer.devices=2", "--trainer.strategy=ddp"],
    "lora": ["--model.lora.rank=4"],
    "pmpo": ["--model.objective=aggregate_po.recipes.pmpo"],
}


def started(folder: Path, model: Path, options: list[str]) -> int:
    """Start a run in a process group of its own, and return its process id."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = [str(Path(sys.executable).with_name("aggregate-po")), "fit", f"--config={CONFIG}", *COMMON, *options]
    sys.argv += [f"--model.model_name={model}", f"--trainer.default_root_dir={folder}"]
    status = 1
    try:
        aggregate_po()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def finished(process: int) -> bool:
    """Whether the process has ended; it stays waitable."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(process: int) -> int:
    """Wait for the process, and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def wait_for_steps(folder: Path, steps: int, process: int) -> None:
    """Wait until `metrics.csv` has the row of a step, or the process has ended."""
    file = folder / "metrics.csv"
    while not finished(process):
        if file.exists() and any(line.startswith(f"{steps},") for line in file.read_text(errors="replace").split("\n")):
            return
        time.sleep(0.001)


def killed(folder: Path, model: Path, options: list[str], phase: str, seconds: dict[str, float]) -> bool:
    """Start a run and kill it in a phase; return whether the kill came before its end."""
    process = started(folder, model, options)
    if phase != "anywhere":
        wait_for_steps(folder, STEPS if phase == "end" else random.randint(0, STEPS - 1), process)
    deadline = time.monotonic() + random.uniform(0, seconds[phase])
    while not finished(process) and time.monotonic() < deadline:
        time.sleep(0.001)
    alive = not finished(process)
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        alive = False
    end(process)
    return alive


def unbroken(folder: Path, model: Path, options: list[str]) -> dict[str, float]:
    """Make a run to its end, and return the seconds of its phases."""
    start = time.monotonic()
    process = started(folder, model, options)
    wait_for_steps(folder, STEPS, process)
    last_step = time.monotonic()
    if end(process):
        raise SystemExit(f"error: the unbroken run failed; see {folder}.log")
    whole = time.monotonic() - start
    return {"anywhere": whole, "training": (last_step - start) / STEPS, "end": time.monotonic() - last_step}


def left(folder: Path) -> dict[str, Any]:
    """Return what a run has left, without times."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "metrics.csv": rows,
        "model": {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())},
        "samples.md": (folder / "samples.md").read_text(),
        "summary.json": {name: value for name, value in summary.items() if name != "tokens_per_second"},
        "reward.png": (folder / "reward.png").exists(),
        "scratch": [path.name for path in folder.iterdir() if path.name.startswith((".new", ".old", ".trial"))],
    }


def difference(folder: Path, expected: dict[str, Any]) -> str:
    """Return the names of what differs from the unbroken run; empty if nothing does."""
    try:
        found = left(folder)
    except (OSError, ValueError) as error:
        return repr(error)
    return ", ".join(name for name in expected if found[name] != expected[name])


def main() -> None:
    """Kill, resume, compare, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--kills-per-run", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    model, tokenizer = folder / "model", make_tokenizer()
    torch.manual_seed(0)
    make_model(tokenizer, hidden_size=32, layers=2).save_pretrained(model)
    tokenizer.save_pretrained(model)
    print(f"in {folder}", flush=True)
    seconds = {kind: unbroken(folder / kind, model, KINDS[kind]) for kind in arguments.kinds}
    expected = {kind: left(folder / kind) for kind in arguments.kinds}
    print("seconds of the phases:", seconds, flush=True)
    counts: Counter[str] = Counter()
    number = 0
    while counts["kills"] < arguments.kills:
        kind, number = arguments.kinds[number % len(arguments.kinds)], number + 1
        folder_of_run, hits = folder / f"{number}-{kind}", []
        for _ in range(arguments.kills_per_run):
            phase = random.choices(["anywhere", "training", "end"], [1, 1, 2])[0]
            if killed(folder_of_run, model, KINDS[kind], phase, seconds[kind]):
                hits.append(phase)
        status = end(started(folder_of_run, model, KINDS[kind]))
        wrong = f"exit status {status}" if status else difference(folder_of_run, expected[kind])
        counts["kills"] += len(hits)
        counts.update(
            [f"{kind}: kills"] * len(hits) + [f"{kind}: runs", f"{kind}: {'differ' if wrong else 'identical'}"]
        )
        print(number, kind, hits, wrong or "identical and complete", flush=True)
    print(dict(counts))
    raise SystemExit(any("differ" in name for name in counts))


if __name__ == "__main__":
    main()
