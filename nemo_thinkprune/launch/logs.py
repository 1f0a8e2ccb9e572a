"""The logs of a job: where they are, how they end, and what is added to them, across its attempts."""

from __future__ import annotations

import codecs
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import Literal, get_args

from nemo_thinkprune.launch.events import JobFolder, attempts, is_last
from nemo_thinkprune.launch.find_job import Found, find_job
from nemo_thinkprune.launch.slurm import SlurmUnavailable, job_info
from nemo_thinkprune.recipe.errors import UserError

Which = Literal["driver", "ray-head", "ray-workers", "ray-ready", "watchdog", "stacks", "job"]
Write = Callable[[str], None]

POLL_S = 0.5
_ASK_SLURM_S = 10.0
_CHUNK = 1 << 16
_LINE_BYTES = 400  # of an ordinary line: how much to read for a number of them
_LONGEST_TAIL = 1 << 22
_DECODER = codecs.getincrementaldecoder("utf-8")


def logs(
    job: str,
    *,
    which: Which = "driver",
    attempt: int | None = None,
    lines: int = 40,
    follow: bool = False,
    write: Write,
    stop: Flag | None = None,
) -> None:
    """Write where a log is and its last lines, then, to follow it, what is added until the job is over.

    Following goes over to the log of the next attempt when that begins, unless one attempt was asked for. It
    ends when the job's records or Slurm say that the job is over, when the asked attempt has ended, when `stop`
    is set, or with KeyboardInterrupt.

    Args:
        job: a job's id, or a run folder.
        which: the driver's output, Ray's, the watchdog's, the stacks of a stalled attempt, or what the job's
            script itself printed ("job", one file for all attempts).
        attempt: from 1; None: the newest.
        lines: how many of the last lines to write first.
        follow: go on with what is added.
        write: gets text, as it is in the file.
        stop: ends following when set.

    Raises:
        UserError: no such job, attempt or log.
    """
    found = find_job(job)
    folder = _records(found, job)
    if which not in get_args(Which):
        raise UserError(f"there is no log called {which}: give one of {', '.join(get_args(Which))}")
    number = _attempt(folder, attempt, waiting=follow and _may_go_on(found, folder))
    if which == "stacks":
        return _write_stacks(folder.attempt(number) / "stacks", lines=lines, follow=follow, write=write)
    reader = _Reader(folder, which, number, write)
    if not follow and not reader.path.is_file():
        raise UserError(f"{reader.path} is not there{_there_are(reader.path.parent)}")
    reader.begin(lines=lines)
    if follow:
        _follow(reader, found, only=attempt, stop=stop or Flag())


def _records(found: Found, job: str) -> JobFolder:
    if found.folder is None:
        raise UserError(f"{job} has no logs here: it is not a job of `thinkprune launch`, or never started")
    return found.folder


def _attempt(folder: JobFolder, wanted: int | None, *, waiting: bool) -> int:
    known = folder.attempt_numbers()
    if wanted is None:
        if known or waiting or folder.output.exists():
            return known[-1] if known else 1
        raise UserError(f"job {folder.job_id} has not begun: there are no logs in {folder.path}")
    if wanted in known or waiting:
        return wanted
    has = f"it has {', '.join(map(str, known))}" if known else "it has none"
    raise UserError(f"job {folder.job_id} has no attempt {wanted}: {has}")


def _may_go_on(found: Found, folder: JobFolder) -> bool:
    return not (found.info.over if found.info else found.forgotten or is_last(folder.events()))


def _there_are(folder: Path) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError:
        names = []
    return f"; in {folder} there are {', '.join(names)}" if names else ""


def _write_stacks(folder: Path, *, lines: int, follow: bool, write: Write) -> None:
    if follow:
        raise UserError("stacks are written once: leave --follow away")
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"no stacks in {folder}: they are written when the watchdog ends an attempt that stalled"
        )
    for path in files:
        write(f"==> {path} <==\n")
        write(_tail(path, lines)[0])


