"""Counts of pairs and of runs that the page of the study states, against its results."""

from pathlib import Path

import pytest

from experiments.study.run import FOLDER
from experiments.study.statistics import load, paired_differences

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
RUNS = {task: load(ROOT / FOLDER / "runs.csv", task) for task in ("addition", "spell_backward")}
WIDTH, ENTROPY, NORM, REWARD = "log_ratio_90", "entropy_last", "grad_norm_max", "sampled"
# Words of the page; task, updates, first and second objective, measure, learning rates; higher pairs and all.
PAIRS = [
    ("range of log ratios, in all 20 pairs", "addition", 4, "gmpo", "grpo", WIDTH, "all", 20, 20),
    ("is lower than GRPO's in 15 of 20 pairs", "addition", 4, "gmpo", "grpo", NORM, "all", 5, 20),
    ("with the clip of GMPO on both sides in 13,", "addition", 4, "gmpo", "grpo_wide_clip", NORM, "all", 7, 20),
    ("for GRPO, in 14 of 15 pairs", "addition", 4, "grpo", "grpo_no_clip", REWARD, "all", 14, 15),
    ("than GMPO in 18 of 20 pairs", "addition", 4, "gmpo", "grpo", REWARD, "all", 2, 20),
    ("wider than GRPO's in 11 of 15 pairs", "addition", 16, "gmpo", "grpo", WIDTH, "all", 11, 15),
    ("where it is so in all five seeds", "addition", 16, "gmpo_narrow_clip", "grpo", WIDTH, "1.4e-4", 0, 5),
    ("against three of ten pairs below", "addition", 16, "gmpo_narrow_clip", "grpo", WIDTH, "below", 7, 10),
    ("wider in all ten, by 0.026", "addition", 16, "gmpo_no_clip", "grpo_no_clip", WIDTH, "all", 10, 10),
    ("it is lower in all five seeds", "addition", 16, "gmpo", "grpo", ENTROPY, "1.4e-4", 0, 5),
    ("than GRPO's in 13 of 15 pairs, by 13", "addition", 16, "gmpo", "grpo", NORM, "all", 2, 15),
    ("on both sides in 13, by 11", "addition", 16, "gmpo", "grpo_wide_clip", NORM, "all", 2, 15),
    ("with the narrow one in 12", "addition", 16, "gmpo_narrow_clip", "grpo", NORM, "all", 3, 15),
    ("without clips in nine of ten", "addition", 16, "gmpo_no_clip", "grpo_no_clip", NORM, "all", 1, 10),
    ("higher reward in 10 of 15 pairs with GRPO", "addition", 16, "gmpo", "grpo", REWARD, "all", 10, 15),
    ("is higher than GMPO's", "addition", 16, "gmpo_without_length_norm", "gmpo", REWARD, "all", 6, 8),
    ("wider than PMPO's in all eight pairs", "addition", 16, "holder_po", "pmpo", WIDTH, "all", 8, 8),
    ("CTPO's range is wider in 11 of 12 pairs", "addition", 16, "ctpo", "grpo", WIDTH, "all", 11, 12),
    ("is lower than GRPO's in 11 of 12 pairs", "addition", 16, "ctpo", "grpo", NORM, "all", 1, 12),
    ("but in 12 of 25 pairs only", "spell_backward", 4, "gmpo", "grpo", WIDTH, "all", 12, 25),
]
CLIPPED = ("grpo", "grpo_wide_clip", "gmpo", "gmpo_narrow_clip", "hmpo", "quadratic", "pmpo", "gspo")
NO_CLIP = ("grpo_no_clip", "gmpo_no_clip")
# Words; task, updates, objectives, learning rate; runs that did not collapse, and all.
SURVIVORS = [
    ("15 of 40 runs with a clip survive", "spell_backward", 4, CLIPPED, 6.7e-4, 15, 40),
    ("and none of 10 without", "spell_backward", 4, NO_CLIP, 6.7e-4, 0, 10),
    ("GSPO and PMPO in four", "addition", 16, ("gspo",), 1.4e-4, 4, 5),
    ("GSPO and PMPO in four", "addition", 16, ("pmpo",), 1.4e-4, 4, 5),
    ("the exponent 2 in one", "addition", 16, ("quadratic",), 1.4e-4, 1, 5),
    ("CTPO and GMPO with a clip of the completion survive", "addition", 16, ("ctpo",), 1.4e-4, 4, 4),
    ("CTPO and GMPO with a clip of the completion survive", "addition", 16, ("gmpo_sequence_clip",), 1.4e-4, 4, 4),
    ("HölderPO, DAPO and GMPO without the root in two", "addition", 16, ("holder_po",), 1.4e-4, 2, 4),
    ("HölderPO, DAPO and GMPO without the root in two", "addition", 16, ("dapo",), 1.4e-4, 2, 4),
    ("HölderPO, DAPO and GMPO without the root in two", "addition", 16, ("gmpo_without_length_norm",), 1.4e-4, 2, 4),
    ("Dr. GRPO and KPO in none", "addition", 16, ("dr_grpo", "kpo"), 1.4e-4, 0, 8),
    ("and neither mean without a clip in any", "addition", 16, NO_CLIP, 1.4e-4, 0, 10),
]
BELOW = {"all": 1.0, "below": 1e-4}


@pytest.mark.parametrize(("words", "task", "updates", "first", "second", "measure", "rates", "higher", "pairs"), PAIRS)
def test_the_page_counts_the_pairs(words, task, updates, first, second, measure, rates, higher, pairs):
    assert words in PAGE
    by_seed = paired_differences(RUNS[task], first, second, updates, measure)
    differences = [item for values in by_seed.values() for item in values.items()]
    own = [value for rate, value in differences if (rate < BELOW[rates] if rates in BELOW else rate == float(rates))]
    assert (sum(value > 0 for value in own), len(own)) == (higher, pairs)


@pytest.mark.parametrize(("words", "task", "updates", "objectives", "rate", "survivors", "count"), SURVIVORS)
def test_the_page_counts_the_runs_that_did_not_collapse(words, task, updates, objectives, rate, survivors, count):
    assert words in PAGE
    own = [run for run in RUNS[task] if (run.updates, run.learning_rate) == (updates, rate)]
    own = [run for run in own if run.objective in objectives]
    assert (sum(not run.collapsed for run in own), len(own)) == (survivors, count)
