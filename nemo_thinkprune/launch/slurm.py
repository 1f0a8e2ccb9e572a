"""Ask Slurm, and tell it: each call one of its commands, with a deadline, without a shell.

Parsing was written against 22.05's output; `scontrol show job` is read in its form of several lines, where a
job's name or comment cannot pass for another field.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError

OLDEST = (22, 5)
"""The first release in which steps of a job share its memory and GPUs (``srun --overlap``)."""

SCRIPT_NAME = "launch.sbatch"
CALL_TIMEOUT_S = 30.0
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
# They change how Slurm's commands print times and which cluster or jobs they show.
_UNWANTED = ("SLURM_TIME_FORMAT", "SQUEUE_", "SACCT_", "SCONTROL_")
_UNKNOWN_JOB = "Invalid job id"
_NOT_OURS = "job {} is an array or a heterogeneous job, none of `thinkprune launch`"
_NOTHING = ("", "(null)", "N/A", "None", "None assigned", "Unknown")
_SACCT_FIELDS = (
    "JobID", "JobIDRaw", "JobName", "State", "Reason", "NodeList", "Submit", "Start", "End", "TimelimitRaw",
    "ExitCode", "SubmitLine",
)  # fmt: skip
_SEPARATOR = "\x1f"


class SlurmUnavailable(UserError):
    """Slurm's commands are not on this machine, or its controller does not answer."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as Slurm knows it.

    `nodes` is Slurm's list, such as ``n[1-2]``, None before it was given nodes; `command` the script with its
    arguments; times are aware; of a pending job `start_time` is the expected one, and of a running one
    `end_time` the latest one. `time_limit` is in seconds, None without limit; `exit_code` None until it is over.
    """

    job_id: int
    name: str
    state: str
    reason: str | None
    nodes: str | None
    restarts: int
    command: str | None
    submit_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    time_limit: int | None
    exit_code: int | None

    @property
    def pending(self) -> bool:
        """Whether it waits for nodes, be it after a requeue."""
        return self.state == "PENDING" or self.state.startswith("REQUEUE")

    @property
    def over(self) -> bool:
        """Whether it has ended for good (a job that is COMPLETING has not)."""
        return self.state in _OVER

    @property
    def run_dir(self) -> Path | None:
        """The run folder of a job that `thinkprune launch` submitted."""
        return run_dir_of(self.command)


def run_dir_of(command: str | None) -> Path | None:
    """The folder of RUN/launch.sbatch in a job's command; None for other scripts."""
    match = re.match(rf"(/.*?)/{re.escape(SCRIPT_NAME)}(?: |$)", command or "")
    return Path(match[1]) if match else None


def parse_job_id(text: str) -> int | None:
    """A job id; None for a text that is none.

    Raises:
        UserError: the id of an array's task, of a part of a heterogeneous job, or of a step.
    """
    if re.fullmatch(r"\d{1,10}[_+.](\w+|\*|\[.*\])", text):
        raise UserError(f"{text} is one part of a job: give the id of a job of `thinkprune launch`, a number")
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def slurm_version() -> tuple[int, int] | None:
    """The release of Slurm here, such as (22, 5); None when it does not tell.

    Raises:
        SlurmUnavailable: there is no Slurm here, or it does not answer.
    """
    return parse_version(_call(["sbatch", "--version"]).stdout)


