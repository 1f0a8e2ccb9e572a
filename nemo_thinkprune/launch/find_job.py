"""Which job and which run folder a user means by a job id or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.launch.events import JobFolder, job_ids
from nemo_thinkprune.launch.slurm import (
    SCRIPT_NAME,
    JobInfo,
    SlurmUnavailable,
    job_info,
    jobs_of,
    parse_job_id,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_folder


@dataclass(frozen=True, slots=True)
class Found:
    """A job and its run folder.

    `job_id` is None for a run folder without jobs, `info` None where Slurm does not know the job (`forgotten`) or
    is not here; `silence` then says why. `earlier` are the run folder's other jobs.
    """

    job_id: int | None
    run_dir: Path | None
    info: JobInfo | None
    silence: str | None = None
    earlier: tuple[int, ...] = ()
    forgotten: bool = False

    @property
    def folder(self) -> JobFolder | None:
        """The job's own folder in its run folder."""
        if self.job_id is None or self.run_dir is None:
            return None
        return JobFolder(self.run_dir, self.job_id)


def find_job(job: str) -> Found:
    """Find the job of an id, or the newest one of a run folder.

    Raises:
        SlurmUnavailable: an id was given, and Slurm is not here.
        UserError: there is no such job or folder; the message says what to give instead.
    """
    job_id = parse_job_id(job)
    if job_id is None:
        return _in_folder(Path(job))
    try:
        info = job_info(job_id)
    except SlurmUnavailable as error:
        raise SlurmUnavailable(f"{error}; or give the run folder in place of the job's id") from error
    if info is None:
        raise UserError(
            f"Slurm does not know job {job_id} (any more): give its run folder, where its records are"
        )
    others = tuple(number for number in job_ids(info.run_dir) if number != job_id) if info.run_dir else ()
    return Found(job_id, info.run_dir, info, earlier=others)


def _in_folder(run_dir: Path) -> Found:
    if not is_folder(run_dir):
        raise UserError(f"{run_dir} is neither a job's id nor a run folder")
    run_dir = run_dir.resolve()
    recorded, listed, silence = job_ids(run_dir), [], None
    try:
        listed = jobs_of(run_dir)
    except SlurmUnavailable as error:
        silence = str(error)
    known = sorted({*recorded, *listed})
    if not known:
        if not (run_dir / SCRIPT_NAME).exists() and not (run_dir / "logs").is_dir():
            raise UserError(f"{run_dir} holds no run: give the run folder of a job, or the job's id")
        return Found(None, run_dir, None, silence)
    job_id = known[-1]
    try:
        info = job_info(job_id) if silence is None else None
    except SlurmUnavailable as error:
        info, silence = None, str(error)
    forgotten = info is None and silence is None
    if forgotten:
        silence = f"Slurm does not know job {job_id} any more: what follows is from the run folder"
    return Found(job_id, run_dir, info, silence, tuple(known[:-1]), forgotten)
