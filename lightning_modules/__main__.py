"""`aggregate-po` and `python -m lightning_modules`."""

import sys

from lightning_modules.cli import evaluate_run, run


def main() -> None:
    """`evaluate RUN` measures a finished run; everything else is Lightning's command line."""
    if sys.argv[1:2] == ["evaluate"]:
        if len(sys.argv) != 3:
            sys.exit("usage: aggregate-po evaluate RUN")
        evaluate_run(sys.argv[2])
    else:
        run()


if __name__ == "__main__":
    main()
