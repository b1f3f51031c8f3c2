"""Entry point of `aggregate-po` and `python -m lightning_modules`."""

import sys

from lightning_modules.cli import evaluate_run, run
from lightning_modules.planning.command import plan
from lightning_modules.rollouts.serving.command import serve


def main() -> None:
    """Dispatch to `evaluate RUN`, `serve MODEL` or `plan`; all other subcommands are those of the Lightning CLI."""
    if sys.argv[1:2] == ["evaluate"]:
        if len(sys.argv) < 3 or sys.argv[2].startswith("-"):
            sys.exit("usage: aggregate-po evaluate RUN [options of `aggregate-po validate`]")
        evaluate_run(*sys.argv[2:])
    elif sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2:])
    elif sys.argv[1:2] == ["plan"]:
        plan(sys.argv[2:])
    else:
        run()


if __name__ == "__main__":
    main()
