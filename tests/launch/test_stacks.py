"""Stacks of real processes: running, stopped, without py-spy, with secrets in their command lines."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_thinkprune.launch import stacks
from nemo_thinkprune.launch.job_processes import Process, job_processes, shown, state_of, told_by_kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
needs_py_spy = pytest.mark.skipif(stacks.find_py_spy() is None, reason="py-spy is not installed")

WAITING = """
import sys, time
def waits_for_ever():
    print("here", flush=True)
    time.sleep(1000)
waits_for_ever()
"""
# As training/worker.py begins.
RANK = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR2, file=open(sys.argv[sys.argv.index("--stacks") + 1], "wb", buffering=0))
def waits_as_a_rank():
    print("here", flush=True)
    while True:
        time.sleep(1000)
waits_as_a_rank()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def job() -> str:
    """An id that no other test and no job of this machine has."""
    return f"{os.getpid()}{time.monotonic_ns()}"


@pytest.fixture
def start(job: str) -> Iterator[Start]:
    """Starts a Python process of the job and waits until it is where it hangs."""
    running: list[subprocess.Popen[str]] = []

    def one(program: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SLURM_JOB_ID": job, **(environment or {})},
        )
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        return process

    yield one
    for process in running:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def written(job: str, into: Path, *, py_spy: str | None, **options: float) -> str:
    file = stacks.write_stacks(job, into, py_spy=py_spy, **options)
    assert file.name == f"{socket.gethostname().partition('.')[0]}.txt"
    assert [path.name for path in into.iterdir()] == [file.name]
    return file.read_text()


@needs_py_spy
def test_every_process_of_the_job_is_in_the_file_also_a_stopped_one(
    start: Start, job: str, tmp_path: Path
) -> None:
    first, stopped = start(WAITING), start(WAITING, "--rank", "3")
    other = start(WAITING, environment={"SLURM_JOB_ID": f"{job}0"})
    stop(stopped)
    text = written(job, tmp_path / "stacks", py_spy=stacks.find_py_spy())
    assert text.count("====") == 2 and text.count("waits_for_ever") >= 2
    assert f"pid {first.pid} " in text and f"pid {other.pid} " not in text
    assert f"pid {stopped.pid} (parent {os.getpid()}): rank 3\nstate T: stopped by a signal" in text
    assert state_of(stopped.pid) == "T" and first.poll() is None  # as they were
    assert state_of(first.pid) in "RS"


@needs_py_spy
def test_a_process_that_may_be_stopped_shows_native_frames_too(
    start: Start, job: str, tmp_path: Path
) -> None:
    start(WAITING)
    text = written(job, tmp_path, py_spy=stacks.find_py_spy())
    if "nanosleep" not in text and "select" not in text:
        pytest.skip("ptrace is not allowed here")
    assert "(libc" in text


def test_without_py_spy_a_rank_is_asked_by_a_signal(start: Start, job: str, tmp_path: Path) -> None:
    ranks = [start(RANK, "--rank", str(n), "--stacks", str(tmp_path / f"rank_{n}.stacks")) for n in (0, 1)]
    stop(ranks[1])
    text = written(job, tmp_path / "stacks", py_spy=None)
    assert text.count("in waits_as_a_rank") == 2
    assert str(tmp_path / "rank_1.stacks") in text and "py-spy is not installed" in text
    assert all(rank.poll() is None for rank in ranks)


def test_without_py_spy_the_kernel_tells_of_others(start: Start, job: str, tmp_path: Path) -> None:
    process = start(WAITING, "--stacks", str(tmp_path / "never.stacks"))  # but it does not catch the signal
    text = written(job, tmp_path / "stacks", py_spy=None)
    assert f"thread {process.pid} " in text and "system call" in text
    assert process.poll() is None


def test_a_refused_py_spy_is_named_and_the_other_means_are_used(
    start: Start, job: str, tmp_path: Path
) -> None:
    refusing = tmp_path / "py-spy"
    refusing.write_text(
        "#!/bin/sh\necho 'Permission Denied: Try running again with elevated permissions' >&2; exit 1\n"
    )
    refusing.chmod(0o755)
    start(RANK, "--stacks", str(tmp_path / "r.stacks"))
    text = written(job, tmp_path / "stacks", py_spy=str(refusing))
    assert "(py-spy: Permission Denied" in text and "in waits_as_a_rank" in text


def test_a_py_spy_that_hangs_does_not_take_the_file_with_it(start: Start, job: str, tmp_path: Path) -> None:
    hanging = tmp_path / "py-spy"
    hanging.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 1000\n")
    hanging.chmod(0o755)
    process = start(WAITING)
    text = written(job, tmp_path / "stacks", py_spy=str(hanging), deadline_s=stacks.WRITE_S + 0.5)
    assert f"pid {process.pid} " in text


def test_neither_environment_nor_secrets_in_arguments_are_written(
    start: Start, job: str, tmp_path: Path
) -> None:
    secret = "s3cret0"
    words = ["--api-key", secret, f"--hf-token={secret}", f"WANDB_API_KEY={secret}"]
    words += [
        f'--serialized-runtime-env={{"env_vars": "{secret}"}}',
        f'{{"x": "{secret}"}}',
        f"bash X={secret} y",
    ]
    start(WAITING, *words, environment={"HF_TOKEN": secret})
    for tool in {stacks.find_py_spy(), None}:
        text = written(job, tmp_path, py_spy=tool)
        assert secret not in text and "--api-key *** --hf-token=***" in text


def test_long_command_lines_are_shortened() -> None:
    assert len(shown(["python", "x" * 5000, *(["word"] * 1000)])) < 500


def test_a_process_that_overwrote_its_environment_is_known_by_its_parent(job: str, tmp_path: Path) -> None:
    """Ray's agents and vLLM's engines do so when they give themselves a title."""
    proc = tmp_path / "proc"
    for pid, parent, argv, environment in (
        (101, 1, "/usr/bin/raylet", f"A=b\0SLURM_JOB_ID={job}"),
        (102, 101, "ray::DashboardAgent\0\0\0", "\0\0\0"),
        (103, 102, "VLLM::EngineCore", "\0"),
        (104, 101, "/bin/sh", f"SLURM_JOB_ID={job}"),
        (105, 1, "python", f"SLURM_JOB_ID={job}1\0XSLURM_JOB_ID={job}"),
    ):
        folder = proc / str(pid)
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} (a ) b) S {parent} 0 0")
        (folder / "cmdline").write_text(argv)
        (folder / "environ").write_text(environment)
    found = job_processes(job, proc=proc)
    assert [p.pid for p in found] == [103, 101, 102]  # what works comes first
    assert [p.title for p in found] == ["VLLM::EngineCore", "a ) b", "ray::DashboardAgent"]


def test_the_program_leaves_itself_out_and_tells_where_the_file_is(job: str, tmp_path: Path) -> None:
    ended = run_program(job, tmp_path / "new" / "stacks")
    file = tmp_path / "new" / "stacks" / f"{socket.gethostname().partition('.')[0]}.txt"
    assert (ended.returncode, ended.stdout) == (0, f"stacks: {file}\n"), ended.stderr
    assert f"no Python or Ray process of job {job} runs here" in file.read_text()


def test_a_folder_that_cannot_be_written_is_named(job: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run_program(job, tmp_path / "file")
    assert ended.returncode == 1 and f"cannot write to {tmp_path}/file" in ended.stdout


def run_program(job: str, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_thinkprune.launch.stacks", "--job-id", job, "--into", str(into)]
    environment = {**os.environ, "SLURM_JOB_ID": job}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_process_that_is_gone_has_no_state() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert state_of(process.pid) == "" and told_by_kernel(process.pid) == ""
    assert Process(1, 0, "S", "x", ()).header().endswith("[x]\n")
