"""What became of a job: its state in Slurm, its attempts, how far the run is, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_thinkprune.launch import ray_commands
from nemo_thinkprune.launch.events import Attempt, JobFolder, attempts, is_last
from nemo_thinkprune.launch.find_job import Found, find_job
from nemo_thinkprune.launch.progress import LoggedStep, Progress, read_progress, step_in_log
from nemo_thinkprune.launch.slurm import SCRIPT_NAME
from nemo_thinkprune.launch.status_text import age, attempts_table, clock, duration, end_in_words
from nemo_thinkprune.training.console import row_text


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that is known of a job; `steps` holds the last step of each attempt, by number."""

    found: Found
    attempts: tuple[Attempt, ...]
    steps: dict[int, LoggedStep]
    over: bool
    progress: Progress | None
    logs: dict[str, Path]
    next: tuple[str, ...]
    now: datetime

    def text(self) -> str:
        """The status as lines for a terminal."""
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """The status in JSON's types: times as ISO 8601 in UTC, durations in seconds, paths as text."""
        return _as_dict(self)


def status(job: str, *, now: datetime | None = None) -> Status:
    """Ask Slurm and read the run folder.

    Args:
        job: a job's id, or a run folder.
        now: the present time, aware.

    Raises:
        UserError: there is no such job or folder, or only Slurm could tell and it is not here.
    """
    found = find_job(job)
    folder = found.folder
    events = folder.events() if folder else []
    tried = attempts(events)
    over = found.info.over if found.info else found.forgotten or is_last(events)
    drivers = {a.number: folder.attempt(a.number) / "driver.log" for a in tried} if folder else {}
    steps = {number: step for number, log in drivers.items() if (step := step_in_log(log))}
    progress = None
    if found.run_dir is not None:
        progress = read_progress(
            found.run_dir, driver_logs=[drivers[n] for n in sorted(drivers, reverse=True)]
        )
    return Status(
        found=found,
        attempts=tuple(tried),
        steps=steps,
        over=over,
        progress=progress,
        logs=_logs(folder, tried),
        next=_next(found, tried, over=over),
        now=now or datetime.now(UTC),
    )


def _logs(folder: JobFolder | None, tried: Sequence[Attempt]) -> dict[str, Path]:
    if folder is None:
        return {}
    found = {"job": folder.output}
    if tried:
        last = folder.attempt(tried[-1].number)
        found |= {"driver": last / "driver.log", "attempt": last}
    return {name: path for name, path in found.items() if path.exists()}


def _next(found: Found, tried: Sequence[Attempt], *, over: bool) -> tuple[str, ...]:
    run_dir = found.run_dir
    name = str(found.job_id) if found.info else shlex.quote(str(run_dir))
    if run_dir is None:
        return ()
    again = _again(found, run_dir)
    if found.job_id is None:
        return (f"{again}   (submit it)",)
    if found.info is not None and found.info.pending:
        return (f"thinkprune launch cancel {name}   (it waits; there is nothing to do)",)
    if not over:
        return (f"thinkprune launch logs {name} --follow", *_by_ray(found))
    if tried and tried[-1].then == "finished":
        return (f"thinkprune report {shlex.quote(str(run_dir))}",)
    return (f"thinkprune launch logs {name}", f"{again}   (goes on from the last checkpoint)")


def _again(found: Found, run_dir: Path) -> str:
    """The command that submits a run once more."""
    if found.of_ray or (found.job_id is None and not (run_dir / SCRIPT_NAME).exists()):
        words = ray_commands.submission(run_dir / ray_commands.SCRIPT_NAME)
        return shlex.join(words or ["thinkprune", "launch", "ray", "RECIPE", "--run-dir", str(run_dir)])
    return f"sbatch {shlex.quote(str(run_dir / SCRIPT_NAME))}"


def _by_ray(found: Found) -> tuple[str, ...]:
    if found.folder is None or not found.of_ray:
        return ()
    commands = ray_commands.commands_of(found.folder)
    return (f"{commands.status}   (is it still there?)", f"{commands.stop}   (saves first)")


def _lines(status: Status) -> list[str]:
    found, rows = status.found, [("State", _state(status))]
    if found.info is not None:
        rows.insert(0, ("Job", f"{found.info.job_id}  {found.info.name}"))
    elif found.job_id is not None:
        rows.insert(0, ("Job", f"{found.job_id}{'  of a Ray cluster' if found.of_ray else ''}"))
    if found.silence:
        rows.append(("", found.silence))
    if found.run_dir is not None:
        rows.append(("Run", str(found.run_dir)))
    else:
        rows.append(("", "not a job of `thinkprune launch`: nothing is known of its run folder"))
    if found.earlier:
        rows.append(("Earlier", "jobs " + ", ".join(map(str, found.earlier)) + " used this folder too"))
    if status.attempts:
        rows.append(("Attempt", str(status.attempts[-1].number)))
    table = attempts_table(status.attempts, steps=status.steps, now=status.now, over=status.over)
    rest = [*_progress_rows(status), *_log_rows(status)]
    rest += [("Next" if i == 0 else "", command) for i, command in enumerate(status.next)]
    return [*_aligned(rows), *(["", *table, ""] if table else []), *_aligned(rest)]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<9} {text}".rstrip() for name, text in rows]


