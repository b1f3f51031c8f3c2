"""Bias and noise of the gradient estimate of each objective, without sampling error, against the width of its clip.

An objective is a recipe or an import path that takes the argument `log_clip`, the bound on the log ratio.

    python -m experiments.exact.clip_width --output runs/exact
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.exact.sweeps import numbers, parser_of, report, setting_of, swept_argument, with_argument

OBJECTIVES = (
    "experiments.exact.families.arithmetic",
    "gmpo",
    "hmpo",
    "pmpo",
    "experiments.exact.families.clipped_mean",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `clip_width.csv` and its plot."""
    parser = parser_of(__doc__, OBJECTIVES, made_later=True)
    parser.add_argument(
        "--log_clips", type=numbers, default="0.025,0.05,0.1,0.2,0.4,0.8,1.6,3.2", help="Bounds, by commas."
    )
    options = parser.parse_args(arguments)
    objectives = with_argument(parser, options.objectives, "log_clip", options.log_clips)
    rows = swept_argument(objectives, "log_clip", setting_of(options))
    report(rows, "log_clip", "bound on the log ratio (nats)", "clip_width", options, "log", options.log_clips)


if __name__ == "__main__":
    main()
