"""Entry point of `aggregate-po` and `python -m lightning_modules`."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_modules.example import example_command
from lightning_modules.interruption import interruption, listening


def main() -> None:
    """Run the command of this process, and end with the status of the signal if one has interrupted it."""
    with listening():
        try:
            _dispatch()
        except (KeyboardInterrupt, SystemExit):
            if interruption() is None:
                raise
    if (signal := interruption()) is not None:
        print(f"{signal.name}: ended.", file=sys.stderr)
        sys.exit(128 + signal)


def _dispatch() -> None:
    """Dispatch to the subcommands of this library; all other subcommands are those of the Lightning CLI."""
    if sys.argv[1:2] == ["example"]:
        example_command(sys.argv[2:])
        return
    # These load torch, which takes seconds, in which a signal may arrive.
    with _kept_for_good():
        from lightning_modules.audit.command import audit_command
        from lightning_modules.cli import run
        from lightning_modules.comparison.command import compare_command
        from lightning_modules.evaluate_command import evaluate_command
        from lightning_modules.flow.command import flow_command
        from lightning_modules.planning.command import plan
        from lightning_modules.preflight.command import preflight_command
        from lightning_modules.recordings.command import record_command
        from lightning_modules.rollouts.serving.command import serve
        from lightning_modules.viewer.command import view_command

    if sys.argv[1:2] == ["evaluate"]:
        evaluate_command(sys.argv[2:])
    elif sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2:])
    elif sys.argv[1:2] == ["plan"]:
        plan(sys.argv[2:])
    elif sys.argv[1:2] == ["preflight"]:
        preflight_command(sys.argv[2:])
    elif sys.argv[1:2] == ["record"]:
        record_command(sys.argv[2:])
    elif sys.argv[1:2] == ["compare"]:
        compare_command(sys.argv[2:])
    elif sys.argv[1:2] == ["audit-reward"]:
        audit_command(sys.argv[2:])
    elif sys.argv[1:2] == ["flow"]:
        flow_command(sys.argv[2:])
    elif sys.argv[1:2] == ["view"]:
        view_command(sys.argv[2:])
    else:
        run()


@contextmanager
def _kept_for_good() -> Iterator[None]:
    """Exempt the modules that are imported in the context from garbage collection.

    They last until the process ends. Collections while they are loaded, and the one at the exit, would take as long as
    the loading itself.
    """
    if "torch" in sys.modules:  # called from a process that has loaded them, and has objects of its own by now
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    main()
