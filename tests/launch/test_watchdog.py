"""The watchdog decides from a run folder's files and a clock that the test turns."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_thinkprune.launch.run_progress import RunProgress
from nemo_thinkprune.launch.watchdog import EXIT_STALLED, Limits, Watchdog, main, watch

LIMITS = Limits(factor=10, floor_s=60, patience_s=1000, poll_s=10)


class Folder:
    """A train run's folder as an engine writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def attempt(self, number: int = 1, *, kind: str = "train", **recipe: Any) -> None:
        folder = self.path / "logs" / f"attempt_{number}"
        folder.mkdir(parents=True)
        (folder / "JOB.json").write_text(json.dumps({"kind": kind, "recipe": recipe}))

    def row(self, step: int, step_s: float | None = 2.0, **timing: float) -> None:
        known = {} if step_s is None else {"step_s": step_s}
        self.append({"step": step, "limit": 4000, "timing": {**known, **timing}})

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def write(self, name: str, text: str = "x") -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)


class Bench:
    """A watchdog over a folder and the seconds that went by."""

    def __init__(self, root: Path, limits: Limits = LIMITS) -> None:
        self.now = 0.0
        self.poll_s = limits.poll_s
        self.progress = RunProgress(root)
        self.dog = Watchdog(self.progress, limits, now=self.now)

    def tick(self) -> str | None:
        self.now += self.poll_s
        return self.dog.check(self.now)

    def until_stalled(self, *, most: float = 5000.0) -> tuple[float, str]:
        """Seconds of silence until it barks, and what it says."""
        start = self.now
        while self.now - start <= most:
            if (line := self.tick()) is not None:
                return self.now - start, line
        raise AssertionError(f"nothing was said in {most} s")


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def begun(run: Folder, *, rows: int = 3, **recipe: Any) -> Bench:
    """A run that has shown `rows` steps to a watchdog that saw it begin."""
    bench = Bench(run.path)
    run.attempt(**recipe)
    assert bench.tick() is None
    for step in range(1, rows + 1):
        run.row(step)
        assert bench.tick() is None
    return bench


def test_silence_after_rows_ends_at_the_floor_when_steps_are_short(run: Folder) -> None:
    silent, line = begun(run).until_stalled()
    assert silent == 70  # the first look past 60 s
    assert "metrics.jsonl has not moved for 70 s after step 3" in line
    assert "the bound is 60 s: 10 x the median step of 2.0 s, at least 60 s" in line
    assert "\n" not in line


def test_the_bound_follows_the_median_of_the_latest_steps(run: Folder) -> None:
    bench = begun(run)
    for step in range(4, 60):
        run.row(step, 20.0)
        assert bench.tick() is None
    assert bench.until_stalled()[0] == 210
    for step in range(60, 120):
        run.row(step, 30.0)
    bench.tick()
    assert bench.until_stalled()[0] == 310


def test_rows_without_a_duration_are_timed_by_their_arrival(run: Folder) -> None:
    bench = begun(run, rows=0)
    for step in range(1, 5):
        run.row(step, None)
        for _ in range(2):
            assert bench.tick() is None
    assert bench.dog.bound().seconds == 200


def test_before_the_first_step_of_this_attempt_the_patience_holds(run: Folder) -> None:
    for step in range(1, 20):
        run.row(step, 1.0)  # of an earlier attempt
    bench = Bench(run.path)
    assert bench.dog.bound().seconds == 1000
    run.attempt(2)
    run.append({"step": 0, "validation": {"accuracy": 0.5}})
    assert bench.tick() is None
    silent, line = bench.until_stalled()
    assert silent == 1010 and "run has begun and shown no step yet" in line


def test_a_run_that_never_begins_is_noticed_too(run: Folder) -> None:
    silent, line = Bench(run.path).until_stalled()
    assert silent == 1010 and "this attempt has shown no step yet" in line


def test_rows_cut_back_and_written_again_are_new_steps_and_old_ones_are_not(run: Folder) -> None:
    bench = begun(run, rows=5)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    run.attempt(2)
    (run.path / "metrics.jsonl").write_text("".join(lines[:3]))
    assert bench.tick() is None
    assert bench.dog.bound().seconds == 1000  # rows 1 to 3 are not of this attempt
    run.row(4, 2.5)
    assert bench.tick() is None
    assert bench.dog.bound().seconds == 60