def _state(status: Status) -> str:
    info, now = status.found.info, status.now
    if info is None:
        if not status.attempts:
            return "no attempt has begun"
        last = status.attempts[-1]
        return f"by its records: {end_in_words(last, over=status.over, newest=True)}"
    why = f" ({info.reason})" if info.reason and info.state not in ("COMPLETED", "CANCELLED") else ""
    text = info.state + why
    if info.pending:
        text += " after a requeue" if info.restarts else ""
        if info.start_time is None:
            return f"{text}; Slurm does not say when it will start"
        wait = duration(max((info.start_time - now).total_seconds(), 0))
        return f"{text}; expected to start at {clock(info.start_time, now)}, in {wait}"
    if info.over:
        code = f" with exit code {info.exit_code}" if info.exit_code else ""
        return text + code + (f" at {clock(info.end_time, now)}" if info.end_time else "")
    if info.start_time:
        text += f" for {duration((now - info.start_time).total_seconds())}"
    text += f" on {info.nodes}" if info.nodes else ""
    if info.end_time and info.time_limit:
        text += (
            f", {duration(max((info.end_time - now).total_seconds(), 0))} left of {duration(info.time_limit)}"
        )
    return text


def _progress_rows(status: Status) -> list[tuple[str, str]]:
    progress = status.progress
    if progress is None:
        return []
    rows = []
    if progress.rounds and progress.round:
        text = f"{progress.round} of {progress.rounds}, at most {progress.limit} tokens"
        rows.append(("Round", text + ("; its checkpoint is selected" if progress.selected else "")))
    if progress.step is None:
        rows.append(("Step", "none is recorded yet"))
    else:
        rows.append(("Step", f"{progress.step} of {progress.steps or '?'}"))
        written = f"written {age(progress.age_s)}" if progress.age_s is not None else ""
        numbers = row_text(progress.step, progress.steps, progress.row).partition("  ")[2]
        rows.append(("Metrics", "   ".join(part for part in (numbers, written) if part)))
    if progress.checkpoint is not None:
        rows.append(("Saved", f"step {progress.checkpoint.step}, {progress.checkpoint.path}"))
    if progress.left_s is not None and not status.over and not progress.selected:
        what = "this round" if progress.round else "the run"
        each = progress.seconds_a_step or 0.0
        rows.append(("Left", f"about {duration(progress.left_s)} of {what}, at {each:.3g} s a step"))
    return rows


def _log_rows(status: Status) -> list[tuple[str, str]]:
    paths = [str(status.logs[name]) for name in ("driver", "job") if name in status.logs]
    return [("Logs" if i == 0 else "", path) for i, path in enumerate(paths)]


def _as_dict(status: Status) -> dict[str, Any]:
    found, info = status.found, status.found.info
    slurm = None
    if info is not None:
        slurm = {
            "name": info.name,
            "state": info.state,
            "reason": info.reason,
            "nodes": info.nodes,
            "restarts": info.restarts,
            "submitted": _iso(info.submit_time),
            "start": _iso(info.start_time),
            "end": _iso(info.end_time),
            "time_limit_s": info.time_limit,
            "exit_code": info.exit_code,
        }
    return {
        "schema": 1,
        "job_id": found.job_id,
        "run_dir": None if found.run_dir is None else str(found.run_dir),
        "slurm": slurm,
        "slurm_silent": found.silence,
        "over": status.over,
        "attempts": [_attempt_dict(attempt, status.steps.get(attempt.number)) for attempt in status.attempts],
        "progress": _progress_dict(status.progress),
        "logs": {name: str(path) for name, path in status.logs.items()},
        "next": [command.partition("   ")[0] for command in status.next],
    }


def _attempt_dict(attempt: Attempt, step: LoggedStep | None) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "start": _iso(attempt.start),
        "end": _iso(attempt.end),
        "nodes": attempt.nodes,
        "ray_ready_s": attempt.ray_ready_s,
        "signals": list(attempt.signals),
        "reason": attempt.reason,
        "code": attempt.code,
        "text": attempt.text,
        "then": attempt.then,
        "then_why": attempt.then_why,
        "step": step.step if step else None,
        "limit": step.limit if step else None,
    }


def _progress_dict(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    saved = progress.checkpoint
    return {
        "folder": str(progress.folder),
        "round": progress.round,
        "rounds": progress.rounds,
        "limit": progress.limit,
        "step": progress.step,
        "steps": progress.steps,
        "metrics": progress.row,
        "age_s": progress.age_s,
        "seconds_a_step": progress.seconds_a_step,
        "left_s": progress.left_s,
        "checkpoint": None if saved is None else {"step": saved.step, "path": str(saved.path)},
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()
