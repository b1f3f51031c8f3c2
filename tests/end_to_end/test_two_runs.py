"""Two runs in one folder: the second is refused at once, and none is after the first was killed."""

import signal
from pathlib import Path

from tests.end_to_end.test_resume import metrics, wait_for_rows


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(start, run, small_fit, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small_fit, f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    first = start([*arguments, "--trainer.max_steps=1000", "--checkpoint.every_n_train_steps=1000"])
    wait_for_rows(folder, 4, first)
    status, output = run([*arguments, "--data.dataset=not_there.jsonl"])  # refused before anything is loaded
    assert status != 0
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"where another process is running (process {first.pid} on " in line
    assert "Traceback" not in output
    assert "not_there" not in output
    assert first.poll() is None
    assert run(["plan", *arguments[1:]])[0] == 0  # a plan writes nothing
    first.send_signal(signal.SIGKILL)
    first.communicate()
    status, output = run(arguments)
    assert status == 0, output
    assert [int(row["step"]) for row in metrics(Path(folder))] == list(range(11))
