"""A job's logs: found, shown from their end, and followed from attempt to attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.launched_runs import job_records
from support.slurm_lab import SlurmLab

from nemo_thinkprune.launch import logs as logs_module
from nemo_thinkprune.launch import slurm as queries
from nemo_thinkprune.launch.logs import logs
from nemo_thinkprune.recipe.errors import UserError

START = "2026-11-21T10:00:00Z {0} start nodes=n1 head=n1\n"
END = "2026-11-21T10:01:00Z {0} end failed code=1 x\n2026-11-21T10:01:00Z {0} requeue after failed\n"
FINISHED = "2026-11-21T10:02:00Z {0} end finished code=0\n2026-11-21T10:02:00Z {0} finished \n"


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def shown(run: Path, **options: Any) -> str:
    parts: list[str] = []
    logs(str(run), write=parts.append, **options)
    return "".join(parts)


def add_events(folder: Path, text: str) -> None:
    with open(folder / "events.tsv", "a") as stream:
        stream.writelines("\t".join(line.split(" ", 3)) + "\n" for line in text.splitlines())


def append(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "ab") as stream:
        stream.write(text.encode() if isinstance(text, str) else text)


@pytest.fixture
def two_attempts(tmp_path: Path) -> Path:
    events = START.format(1) + END.format(1) + START.format(2)
    many = "".join(f"line {number}\n" for number in range(1000))
    return job_records(tmp_path, 7, events, drivers={1: "first\n", 2: many})


def test_the_end_of_the_newest_log_and_where_it_is(
    no_slurm: None, tmp_path: Path, two_attempts: Path
) -> None:
    text = shown(tmp_path, lines=2)
    assert text == f"==> {two_attempts}/attempt_2/driver.log <==\nline 998\nline 999\n"
    assert shown(tmp_path, lines=5000).count("\n") == 1001
    assert shown(tmp_path, attempt=1) == f"==> {two_attempts}/attempt_1/driver.log <==\nfirst\n"
    assert shown(tmp_path, which="job") == f"==> {two_attempts}.log <==\nfrom the script\n"


def test_the_other_logs_of_an_attempt(no_slurm: None, tmp_path: Path, two_attempts: Path) -> None:
    append(two_attempts / "attempt_2" / "ray_workers.log", "n2: hello")
    append(two_attempts / "attempt_1" / "stacks" / "n1.txt", "frame\n")
    append(two_attempts / "attempt_1" / "stacks" / "n2.txt", "other frame\n")
    assert shown(tmp_path, which="ray-workers").endswith("ray_workers.log <==\nn2: hello")
    text = shown(tmp_path, which="stacks", attempt=1)
    stacks = two_attempts / "attempt_1" / "stacks"
    assert text == f"==> {stacks}/n1.txt <==\nframe\n==> {stacks}/n2.txt <==\nother frame\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempt": 3}, "no attempt 3: it has 1, 2"),
        ({"which": "watchdog"}, r"watchdog.log is not there; in .*attempt_2 there are driver.log"),
        ({"which": "stacks"}, r"no stacks in .*attempt_2/stacks"),
        ({"which": "stacks", "follow": True}, "leave --follow away"),
        ({"which": "nonsense"}, "there is no log called nonsense: give one of driver, ray-head"),
    ],
)
def test_what_is_not_there(
    no_slurm: None, tmp_path: Path, two_attempts: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        shown(tmp_path, **options)


def test_a_job_that_never_began(no_slurm: None, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(UserError, match="never started"):
        shown(tmp_path)
    (tmp_path / "logs" / "job_7").mkdir()
    with pytest.raises(UserError, match="has not begun"):
        shown(tmp_path)


class Following:
    """`logs --follow` in a thread of its own; what it wrote is in `text`."""

    def __init__(self, job: Path | int, **options: Any) -> None:
        self.text = ""
        self.stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(str(job), options), daemon=True)
        self._thread.start()

    def _run(self, job: str, options: dict[str, Any]) -> None:
        try:
            logs(job, follow=True, write=self._take, stop=self.stop, **options)
        except BaseException as error:
            self._error = error

    def _take(self, text: str) -> None:
        self.text += text

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.text, f"{text!r} in {self.text!r}")

    def ended(self) -> str:
        self._thread.join(20)
        assert not self._thread.is_alive(), self.text
        if self._error is not None:
            raise self._error
        return self.text


def until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "POLL_S", 0.05)
    monkeypatch.setattr(logs_module, "_ASK_SLURM_S", 0.2)


def test_following_goes_over_to_the_next_attempts_and_ends_with_the_job(
    no_slurm: None, quickly: None, tmp_path: Path
) -> None:
    job = job_records(tmp_path, 7, START.format(1), drivers={1: "begin\n"})
    following = Following(tmp_path)
    following.wait_for("begin\n")
    append(job / "attempt_1" / "driver.log", "half a line, half a character \xe4".encode()[:-1])
    following.wait_for("half a character ")
    append(job / "attempt_1" / "driver.log", "\xe4".encode()[1:])
    add_events(job, END.format(1))
    append(job / "attempt_2" / "driver.log", "short\n")  # an attempt that is over before anybody looks
    append(job / "attempt_3" / "driver.log", "long\n" * 50_000)
    add_events(job, START.format(3))
    following.wait_for("long\n")
    append(job / "attempt_3" / "driver.log", "last words\n")
    add_events(job, FINISHED.format(3))
    assert following.ended() == (
        f"==> {job}/attempt_1/driver.log <==\nbegin\nhalf a line, half a character \xe4"
        f"\n==> {job}/attempt_2/driver.log <==\nshort\n"
        f"==> {job}/attempt_3/driver.log <==\n" + "long\n" * 50_000 + "last words\n"
    )


def test_a_log_may_come_later_and_be_written_anew(no_slurm: None, quickly: None, tmp_path: Path) -> None:
    job = job_records(tmp_path, 7, START.format(1))
    following = Following(tmp_path, which="watchdog")
    following.wait_for("watchdog.log <==\n")
    log = job / "attempt_1" / "watchdog.log"
    append(log, "one\n")
    following.wait_for("one\n")
    log.write_text("2\n")
    following.wait_for("2\n")
    following.stop.set()
    assert following.ended().endswith("<==\none\n2\n")


def test_one_attempt_is_followed_to_its_own_end(no_slurm: None, quickly: None, tmp_path: Path) -> None:
    job = job_records(tmp_path, 7, START.format(1), drivers={1: "begin\n"})
    following = Following(tmp_path, attempt=1)
    following.wait_for("begin\n")
    append(job / "attempt_1" / "driver.log", "end\n")
    append(job / "attempt_2" / "driver.log", "not this\n")
    add_events(job, END.format(1) + START.format(2))
    assert following.ended() == f"==> {job}/attempt_1/driver.log <==\nbegin\nend\n"


def test_a_finished_job_is_shown_and_not_waited_for(no_slurm: None, tmp_path: Path) -> None:
    job_records(tmp_path, 7, START.format(1) + FINISHED.format(1), drivers={1: "all\n"})
    assert Following(tmp_path).ended().endswith("<==\nall\n")


SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=tp-test --time=5 --output=/dev/null
folder=logs/job_$SLURM_JOB_ID/attempt_1
mkdir -p "$folder" && echo hello > "$folder/driver.log"
sleep 100
"""


def test_a_job_is_followed_from_the_queue_until_slurm_says_it_is_over(
    slurm: SlurmLab, quickly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch.sbatch").write_text(SCRIPT)
    job = queries.submit(tmp_path / "launch.sbatch", arguments=["--hold"])
    with pytest.raises(UserError, match="has not begun"):
        shown(Path(str(job)))
    following = Following(job)
    following.wait_for("attempt_1/driver.log <==\n")
    slurm.run(["scontrol", "release", str(job)])
    following.wait_for("hello\n")
    queries.cancel_job(job)
    assert following.ended() == f"==> {tmp_path}/logs/job_{job}/attempt_1/driver.log <==\nhello\n"
