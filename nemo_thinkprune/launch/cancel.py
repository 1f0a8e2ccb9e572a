"""End a job: at once, or after it has saved."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from nemo_thinkprune.launch.events import JobFolder, is_last
from nemo_thinkprune.launch.find_job import Found, find_job
from nemo_thinkprune.launch.progress import newest_checkpoint
from nemo_thinkprune.launch.ray_commands import commands_of
from nemo_thinkprune.launch.slurm import (
    SCRIPT_NAME,
    JobInfo,
    SlurmUnavailable,
    cancel_job,
    job_info,
    signal_batch,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.checkpoint_files import Checkpoint

Say = Callable[[str], None]

END_TIMEOUT_S = 180.0
SAVE_TIMEOUT_S = 3600.0
FORGOTTEN = "unknown to Slurm"
_POLL_S = 1.0
_SAY_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of a job that was to end: whether it is over, its last state, and the last checkpoint."""

    job_id: int
    over: bool
    state: str
    checkpoint: Checkpoint | None


def cancel(
    job: str, *, save: bool = False, timeout_s: float | None = None, say: Say, poll_s: float = _POLL_S
) -> Cancelled:
    """End a job and wait until it is over.

    Args:
        job: a job's id, or a run folder.
        save: let it save at the next step boundary, and end without being requeued; a job that waits for nodes
            has nothing to save and is cancelled.
        timeout_s: seconds to wait for its end, default `END_TIMEOUT_S`, with `save` `SAVE_TIMEOUT_S`. A job that
            is still there then is reported as not over; nothing more is done to it.
        say: gets each line of what happens.
        poll_s: seconds between questions to Slurm.

    Raises:
        SlurmUnavailable: there is no Slurm here, or it does not answer.
        UserError: there is no such job, or it is somebody else's, or it cannot save, or it is a job of Ray.
    """
    found = find_job(job)
    info = found.info
    if found.folder is not None and found.of_ray:
        raise UserError(f"nothing was cancelled: {_ray_instead(found.folder)}")
    if info is None or found.job_id is None:
        if found.job_id is None or found.silence is None:
            raise UserError(f"{job} has no job that could be cancelled")
        raise UserError(f"nothing was cancelled: {found.silence}")
    before = newest_checkpoint(found.run_dir) if found.run_dir else None
    if info.over:
        say(f"Job {info.job_id} is over already: {info.state}.")
        return _report(found, info, before, say)
    limit = timeout_s if timeout_s is not None else SAVE_TIMEOUT_S if save else END_TIMEOUT_S
    deadline = time.monotonic() + limit
    begun = not info.pending and info.state != "CONFIGURING"
    if save and begun:
        last = _save_and_end(found, info, say, deadline=deadline, poll_s=poll_s)
    else:
        cancel_job(info.job_id)
        say(f"Job {info.job_id} was {info.state if begun else 'waiting for nodes'}; cancelled.")
        last = _wait(info, say, deadline=deadline, poll_s=poll_s)
    return _report(found, last, before, say)


def _ray_instead(folder: JobFolder) -> str:
    """What to do about a job of Ray."""
    if is_last(folder.events()):
        return f"job {folder.job_id} of Ray is over by its records"
    return f"{folder.job_id} is a job of Ray, which saves and ends by: {commands_of(folder).stop}"


def _save_and_end(found: Found, info: JobInfo, say: Say, *, deadline: float, poll_s: float) -> JobInfo:
    folder = found.folder
    if folder is None:
        raise UserError(
            f"job {info.job_id} is not a job of `thinkprune launch` and cannot be asked to save: "
            "leave --save away to cancel it"
        )
    _forbid_requeue(folder)
    try:
        signal_batch(info.job_id, "USR1")
    except UserError:  # it ended, or was requeued, in this moment: what follows finds out
        now = job_info(info.job_id)
        if now is not None and now.state == "RUNNING":
            folder.stop_file.unlink(missing_ok=True)
            raise
    else:
        say(f"Job {info.job_id} is asked to save at the end of its step and to leave.")
    return _wait(info, say, deadline=deadline, poll_s=poll_s, saving=True)


def _forbid_requeue(folder: JobFolder) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.stop_file.touch()
    except OSError as error:
        raise UserError(
            f"cannot write {folder.stop_file} ({error.strerror}), which tells the job not to start again: "
            "nothing was done; run this as the user whose job it is"
        ) from error


def _wait(info: JobInfo, say: Say, *, deadline: float, poll_s: float, saving: bool = False) -> JobInfo:
    """Wait for the end; a job that came back into the queue instead has saved, and is cancelled there."""
    said = time.monotonic()
    while True:
        try:
            # what Slurm has forgotten is over, it does not say how
            info = job_info(info.job_id) or replace(info, state=FORGOTTEN)
        except SlurmUnavailable:
            if time.monotonic() > deadline:
                raise
        if info.over or info.state == FORGOTTEN:
            return info
        if saving and info.pending:
            say("It was requeued before it could be told not to; it is cancelled in the queue.")
            cancel_job(info.job_id)
            saving = False
        now = time.monotonic()
        if now > deadline:
            return info
        if now - said >= _SAY_EVERY_S:
            say(f"Job {info.job_id} is still {info.state}.")
            said = now
        time.sleep(min(poll_s, max(deadline - now, 0.05)))


def _report(found: Found, info: JobInfo, before: Checkpoint | None, say: Say) -> Cancelled:
    run_dir = found.run_dir
    checkpoint = newest_checkpoint(run_dir) if run_dir else None
    if not info.over and info.state != FORGOTTEN:
        say(f"Job {info.job_id} is not over yet ({info.state}): it may still be saving.")
        say(f"Next:     thinkprune launch status {info.job_id}")
        say(f"          thinkprune launch cancel {info.job_id}   (ends it without saving)")
        return Cancelled(info.job_id, False, info.state, checkpoint)
    say(f"Job {info.job_id} is over: {info.state}.")
    if run_dir is not None and checkpoint is None:
        say("No checkpoint was saved: the run would begin again.")
    elif checkpoint is not None:
        new = "Saved:   " if checkpoint != before else "Left:    "
        say(f"{new} step {checkpoint.step}, {checkpoint.path}")
    if run_dir is not None:
        say(f"Go on:    sbatch {shlex.quote(str(run_dir / SCRIPT_NAME))}")
    return Cancelled(info.job_id, True, info.state, checkpoint)