def test_a_line_that_is_half_written_waits_for_its_end(run: Folder) -> None:
    bench = begun(run, rows=0)
    row = json.dumps({"step": 1, "limit": 1, "timing": {"step_s": 7.0}}) + "\n"
    with open(run.path / "metrics.jsonl", "a") as stream:
        stream.write(row[:20])
        stream.flush()
        assert bench.tick() is None
        assert bench.dog.bound().seconds == 1000
        stream.write(row[20:])
    assert bench.tick() is None
    assert bench.dog.bound().seconds == 70


@pytest.mark.parametrize(
    "name",
    [
        "rollouts/step_9.jsonl",
        "checkpoints/tmp_step_3/policy/weights/iter_0000000/__0_0.distcp",
        "checkpoints/step_3/training_info.json",
        "ledger.jsonl",
        "decision.json",
        "logs/val_data_step3.jsonl",
        "eval/start.jsonl",
        "round_2_L96/rollouts/step_1.jsonl",
        "control/metrics.jsonl",
        "model/model.safetensors",
    ],
)
def test_whatever_else_the_run_writes_is_a_sign(run: Folder, name: str) -> None:
    bench = begun(run)
    for _ in range(5):
        assert bench.tick() is None
    run.write(name)
    assert bench.tick() is None
    assert bench.until_stalled()[0] == 70


@pytest.mark.parametrize(
    "name",
    ["logs/job_7.log", "logs/job_7/attempt_1/watchdog.log", "logs/exp_001/wandb/run.wandb", "report.html"],
)
def test_what_a_frozen_run_goes_on_writing_is_no_sign(run: Folder, name: str) -> None:
    bench = begun(run)
    for number in range(6):
        run.write(name, "x" * (number + 1))
        assert bench.tick() is None
    run.write(name, "much more")
    assert bench.tick() is not None


def test_a_checkpoint_that_grows_keeps_it_quiet_and_one_that_does_not_is_noticed(run: Folder) -> None:
    bench = begun(run)
    shard = "checkpoints/tmp_step_3/policy/weights/iter_0000000/__0_0.distcp"
    for number in range(1, 30):
        run.write(shard, "x" * number)
        assert bench.tick() is None
    assert bench.until_stalled()[0] == 70


def test_checkpoints_are_looked_for_where_the_recipe_puts_them(run: Folder) -> None:
    bench = begun(run, checkpointing={"checkpoint_dir": "weights/all"})
    for number in range(1, 30):
        run.write("weights/all/tmp_step_3/shard", "x" * number)
        assert bench.tick() is None


def test_a_due_validation_gets_twice_the_time_of_the_longest_one(run: Folder) -> None:
    bench = begun(run, rows=4, grpo={"val_period": 2, "max_num_steps": 100})
    assert bench.dog.bound().seconds == 60  # step 5 has none
    run.row(5)
    bench.tick()
    assert bench.dog.bound().seconds == 1000  # step 6 has one, and how long it takes is not known
    run.row(6, 2.0, validate_s=50.0)
    run.row(7)
    bench.tick()
    assert bench.dog.bound().seconds == 160


def test_the_validation_before_the_first_step_bounds_the_later_ones(run: Folder) -> None:
    bench = Bench(run.path)
    run.attempt(grpo={"val_period": 1, "max_num_steps": 100})
    for _ in range(4):
        assert bench.tick() is None
    run.append({"step": 0, "validation": {"accuracy": 0.5}})
    bench.tick()
    run.row(1)
    bench.tick()
    assert bench.dog.bound().seconds == 60 + 40  # it took 40 s with all of the start
    run.row(2, 2.0, validate_s=3.0)
    bench.tick()
    assert bench.dog.bound().seconds == 66  # what was measured replaces it


def test_time_for_saving_is_added(run: Folder) -> None:
    bench = begun(run)
    run.row(4, 2.0, save_s=30.0)
    bench.tick()
    assert bench.dog.bound().seconds == 120


def test_after_the_last_step_and_between_rounds_the_patience_holds(tmp_path: Path) -> None:
    root, first, second = (Folder(tmp_path / name) for name in ("p", "p/round_1_L128", "p/round_2_L96"))
    bench = Bench(root.path)
    first.attempt(grpo={"max_num_steps": 2})
    bench.tick()
    first.row(1)
    bench.tick()
    assert bench.dog.bound().seconds == 60
    first.row(2)
    bench.tick()
    assert bench.dog.bound().seconds == 1000  # it was the last of its round
    Folder(root.path / "eval" / "round_1_L128").attempt(kind="eval")
    bench.tick()
    assert "eval/round_1_L128 has begun" in bench.dog.bound().why
    root.write("eval/round_1_L128.json", "{}")
    second.attempt(grpo={"max_num_steps": 2})
    bench.tick()
    assert "round_2_L96 has begun" in bench.dog.bound().why
    second.row(1)
    bench.tick()
    silent, line = bench.until_stalled()
    assert silent == 70 and "round_2_L96/metrics.jsonl" in line


