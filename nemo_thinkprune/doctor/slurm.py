"""What Slurm says about the partition and the limits that a job would meet."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.launch.slurm import parse_version, version_problem
from nemo_thinkprune.launch.slurm_job import seconds

_PATIENCE_S = 20.0
_DEAD = ("down", "drain", "fail", "maint", "inval", "unk", "power", "not_resp", "no_respond", "reboot")


@dataclass(frozen=True, slots=True)
class SlurmFacts:
    """Answers of sinfo and scontrol.  `states`: nodes of the partition by state; `partitions`: all names."""

    version: str = ""
    requeue: bool = True
    partition: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    problem: str = ""


def slurm_facts(partition: str | None) -> SlurmFacts | None:
    """Ask Slurm; None where its commands are not installed.  `partition` None: the default one."""
    try:
        version = _answer("sinfo", "--version")
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError) as error:
        return SlurmFacts(problem=_why(error))
    try:
        config = _answer("scontrol", "show", "config")
        listed = _answer("sinfo", "-h", "-o", "%P").split()
        default = next((name[:-1] for name in listed if name.endswith("*")), "")
        names = tuple(dict.fromkeys(name.rstrip("*") for name in listed))
        chosen = partition or default
        if chosen not in names:
            return SlurmFacts(version, partition=chosen, partitions=names)
        shown = _answer("scontrol", "show", "partition", chosen, "-o")
        states = _answer("sinfo", "-h", "-p", chosen, "-o", "%T %D")
    except (OSError, subprocess.SubprocessError) as error:
        return SlurmFacts(version, problem=_why(error))
    requeue = re.search(r"^JobRequeue\s*=\s*(\d)", config, re.MULTILINE)
    settings = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
    return SlurmFacts(version, not requeue or requeue[1] != "0", chosen, settings, _counts(states), names)


def judge_slurm(facts: SlurmFacts, *, nodes: int | None, time: str | None) -> Iterator[Finding]:
    """Findings about a job of `nodes` nodes and the time limit `time` in that partition."""
    if facts.problem:
        yield problem("Slurm", facts.problem, "is its controller up?  scontrol ping")
        return
    if facts.partition not in facts.partitions:
        known = ", ".join(facts.partitions) or "none"
        named = (
            f"there is no partition {facts.partition}" if facts.partition else "there is no default partition"
        )
        yield problem("Slurm", f"{named}; known are: {known}", "give --partition NAME")
        return
    found = [*_partition(facts, nodes), *_time(facts, time), *_policy(facts)]
    yield from found
    if not found:
        yield ok("Slurm", f"{facts.version}, partition {facts.partition}, {_states(facts)}")


def judge_version(facts: SlurmFacts) -> Iterator[Finding]:
    """A finding where this Slurm is too old for the jobs of `thinkprune launch`."""
    if why := version_problem(parse_version(facts.version)):
        remedy = "use a cluster with a later one; on one node, `thinkprune train` in a job of your own does without"
        yield problem("Slurm version", why, remedy)


def _partition(facts: SlurmFacts, nodes: int | None) -> Iterator[Finding]:
    if facts.settings.get("State", "UP") != "UP":
        yield problem(
            "Slurm", f"partition {facts.partition} is {facts.settings['State']}", "give --partition NAME"
        )
    if nodes is None:
        return
    most = facts.settings.get("MaxNodes", "")
    if most.isdecimal() and int(most) < nodes:
        yield problem(
            "Slurm", f"partition {facts.partition} allows {most} nodes a job, not {nodes}", f"--nodes {most}"
        )
    alive = sum(count for state, count in facts.states.items() if not _is_dead(state))
    idle = sum(
        count for state, count in facts.states.items() if state.startswith("idle") and not _is_dead(state)
    )
    if alive < nodes:
        yield problem(
            "Slurm",
            f"partition {facts.partition} has {alive} nodes that work ({_states(facts)}), not {nodes}",
            "ask for fewer, or see why the others are away: sinfo -R",
        )
    elif idle < nodes:
        yield note(
            "Slurm", f"the job will wait: {_states(facts)} in partition {facts.partition}", "squeue --start"
        )


def _time(facts: SlurmFacts, time: str | None) -> Iterator[Finding]:
    if time is None:
        return
    asked, limit = seconds(time), facts.settings.get("MaxTime", "UNLIMITED")
    most = seconds(limit)  # None: there is none
    if asked is None:
        yield problem("time limit", f"--time {time} is not a time", "write it as 24:00:00 or 2-12:00:00")
    elif most is not None and asked > most:
        yield problem(
            "time limit",
            f"--time {time} is more than partition {facts.partition} gives, {limit}",
            f"--time {limit}: the job saves before its end and queues itself again",
        )


def _policy(facts: SlurmFacts) -> Iterator[Finding]:
    if not facts.requeue:
        yield note(
            "Slurm",
            "JobRequeue=0: after a lost node Slurm starts only those jobs again that were submitted with --requeue",
            "`thinkprune launch slurm` does; a script of your own needs #SBATCH --requeue",
        )
    mode = facts.settings.get("PreemptMode", "OFF")
    if mode.upper() not in ("OFF", ""):
        yield note(
            "Slurm",
            f"jobs in partition {facts.partition} may be preempted (PreemptMode={mode})",
            "save more often (checkpointing.save_period); the grace time: scontrol show partition",
        )


def _is_dead(state: str) -> bool:
    return state.endswith("*") or any(word in state for word in _DEAD)


def _states(facts: SlurmFacts) -> str:
    return ", ".join(f"{count} {state}" for state, count in facts.states.items()) or "no nodes"


def _counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in text.splitlines():
        state, _, number = line.strip().rpartition(" ")
        if state and number.isdecimal():
            counts[state] = counts.get(state, 0) + int(number)
    return counts


def _answer(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=True,
        stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return done.stdout.strip()


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} did not answer within {_PATIENCE_S:.0f} s"
    said = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return said[-1] if said else str(error)