@dataclass(slots=True)
class _Reader:
    """Hands on what is added to one log; the file need not be there yet, and may be begun anew."""

    folder: JobFolder
    which: Which
    number: int
    write: Write
    position: int = 0
    ends_line: bool = True
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _DECODER("replace"))

    @property
    def path(self) -> Path:
        if self.which == "job":
            return self.folder.output
        return self.folder.attempt(self.number) / f"{self.which.replace('-', '_')}.log"

    def begin(self, *, lines: int) -> None:
        """Say which file it is and write its last lines."""
        self._say_path()
        text, self.position = _tail(self.path, lines)
        self._hand_on(text)

    def go_on(self) -> None:
        """Turn to the log of the next attempt, from its beginning."""
        self.number += 1
        self._say_path()
        self.position = 0

    def more(self) -> bool:
        """Write what was added; whether there was anything."""
        try:
            with open(self.path, "rb") as stream:
                if stream.seek(0, os.SEEK_END) < self.position:
                    self.position = 0
                    self.decoder.reset()
                stream.seek(self.position)
                data = stream.read(_CHUNK)
        except OSError:
            return False
        self.position += len(data)
        self._hand_on(self.decoder.decode(data))
        return bool(data)

    def _say_path(self) -> None:
        self.write(f"{'' if self.ends_line else chr(10)}==> {self.path} <==\n")
        self.ends_line = True

    def _hand_on(self, text: str) -> None:
        if text:
            self.write(text)
            self.ends_line = text.endswith("\n")


def _follow(reader: _Reader, found: Found, *, only: int | None, stop: Flag) -> None:
    folder, asked = reader.folder, -math.inf
    while not stop.is_set():
        now = time.monotonic()
        over = is_last(folder.events())
        if not over and now - asked >= _ASK_SLURM_S:
            over, asked = _is_over(folder.slurm_id), now
        newest = max(folder.attempt_numbers(), default=reader.number)
        ended = only is not None and _has_ended(folder, only)
        while reader.more():
            pass
        if over or ended:
            stop.wait(POLL_S)  # another machine's last lines come a little later
            return _take_leave(reader, folder, only)
        if only is None and newest > reader.number and reader.which != "job":
            reader.go_on()  # one after the other: a short attempt is not left out
            continue
        stop.wait(POLL_S)


def _take_leave(reader: _Reader, folder: JobFolder, only: int | None) -> None:
    newest = max(folder.attempt_numbers(), default=reader.number)
    while True:
        while reader.more():
            pass
        if only is not None or reader.which == "job" or reader.number >= newest:
            return
        reader.go_on()


def _has_ended(folder: JobFolder, number: int) -> bool:
    tried = {attempt.number: attempt for attempt in attempts(folder.events())}
    return (number in tried and tried[number].end is not None) or any(other > number for other in tried)


def _is_over(job_id: int | None) -> bool:
    """Whether Slurm says so; where Slurm is not here, or does not answer just now, it does not."""
    if job_id is None:
        return False
    try:
        info = job_info(job_id)
    except SlurmUnavailable:
        return False
    return info is None or info.over


def _tail(path: Path, lines: int) -> tuple[str, int]:
    """(the last lines, offset behind them); nothing where there is no file yet."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            wanted = min(size, max(lines, 0) * _LINE_BYTES, _LONGEST_TAIL)
            data = b""
            while True:
                stream.seek(size - wanted)
                data = stream.read(wanted)
                if wanted in (size, _LONGEST_TAIL) or data.count(b"\n") > lines:
                    break
                wanted = min(size, 2 * wanted, _LONGEST_TAIL)
    except OSError:
        return "", 0
    ends = b"\n" if data.endswith(b"\n") else b""
    kept = data.removesuffix(b"\n").split(b"\n")[-lines:] if lines > 0 and data else []
    return (b"\n".join(kept) + (ends if kept else b"")).decode("utf-8", errors="replace"), size