def test_the_control_beside_does_not_cut_an_evaluation_short(tmp_path: Path) -> None:
    root, control = Folder(tmp_path / "p"), Folder(tmp_path / "p/control")
    bench = Bench(root.path)
    control.attempt(grpo={"max_num_steps": 100})
    Folder(root.path / "eval" / "round_1_L128").attempt(kind="eval")
    bench.tick()
    control.row(1)
    bench.tick()
    assert bench.dog.bound().seconds == 1000
    root.write("eval/round_1_L128.json", "{}")
    bench.tick()
    assert bench.dog.bound().seconds == 60


def test_a_change_of_the_clock_of_the_file_system_means_nothing(run: Folder) -> None:
    bench = begun(run)
    for age in (-1e9, 1e9):  # the server's clock is decades off
        os.utime(run.path / "metrics.jsonl", (age + 2e9, age + 2e9))
        assert bench.tick() is None
    assert bench.until_stalled()[0] == 70


def test_a_watchdog_that_was_stopped_forgives_the_gap(run: Folder) -> None:
    bench = begun(run)
    for _ in range(5):
        bench.tick()
    bench.now += 100_000
    assert bench.tick() is None
    assert bench.until_stalled()[0] == 10  # 50 s before, and the 10 s of a look


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_trouble_of_the_file_system_uses_up_the_patience_alone(
    run: Folder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bench = begun(run)
    real, broken = Path.stat, True

    def stat(path: Path, **options: Any) -> os.stat_result:
        if broken and path.name == "metrics.jsonl":
            raise OSError(code, os.strerror(code), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for _ in range(50):
        assert bench.tick() is None
    broken = False
    for _ in range(6):  # the trainer may have waited for the same disk
        assert bench.tick() is None
    run.row(4)
    bench.tick()
    broken = True
    silent, line = bench.until_stalled()
    assert silent == 1010 and os.strerror(code) in line


def test_rows_that_could_not_be_read_are_read_later(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    bench = begun(run, rows=0)
    real, broken = builtins.open, True

    def stale(path: Any, *args: Any, **options: Any) -> Any:
        if broken and str(path).endswith("metrics.jsonl") and "b" in str(args):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", stale)
    run.row(1, 9.0)
    assert bench.tick() is None
    broken = False
    assert bench.tick() is None
    assert bench.dog.bound().seconds == 90


def test_damaged_files_disturb_nothing(run: Folder) -> None:
    bench = begun(run)
    run.write("logs/attempt_2/JOB.json", "{")
    with open(run.path / "metrics.jsonl", "ab") as stream:
        stream.write(
            b'\xff\xfe not json\n[1]\n{"step": "x"}\n{"step": 4, "limit": 1, "timing": {"step_s": "x"}}\n'
        )
    assert bench.tick() is None
    assert bench.until_stalled()[0] == 70


def test_a_real_process_leaves_with_76_and_one_line(run: Folder) -> None:
    run.row(1, 0.01)
    process = start(run, "--floor-s", "0.2", "--factor", "1", "--patience-s", "0.3")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STALLED
    watching, stalled = out.splitlines()
    assert watching.startswith("watching ") and stalled.startswith(f"stalled: {run.path}/metrics.jsonl")


def test_sigterm_ends_a_real_process_quietly_and_sigusr1_does_not(run: Folder) -> None:
    process = start(run)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("watching ")
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")


def start(run: Folder, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nemo_thinkprune.launch.watchdog", "--run-dir", str(run.path), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("words", [["--factor", "0"], ["--floor-s", "nan"], ["--patience-s", "-1"]])
def test_senseless_numbers_are_refused(run: Folder, words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--run-dir", str(run.path), *words])
    assert left.value.code == 2


def test_watching_goes_on_until_it_barks(run: Folder) -> None:
    bench = begun(run)
    times = iter(range(int(bench.now) + 10, 10_000, 10))
    assert "has not moved for 70 s" in watch(bench.dog, poll_s=0.0, clock=lambda: float(next(times)))
