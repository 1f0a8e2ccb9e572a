"""Which job and which run folder a user means by a job id or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.launch import ray_commands
from nemo_thinkprune.launch.events import JobFolder, in_order, job_ids, slurm_id
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

    `job_id` is Slurm's number as text or a submission id of Ray, None for a run folder without jobs. `info` is None
    for a job of Ray, and where Slurm does not know the job (`forgotten`) or is not here; `silence` then says why.
    `earlier` are the run folder's other jobs.
    """

    job_id: str | None
    run_dir: Path | None
    info: JobInfo | None
    silence: str | None = None
    earlier: tuple[str, ...] = ()
    forgotten: bool = False

    @property
    def folder(self) -> JobFolder | None:
        """The job's own folder in its run folder."""
        if self.job_id is None or self.run_dir is None:
            return None
        return JobFolder(self.run_dir, self.job_id)

    @property
    def of_ray(self) -> bool:
        """Whether it is a job of a Ray cluster, of which Slurm knows nothing."""
        return self.job_id is not None and slurm_id(self.job_id) is None


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
    others = [name for name in job_ids(info.run_dir) if name != str(job_id)] if info.run_dir else []
    return Found(str(job_id), info.run_dir, info, earlier=tuple(others))


def _in_folder(run_dir: Path) -> Found:
    if not is_folder(run_dir):
        raise UserError(f"{run_dir} is neither a job's id nor a run folder")
    run_dir = run_dir.resolve()
    recorded, listed, silence = job_ids(run_dir), [], None
    try:
        listed = jobs_of(run_dir)
    except SlurmUnavailable as error:
        silence = str(error)
    known = in_order(run_dir, {*recorded, *map(str, listed)})
    if not known:
        scripts = [name for name in (SCRIPT_NAME, ray_commands.SCRIPT_NAME) if (run_dir / name).exists()]
        if not scripts and not (run_dir / "logs").is_dir():
            raise UserError(f"{run_dir} holds no run: give the run folder of a job, or the job's id")
        return Found(None, run_dir, None, None if scripts == [ray_commands.SCRIPT_NAME] else silence)
    job_id, earlier = known[-1], tuple(known[:-1])
    number = slurm_id(job_id)
    if number is None:
        return Found(job_id, run_dir, None, earlier=earlier)
    try:
        info = job_info(number) if silence is None else None
    except SlurmUnavailable as error:
        info, silence = None, str(error)
    forgotten = info is None and silence is None
    if forgotten:
        silence = f"Slurm does not know job {job_id} any more: what follows is from the run folder"
    return Found(job_id, run_dir, info, silence, earlier, forgotten)