def parse_version(text: str) -> tuple[int, int] | None:
    """Year and month of a release in what Slurm's commands print for ``--version``, such as "slurm 24.11.0"."""
    match = re.search(r"\b(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def version_problem(version: tuple[int, int] | None) -> str:
    """Why a job cannot run with that release of Slurm; empty where it can, or where the release is not known."""
    if version is None or version >= OLDEST:
        return ""
    (year, month), (first_year, first_month) = version, OLDEST
    return (
        f"Slurm {year}.{month:02} is too old: steps of a job share its memory and GPUs (srun --overlap) "
        f"since {first_year}.{first_month:02}"
    )


def submit(
    script: Path,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> int:
    """Hand a script to `sbatch`; gives the job's id.

    Args:
        script: sbatch script; its absolute path becomes the job's Command.
        arguments: options of sbatch that stand before the script.
        environment: variables for sbatch, and so for the job, beside those of this process. Secrets go here:
            they never appear in an argument.
        timeout_s: seconds to wait for sbatch.

    Raises:
        SlurmUnavailable: there is no Slurm here, or it does not answer.
        UserError: Slurm refuses the job; the message is Slurm's.
    """
    argv = ["sbatch", "--parsable", *arguments, str(script.absolute())]
    try:
        done = _call(argv, timeout_s=timeout_s, environment=environment, plain=False)
    except SlurmUnavailable as error:
        if isinstance(error.__cause__, subprocess.TimeoutExpired):
            raise SlurmUnavailable(f"{error}; the job may be there all the same: look with squeue") from error
        raise
    if done.returncode:
        raise UserError(f"Slurm refuses the job: {_said(done)}")
    number = done.stdout.strip().split("\n")[-1].partition(";")[0]
    if not number.isdecimal():
        raise UserError(f"sbatch gave no job id but {done.stdout.strip()!r}: look with squeue")
    return int(number)


def job_info(job_id: int) -> JobInfo | None:
    """What Slurm knows of a job; of one that it has forgotten what its accounting says, else None.

    Raises:
        SlurmUnavailable: there is no Slurm here, or it does not answer.
        UserError: the job is an array or a heterogeneous job.
    """
    done = _call(["scontrol", "show", "job", str(job_id)])
    if done.returncode == 0:
        return parse_show_job(done.stdout, job_id)
    if _UNKNOWN_JOB not in done.stderr:
        raise SlurmUnavailable(f"Slurm says nothing about job {job_id}: {_said(done)}")
    return _accounted(job_id)


def jobs_of(run_dir: Path) -> list[int]:
    """The ids of this user's jobs of a run folder that Slurm still knows, oldest first.

    Raises:
        SlurmUnavailable: there is no Slurm here, or it does not answer.
    """
    done = _call(["squeue", "--me", "--noheader", "--states=all", "--format=%i %o"])
    if done.returncode:
        raise SlurmUnavailable(f"Slurm does not list jobs: {_said(done)}")
    rows = (line.strip().partition(" ") for line in done.stdout.splitlines())
    wanted = run_dir.resolve()
    found = [(number, run_dir_of(command)) for number, _, command in rows if number.isdecimal()]
    return sorted(int(number) for number, folder in found if folder and folder.resolve() == wanted)


def cancel_job(job_id: int) -> None:
    """End a job at once, pending or running; nothing happens to one that is over.

    Raises:
        UserError: Slurm refuses, as for the job of somebody else.
    """
    _told(job_id, _call(["scancel", str(job_id)]))


def signal_batch(job_id: int, signal: str) -> None:
    """Send a signal ("USR1") to the script of a running job alone, not to its steps.

    A pending job must not be signalled: scancel tries again and again until the call's deadline.

    Raises:
        UserError: Slurm refuses: the job is over or is somebody else's.
    """
    _told(job_id, _call(["scancel", "--batch", f"--signal={signal}", str(job_id)]))


def parse_show_job(text: str, job_id: int) -> JobInfo:
    """Read the output of `scontrol show job` for one job.

    Raises:
        UserError: it is an array or a heterogeneous job, or has not the form that is known.
    """
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    head = blocks[0].split("\n")[0] if blocks else ""
    if len(blocks) > 1 or re.match(r"JobId=\d+ (ArrayJobId|HetJobId)=", head):
        raise UserError(_NOT_OURS.format(job_id))
    lines = blocks[0].split("\n") if blocks else []
    name = re.match(r"JobId=(\d+) JobName=(.*)", head)
    state = _line(lines, r"JobState=(\S+) Reason=(.*?)(?: FailedNode=\S*)? Dependency=")
    if name is None or state is None:
        raise UserError(f"cannot read what `scontrol show job {job_id}` prints: its form is not known")
    times = _line(lines, r"StartTime=(\S+) EndTime=(\S+)")
    over = state[1] in _OVER
    return JobInfo(
        job_id=int(name[1]),
        name=name[2],
        state=state[1],
        reason=_text(state[2]),
        nodes=_text(_first(lines, r"NodeList=(\S*)")),
        restarts=int(_first(lines, r"Requeue=.*? Restarts=(\d+)") or 0),
        command=_text(_first(lines, r"Command=(.*)")),
        submit_time=_time(_first(lines, r"SubmitTime=(\S+)")),
        start_time=_time(times[1] if times else None),
        end_time=_time(times[2] if times else None),
        time_limit=parse_duration(_first(lines, r"RunTime=\S+ TimeLimit=(\S+)")),
        exit_code=int(_first(lines, r"Requeue=.*? ExitCode=(\d+):") or 0) if over else None,
    )


def parse_accounting(text: str, job_id: int) -> JobInfo | None:
    """Read the rows of `sacct` with the fields that `job_info` asks for: one for each time the job was started.

    Raises:
        UserError: it is an array or a heterogeneous job.
    """
    cells = (line.split(_SEPARATOR) for line in text.splitlines())
    rows = [dict(zip(_SACCT_FIELDS, row, strict=True)) for row in cells if len(row) == len(_SACCT_FIELDS)]
    rows = [row for row in rows if row["JobIDRaw"] == str(job_id)]
    if not rows:
        return None
    last = rows[-1]
    if last["JobID"] != str(job_id):
        raise UserError(_NOT_OURS.format(job_id))
    state = last["State"].partition(" ")[0]  # CANCELLED by 1000
    code, minutes = last["ExitCode"].partition(":")[0], last["TimelimitRaw"]
    return JobInfo(
        job_id=job_id,
        name=last["JobName"],
        state=state,
        reason=None if state in _OVER else _text(last["Reason"]),  # what it last waited for, not why it ended
        nodes=_text(last["NodeList"]),
        restarts=len(rows) - 1,
        command=_script_of(last["SubmitLine"]),
        submit_time=_time(last["Submit"]),
        start_time=_time(last["Start"]),
        end_time=_time(last["End"]),
        time_limit=60 * int(minutes) if minutes.isdecimal() else None,
        exit_code=int(code) if state in _OVER and code.isdecimal() else None,
    )


def _script_of(submit_line: str) -> str | None:
    """The script of `submit`'s command, its last word; sacct does not quote, and a path may hold spaces."""
    _, slash, path = submit_line.rpartition(" /")
    return f"/{path}" if slash else None


def parse_duration(text: str | None) -> int | None:
    """Seconds of ``[DAYS-]HOURS:MINUTES:SECONDS``; None for UNLIMITED and anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text or "")
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _accounted(job_id: int) -> JobInfo | None:
    if shutil.which("sacct") is None:
        return None
    form = ["-X", "-D", "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}"]
    argv = ["sacct", f"--jobs={job_id}", *form, f"--format={','.join(_SACCT_FIELDS)}"]
    try:
        done = _call(argv)
    except SlurmUnavailable:
        return None
    return parse_accounting(done.stdout, job_id) if done.returncode == 0 else None


def _call(
    argv: Sequence[str],
    *,
    timeout_s: float = CALL_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
    plain: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run one command. `plain`: in the C locale, which sbatch must not get, as the job would inherit it."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(_UNWANTED)}
    variables |= {"LC_ALL": "C"} if plain else {}
    variables |= environment or {}
    try:
        return subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=variables,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise SlurmUnavailable(
            f"{argv[0]} is not on this machine: run this on a login node of a Slurm cluster, "
            "or see what would run with --dry-run"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(
            f"{argv[0]} did not answer within {timeout_s:.0f} s: see whether `sinfo` answers, and try again"
        ) from error
    except (OSError, ValueError) as error:
        raise SlurmUnavailable(f"{argv[0]} cannot be run: {error}") from error


def _told(job_id: int, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise UserError(f"Slurm does not do this to job {job_id}: {_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    lines = [
        line for line in lines if ": fatal: " in line
    ] or lines  # what came before is how it came to that
    return "; ".join(lines) or f"exit code {done.returncode} without a word"


def _line(lines: Sequence[str], pattern: str) -> re.Match[str] | None:
    """The first line of which `pattern` is the beginning: fields that hold free text have lines of their own."""
    matches = (re.match(pattern, line.strip()) for line in lines)
    return next((match for match in matches if match), None)


def _first(lines: Sequence[str], pattern: str) -> str | None:
    match = _line(lines, pattern)
    return match[1] if match else None


def _text(value: str | None) -> str | None:
    return None if value is None or value.strip() in _NOTHING else value.strip()


def _time(text: str | None) -> datetime | None:
    """Slurm's local time, made aware; None for Unknown."""
    try:
        return datetime.strptime(text or "", "%Y-%m-%dT%H:%M:%S").astimezone()
    except ValueError:
        return None
