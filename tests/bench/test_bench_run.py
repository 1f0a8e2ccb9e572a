"""Real measurements of a tiny model, and what is left of one that was ended."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import made_benchmarks
from support.made_benchmarks import tiny_overrides

from nemo_thinkprune.bench import commands
from nemo_thinkprune.bench.phases import OLD, OTHER, RECORDS, REFERENCE, REFIT, ROLLOUT, SCORING, UPDATE
from nemo_thinkprune.bench.result import read_result
from nemo_thinkprune.bench.run import Records, run_folder, run_steps
from nemo_thinkprune.bench.table import result_table
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.attempts import run_lock
from nemo_thinkprune.training.process_tree import session_members
from nemo_thinkprune.training.supervisor import JobFailed
from nemo_thinkprune.training.watch import Failure, FailureKind


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return tiny_overrides(tmp_path_factory.mktemp("bench"))


def measure(overrides: list[str], out: Path, *more: str, **options: Any) -> tuple[int, str]:
    said: list[str] = []
    code = commands.bench(
        "quickstart",
        [*overrides, *more],
        **{
            "steps": 1,
            "warmup": 0,
            "out": out,
            "engine": "local",
            "on_cpu": False,
            "nemo_rl_root": None,
            "peak_tflops": None,
            "say": said.append,
            **options,
        },
    )
    return code, "\n".join(said)


@pytest.fixture(scope="module")
def two_ranks(
    overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Records, Path, str]]:
    """One measured step after one of warm-up, on two ranks, with a peak of 1 kFLOP/s: below whatever a CPU does."""
    kept: list[Records] = []

    def run(*args: Any) -> Records:
        kept.append(run_steps(*args))
        return kept[0]

    out = tmp_path_factory.mktemp("results") / "bench" / "tiny"
    layout = ["cluster.gpus_per_node=2", "policy.train_global_batch_size=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run_steps", run)
        code, said = measure(overrides, out, *layout, steps=1, warmup=1, peak_tflops=1e-9)
    assert code == 1, said
    yield kept[0], out, said


def test_what_is_counted_is_what_the_rollouts_hold(two_ranks: tuple[Records, Path, str]) -> None:
    records, out, _ = two_ranks
    tokenizer = load_tokenizer(records.job.model)
    for step in read_result(out / "bench.json").steps:
        rows = records.rollouts[step.step]
        finished = [row["stop_reason"] == "eos" for row in rows]
        responses = [len(tokenizer.encode(row["response"])) for row in rows]
        assert step.response_tokens == sum(responses) + sum(finished)  # an end token is not part of the text
        assert step.sequences == len(rows) == 8
        asked = [
            tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], **PLAIN)
            for row in rows
        ]
        assert step.prompt_tokens == sum(map(len, asked))


PLAIN = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}


def test_phases_hold_time_and_memory_of_all_ranks(two_ranks: tuple[Records, Path, str]) -> None:
    records, out, _ = two_ranks
    result = read_result(out / "bench.json")
    assert (result.conditions.devices, result.conditions.data_parallel, result.work.updates) == (2, 2, 2)
    assert [step.step for step in result.steps] == [2]
    for step in result.steps:
        assert set(step.phases) == {ROLLOUT, SCORING, OLD, REFERENCE, UPDATE, REFIT, RECORDS, OTHER}
        assert step.seconds == pytest.approx(sum(use.seconds for use in step.phases.values()))
        assert all(use.cpu_seconds is not None and use.cpu_seconds >= 0 for use in step.phases.values())
        assert all(use.peak_bytes_max and use.peak_bytes_max > 2**26 for use in step.phases.values())
        assert step.checkpoint is not None and step.checkpoint.seconds > 0
        assert step.flops[OLD] == step.flops[REFERENCE] == step.flops[UPDATE] // 3
        update = step.phases[UPDATE]
        assert update.peak_bytes_min is not None and update.peak_bytes_max is not None
        assert 0 < update.peak_bytes_min < update.peak_bytes_max
    measured = [told["flops_per_s"] for told in records.devices]
    assert len(measured) == 4 and min(measured) > 1e9  # before and after the steps, by each rank


def test_a_result_is_whole_and_has_no_places(
    two_ranks: tuple[Records, Path, str], overrides: list[str]
) -> None:
    _, out, said = two_ranks
    assert "ERROR in the measurement: update: MFU" in said and read_result(out / "bench.json").errors
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.svg", "bench.txt"]
    text = (out / "bench.json").read_text()
    assert str(out.parents[2]) not in text and "/root" not in text
    with pytest.raises(UserError, match="holds a benchmark already"):
        measure(overrides, out)


ENDS = [(signal.SIGINT, 130, "logs/attempt_1/rank_0.log"), (signal.SIGTERM, 75, "checkpoints/step_[2-9]")]


@pytest.mark.parametrize(("number", "code", "sign"), ENDS, ids=["starting", "saving"])
def test_an_ended_benchmark_leaves_nothing(
    number: signal.Signals, code: int, sign: str, overrides: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "bench" / "tiny"
    command = [sys.executable, "-m", "nemo_thinkprune", "bench", "quickstart", *overrides]
    process = subprocess.Popen(
        [*command, "--steps", "5000", "--fixed-length", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        workers = _workers(out, process, sign)
        os.kill(process.pid, number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, said
    if number == signal.SIGTERM:  # no response ended before the limit, and a random model ends some
        lines = [line for line in said.splitlines() if "  step " in line]
        assert lines and all("tokens 24.0  cut 100.0%" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 30  # the kernel ends those that a parent leaves behind, a moment later
    while left := session_members({process.pid, *workers}):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _workers(out: Path, process: subprocess.Popen[str], sign: str) -> list[int]:
    """Process ids of the ranks, once a file of the run is there."""
    deadline = time.monotonic() + 60
    while not list(out.glob(f".run_*/{sign}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_what_a_killed_benchmark_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".run_before_its_lock").mkdir()
    left, running = tmp_path / ".run_left", tmp_path / ".run_running"
    for folder in (left, running):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / ".lock").write_text("1\n")
    with open(running / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with run_folder(tmp_path) as folder:
            assert sorted(tmp_path.iterdir()) == sorted([folder, running])
    assert list(tmp_path.iterdir()) == [running]


def test_the_logs_of_a_failed_rank_stay_until_the_next_benchmark(tmp_path: Path) -> None:
    failure = Failure(FailureKind.EXITED, 0, "rank 0 ended")
    with pytest.raises(JobFailed), run_folder(tmp_path / "out") as folder, run_lock(folder):
        (folder / "logs" / "attempt_1").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / "metrics.jsonl").touch()
        raise JobFailed(failure, log=folder / "logs", report=folder / "logs")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "logs"]
    with run_folder(tmp_path / "out"):
        assert not folder.exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_folder_of_which_a_kill_left_a_part_keeps_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    left = tmp_path / ".run_left"
    (left / "logs").mkdir(parents=True)
    for name in (".lock", "a", "z"):
        (left / name).touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        with run_folder(tmp_path):
            pass
    assert (left / ".lock").exists()
    with run_folder(tmp_path):
        assert not left.exists()


def test_fixed_lengths_are_refused_where_vllm_would_not_keep_them(
    overrides: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--fixed-length works with"):
        measure(overrides, tmp_path / "out", engine="nemo-rl", fixed_length=True)
    assert not (tmp_path / "out").exists()


def test_results_do_not_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.result_folder("tiny", None) == Path("bench/tiny")
    for name in ("tiny", "tiny_2"):
        (tmp_path / "bench" / name).mkdir(parents=True)
        (tmp_path / "bench" / name / "bench.json").write_text(json.dumps({}))
    assert commands.result_folder("tiny", None) == Path("bench/tiny_3")


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()  # a folder in the way
    with pytest.raises(UserError, match=r"cannot write .*/b \(Is a directory\)"):
        commands.write_files(tmp_path, {"a": "first", "b": "second", "c": "third"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_benchmarks.result([made_benchmarks.step(1)])
    monkeypatch.setattr(commands, "measured", lambda *_, **__: made)
    said: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError, match=r"bench\.svg \(File too large\).* are not kept.*measure again"):
            measure([], tmp_path, say=said.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == [result_table(made)] and list(tmp_path.iterdir()) == []


def test_a_closed_pipe_leaves_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_benchmarks.result([made_benchmarks.step(1)])
    monkeypatch.setattr(commands, "measured", lambda *_, **__: made)

    def closed(text: str) -> None:
        raise BrokenPipeError(text)

    with pytest.raises(BrokenPipeError):
        measure([], tmp_path, say=closed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.svg", "bench.txt"]
