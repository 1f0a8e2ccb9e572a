"""Times, durations and attempts in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from nemo_thinkprune.launch.events import Attempt
from nemo_thinkprune.launch.progress import LoggedStep

_REASONS = {
    "finished": "finished",
    "saved": "saved and stopped",
    "user_error": "refused: something to correct",
    "failed": "the run failed",
    "driver_killed": "the driver was killed",
    "node_lost": "a node was lost",
    "ray_failed": "Ray failed",
    "ray_not_ready": "Ray did not get ready",
    "stalled": "stalled",
    "time_limit": "time limit",
    "preempted": "requeued by Slurm itself",
    "cancelled": "cancelled",
    "batch_node_lost": "the node of the script was lost",
}
_THEN = {"requeue": "requeued", "gave_up": "given up", "stopped": "not requeued"}


def duration(seconds: float) -> str:
    """A duration in its two largest units: ``3 h 12 min``, ``4 min``, ``20 s``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown)


def age(seconds: float) -> str:
    """How long ago something was: ``4 min ago``."""
    return f"{duration(seconds)} ago"


def clock(time: datetime, now: datetime) -> str:
    """A local time, with its day where that is not today."""
    local, today = time.astimezone(), now.astimezone()
    return local.strftime("%H:%M" if local.date() == today.date() else "%Y-%m-%d %H:%M")


def end_in_words(attempt: Attempt, *, over: bool, newest: bool) -> str:
    """How an attempt ended, and what followed."""
    if attempt.reason is None and attempt.then is None:
        return "running" if newest and not over else "it ended without a word"
    reason = _REASONS.get(attempt.reason or "", attempt.reason or "ended")
    code = f" (code {attempt.code})" if attempt.code else ""
    text = f": {attempt.text}" if attempt.text else ""
    then = _THEN.get(attempt.then or "", "")
    why = f" ({attempt.then_why})" if then and attempt.then_why else ""
    return f"{reason}{code}{text}" + (f"; {then}{why}" if then else "")


def attempts_table(
    tried: Sequence[Attempt], *, steps: Mapping[int, LoggedStep], now: datetime, over: bool
) -> list[str]:
    """One line for each attempt under a head; empty when there is none. The last column may be long."""
    if not tried:
        return []
    rows = [("Attempt", "Start", "Length", "Nodes", "Step", "Ended")]
    for attempt in tried:
        newest = attempt is tried[-1]
        step = steps.get(attempt.number)
        rows.append(
            (
                str(attempt.number),
                attempt.start.astimezone().strftime("%Y-%m-%d %H:%M") if attempt.start else "?",
                _length(attempt, now=now, running=newest and not over),
                attempt.nodes or "?",
                "" if step is None else str(step.step) + (f" (L={step.limit})" if step.limit else ""),
                end_in_words(attempt, over=over, newest=newest),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]) for row in rows]


def _length(attempt: Attempt, *, now: datetime, running: bool) -> str:
    if attempt.start is None:
        return "?"
    if attempt.end is None:
        return duration((now - attempt.start).total_seconds()) if running else "?"
    # of a lost node only the next attempt's script tells, when it begins
    most = "at most " if attempt.reason == "batch_node_lost" else ""
    return most + duration((attempt.end - attempt.start).total_seconds())
