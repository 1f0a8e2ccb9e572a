"""What a job's script wrote down: RUN/logs/job_ID/events.tsv, and where its attempts keep their logs.

ID is Slurm's number of the job, or its submission id of `ray job submit`.
A line is an event: time (ISO 8601, UTC), number of the attempt from 1, event, and its detail, between tabs.
Lines that say something else, or are not finished, are passed over: the script may be writing right now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nemo_thinkprune.training.attempts import LOGS

EVENTS = "events.tsv"
STOP_FILE = "stop"
LAST_EVENTS = ("finished", "gave_up", "stopped")
_SLURM_ID = re.compile(r"[0-9]{1,10}")
_JOB = re.compile(r"job_([A-Za-z0-9._-]+)")
_ATTEMPT = re.compile(r"attempt_([0-9]{1,10})")


@dataclass(frozen=True, slots=True)
class Event:
    """A line of events.tsv."""

    time: datetime
    attempt: int
    name: str
    detail: str


@dataclass(slots=True)
class Attempt:
    """One start of a job's script.

    `reason` is a word such as node_lost, `code` the driver's exit code, `text` the rest of what was said of the
    end; `then` is what followed (requeue, finished, gave_up, stopped) with `then_why`. The times are aware; an
    attempt without `end` runs, or ended without a word.
    """

    number: int
    start: datetime | None = None
    nodes: str | None = None
    head: str | None = None
    ray_ready_s: float | None = None
    signals: list[str] = field(default_factory=list)
    end: datetime | None = None
    reason: str | None = None
    code: int | None = None
    text: str = ""
    then: str | None = None
    then_why: str = ""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """RUN/logs/job_ID: where a job keeps its own records, whether they are there or not."""

    run_dir: Path
    job_id: str

    @property
    def slurm_id(self) -> int | None:
        """Slurm's number of the job; None for a job of a Ray cluster."""
        return slurm_id(self.job_id)

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.run_dir / LOGS / f"job_{self.job_id}"

    @property
    def output(self) -> Path:
        """What the script printed, in all attempts."""
        return self.run_dir / LOGS / f"job_{self.job_id}.log"

    @property
    def stop_file(self) -> Path:
        """While it is there, the script does not requeue its job."""
        return self.path / STOP_FILE

    def attempt(self, number: int) -> Path:
        """The folder of an attempt's logs."""
        return self.path / f"attempt_{number}"

    def attempt_numbers(self) -> list[int]:
        """The attempts that have a folder, in order."""
        return sorted(int(number) for number in _folders(self.path, _ATTEMPT))

    def events(self) -> list[Event]:
        """What the script recorded so far."""
        return read_events(self.path / EVENTS)


def slurm_id(job_id: str) -> int | None:
    """The number that is a job's id in Slurm; None for a submission id of Ray."""
    return int(job_id) if _SLURM_ID.fullmatch(job_id) else None


def job_ids(run_dir: Path) -> list[str]:
    """The jobs that left records in a run folder, oldest first."""
    found = _folders(run_dir / LOGS, _JOB)
    return in_order(run_dir, (name for name in found if slurm_id(name) or JobFolder(run_dir, name).events()))


def in_order(run_dir: Path, ids: Iterable[str]) -> list[str]:
    """Jobs of a run folder by the time at which they began; those that have not begun come last."""

    def begin(job_id: str) -> tuple[datetime, int, str]:
        return _begin(JobFolder(run_dir, job_id)), slurm_id(job_id) or 0, job_id

    return sorted(ids, key=begin)


def read_events(path: Path) -> list[Event]:
    """The events of a file, in its order; empty when there is none."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return []
    found = (_event(line) for line in text.split("\n")[:-1])  # behind the last newline: not finished
    return [event for event in found if event is not None]


def attempts(events: Iterable[Event]) -> list[Attempt]:
    """The attempts that events tell of, in order."""
    found: dict[int, Attempt] = {}
    for event in events:
        _take_in(found.setdefault(event.attempt, Attempt(event.attempt)), event)
    return [found[number] for number in sorted(found)]


def is_last(events: Iterable[Event]) -> bool:
    """Whether the newest event says that the job is over for good."""
    names = [event.name for event in events]
    return bool(names) and names[-1] in LAST_EVENTS


def _event(line: str) -> Event | None:
    time, *rest = line.rstrip("\r").split("\t", 3)
    if len(rest) < 2 or not re.fullmatch(r"\d{1,6}", rest[0]) or not rest[1]:
        return None
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return None
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return Event(aware, int(rest[0]), rest[1], rest[2] if len(rest) > 2 else "")


def _take_in(attempt: Attempt, event: Event) -> None:
    name, detail = event.name, event.detail
    if name == "start":
        attempt.start = attempt.start or event.time
        attempt.nodes, attempt.head = _value(detail, "nodes"), _value(detail, "head")
    elif name == "ray_ready":
        match = re.search(r"(?:^|\s)(\d+(?:\.\d+)?)(?= s\b|$)", detail)
        attempt.ray_ready_s = float(match[1]) if match else None
    elif name == "signal":
        attempt.signals.append(detail)
    elif name == "end":
        attempt.end = event.time
        attempt.reason, _, rest = detail.partition(" ")
        match = re.match(r"code=(\d+|-)(?: |$)", rest)  # "-": nothing ended with a code
        attempt.code = int(match[1]) if match and match[1] != "-" else None
        attempt.text = rest[match.end() :] if match else rest
    elif name == "requeue" or name in LAST_EVENTS:
        attempt.then, attempt.then_why = name, detail


def _value(detail: str, key: str) -> str | None:
    match = re.search(rf"(?:^| ){key}=(\S+)", detail)
    return match[1] if match else None


def _begin(folder: JobFolder) -> datetime:
    if events := folder.events():
        return events[0].time
    try:
        return datetime.fromtimestamp(folder.path.stat().st_mtime, UTC)
    except OSError:
        return datetime.max.replace(tzinfo=UTC)


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """What the pattern's group finds in the names of the folders of a folder."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return [match[1] for name in names if (match := pattern.fullmatch(name))]
