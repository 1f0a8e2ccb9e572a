"""What the user sees of a failure: lines that say something, and a full disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.postmortem import tail, with_disk
from nemo_thinkprune.training.supervisor import JobFailed, run_job
from nemo_thinkprune.training.watch import Failure, FailureKind

NOISE = """\
/lib/backends.py:21: UserWarning: Apex is not installed. Falling back to Torch Norm
  warnings.warn("Apex is not installed. Falling back to Torch Norm")
\x1b[36m(CpuWorker pid=9485)\x1b[0m /lib/torch.py:799: FutureWarning: `load_state_dict` is deprecated
\x1b[36m(CpuWorker pid=9485)\x1b[0m   checkpoint.load_state_dict(
\x1b[36m(pid=9485, ip=10.0.0.1)\x1b[0m   warnings.warn(

  3%|3         | 3/100 [00:01<00:30,  3.19it/s]\r  4%|4         | 4/100 [00:01<00:30,  3.19it/s]
    [2026-11-21 17:51:06,341 I 23636 23636] (raylet) worker_pool.cc:564: Started worker process
"""
LINES = [
    "Traceback (most recent call last):",
    '  File "a.py", line 3, in step',
    "    raise UserWarning(text)",
    "(CpuWorker pid=9485) std::bad_alloc",
    "UserWarning: not this one: it was raised",
]


def test_noise_does_not_push_out_what_was_said(tmp_path: Path) -> None:
    log = tmp_path / "rank_0.log"
    log.write_text("\n".join(NOISE + line for line in LINES) + "\n" + NOISE * 20)
    assert tail(log).splitlines() == LINES
    assert tail(log, 2).splitlines() == LINES[-2:]
    assert log.read_text().count("Apex") == 2 * (len(LINES) + 20)


def test_a_log_that_is_missing_or_says_nothing_has_no_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(NOISE)
    assert tail(tmp_path / "log") == tail(tmp_path / "missing") == ""


def disk(monkeypatch: pytest.MonkeyPatch, *, free: int, files_free: int = 1) -> None:
    """Every file system has so much room."""
    values = {"f_bavail": free, "f_frsize": 1, "f_files": 100, "f_favail": files_free}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**values))


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_full_disk_is_named_where_the_reason_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: FailureKind
) -> None:
    failure = Failure(kind, 0, "rank 0 of 1 left with exit code 1", "positions")
    disk(monkeypatch, free=10**10)
    assert with_disk(failure, tmp_path) == failure
    disk(monkeypatch, free=3_000_000)
    told = with_disk(failure, tmp_path)
    known = kind in (FailureKind.STALLED, FailureKind.OUT_OF_MEMORY, FailureKind.USER_ERROR)
    assert (told == failure) is known
    if not known:
        first, second = told.reason.splitlines()
        assert first == failure.reason and f"the file system of {tmp_path} is full (3 MB free)" in second
    disk(monkeypatch, free=10**10, files_free=0)
    assert (with_disk(failure, tmp_path) == failure) is known


def test_a_disk_that_cannot_be_asked_is_not_blamed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failure = Failure(FailureKind.EXITED, 0, "gone")

    def broken(path: object) -> object:
        raise OSError

    monkeypatch.setattr(os, "statvfs", broken)
    assert with_disk(failure, tmp_path) == failure


def test_the_supervisor_tells_of_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, make_job: Callable[..., Job]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    disk(monkeypatch, free=0)
    with pytest.raises(JobFailed) as caught:
        run_job(make_job(), entry="fake_entries:exit_three")
    assert "is full (0 MB free)" in caught.value.reason
    assert "is full (0 MB free)" in caught.value.report.read_text()
