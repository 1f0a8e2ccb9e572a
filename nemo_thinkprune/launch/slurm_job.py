"""What a job on Slurm is: typed, checked, and nothing done yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_thinkprune.recipe.errors import UserError

GCS_PORTS = range(28100, 32700)
"""Where a job's Ray listens: below the ephemeral ports (32768 and up on Linux), above those that NeMo-RL takes."""

GCS_STRIDE = 7
"""How far apart the ports of one job and the next are: room for those that take the next one."""

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux (sun_path without its end)."""

RAY_SOCKET = (
    "/thinkprune-9999999999-999/ray/session_2026-01-01_00-00-00_000000_9999999/sockets/plasma_store.9"
)
"""What a job adds to its scratch folder for the longest of Ray's sockets."""

SCRATCH_ROOM = SOCKET_BYTES - len(RAY_SOCKET)
"""Longest path of a scratch folder, in bytes."""

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """A run of a recipe as a job.

    Attributes:
        recipe: file (absolute) or name of a recipe; `overrides` are its a.b=c.
        verb: "train" for one round, "prune" for all.
        run_dir: run folder, absolute, on a file system that all nodes share; so is `work_dir`, where it starts.
        gpus_per_node: ranks of a node, each with a GPU unless `without_gpus`; what Ray is told either way.
        time: Slurm's form of it (D-HH:MM:SS and shorter ones).
        save_ahead_s: seconds before the time limit at which the trainer is asked to save.
        cpus_per_node: processors of a node that is shared with other jobs; None: whole nodes.
        max_failures: attempts in a row that may end without a new checkpoint.
        stall_factor: times the median step without progress that end an attempt, but not below `stall_floor_s`;
            before its first step an attempt has `start_patience_s`.
        first_step_s: seconds that the nodes have for their first step, and `ray_deadline_s` for joining Ray.
        checkpoint_dir: the recipe's name for its folder of checkpoints.
        python: folder with the programs `python` and `ray`; None in a container.
        source: folder that is put on PYTHONPATH; None where the package is installed.
        variables: exported by the script, by name.
        setup: lines of shell run before anything else, such as "module load cuda".
        sbatch: further options of sbatch, such as "--qos=high".
    """

    recipe: str
    run_dir: Path
    work_dir: Path
    nodes: int
    gpus_per_node: int
    time: str
    name: str
    overrides: tuple[str, ...] = ()
    verb: Literal["train", "prune"] = "train"
    engine: Literal["nemo-rl", "local"] = "nemo-rl"
    on_cpu: bool = False
    without_gpus: bool = False
    nemo_rl_root: Path | None = None
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    mounts: tuple[str, ...] = ()
    cpus_per_node: int | None = None
    save_ahead_s: int = 1800
    max_failures: int = 3
    stall_factor: float = 10.0
    stall_floor_s: float = 600.0
    start_patience_s: float = 7200.0
    first_step_s: int = 900
    ray_deadline_s: float = 900.0
    scratch: str = "/tmp"
    checkpoint_dir: str = "checkpoints"
    secrets_file: Path | None = None
    python: Path | None = None
    source: Path | None = None
    variables: tuple[tuple[str, str], ...] = ()
    setup: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()

    @property
    def ray(self) -> bool:
        """Whether the job brings Ray up; the local engine needs none."""
        return self.engine == "nemo-rl"


def gcs_port(job_id: int) -> int:
    """The port that a job tries first for its Ray."""
    return GCS_PORTS[job_id * GCS_STRIDE % len(GCS_PORTS)]


def check_job(job: SlurmJob) -> None:
    """Refuse what would fail on the cluster.

    Raises:
        UserError: listing every problem.
    """
    problems = [*_numbers(job), *_paths(job), *_texts(job)]
    if job.engine == "local" and job.nodes > 1:
        problems.append(f"--nodes {job.nodes}: the local engine trains on one node; use --engine nemo-rl")
    if problems:
        raise UserError("this job cannot be launched:\n" + "\n".join(f"  {problem}" for problem in problems))


def own_folders(job: SlurmJob) -> list[Path]:
    """The shared folders that a container of the job needs, without those that its image has."""
    recipe = Path(job.recipe)
    folders = [job.run_dir, job.work_dir, job.source, recipe.parent if recipe.is_absolute() else None]
    return [folder for folder in folders if folder is not None]


def seconds(time: str) -> int | None:
    """Seconds of a time limit in Slurm's forms (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S); None if it is none of them."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (None if part is None else int(part) for part in parts)
    assert first is not None
    if days is not None:
        return int(days) * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600 + (second or 0) * 60 + third
    return first * 60 + (second or 0)


def default_save_ahead(time: str) -> int:
    """Seconds before the limit at which to save: half an hour, in a short job a quarter of it."""
    return min(1800, (seconds(time) or 7200) // 4)


def _numbers(job: SlurmJob) -> list[str]:
    at_least = {
        "--nodes": (job.nodes, 1),
        "--gpus-per-node": (job.gpus_per_node, 0),
        "--cpus-per-node": (job.cpus_per_node or 1, 1),
        "--max-failures": (job.max_failures, 1),
        "--stall-factor": (job.stall_factor, 1),
        "--stall-floor": (job.stall_floor_s, 1),
        "--start-patience": (job.start_patience_s, 1),
        "--save-ahead": (job.save_ahead_s, 1),
    }
    found = [f"{name} {value}: at least {low}" for name, (value, low) in at_least.items() if not value >= low]
    limit = seconds(job.time)
    if limit is None:
        found.append(f"--time {job.time!r} is no time of Slurm's: write 24:00:00, 2-00:00:00 or 90 (minutes)")
    elif job.save_ahead_s >= limit:
        found.append(f"--save-ahead {job.save_ahead_s} s is not within --time {job.time}")
    return found


def _paths(job: SlurmJob) -> list[str]:
    found = []
    if not re.fullmatch(r"/[\w./+-]*", job.scratch):
        found.append(
            f"--scratch {job.scratch!r}: name a folder from the root, of letters, digits and ._+-, as /tmp"
        )
    if job.ray and len(job.scratch.encode()) > SCRATCH_ROOM:
        found.append(
            f"--scratch {job.scratch}: at most {SCRATCH_ROOM} bytes, or Ray's sockets have no room: use /tmp"
        )
    if job.mounts and job.container is None:
        found.append("--mounts belongs to --container: add that, or leave --mounts away")
    found += [
        f"--mounts {mount!r}: write /outside:/inside, with nothing that a shell or pyxis reads in its own way"
        for mount in job.mounts
        if not re.fullmatch(r"/[^\s,:\"'$`\\]*:/[^\s,\"'$`\\]*", mount)
    ]
    if job.container is not None:
        found += [
            f"{folder}: a container cannot be given a folder with a space, a quote or one of , : $ \\ in its name"
            for folder in own_folders(job)
            if re.search(r"[\s,:\"'$`\\]", str(folder))
        ]
    for path in (job.run_dir, job.work_dir):
        if re.search(r"[\s%\\]", str(path)):  # sbatch reads them in its own way
            found.append(f"{path}: a folder with a space, a % or a backslash in its name confuses sbatch")
    return found


def _texts(job: SlurmJob) -> list[str]:
    lines = {
        "--sbatch": job.sbatch, "--setup": job.setup, "KEY=VALUE": job.overrides, "the recipe": (job.recipe,),
        "--container": (job.container or "x",),
    }  # fmt: skip
    found = [
        f"{name} {text!r}: one line each" for name, texts in lines.items() for text in texts if "\n" in text
    ]
    found += [
        f"--sbatch {text!r}: an option as --qos=high, which starts with two dashes"
        for text in job.sbatch
        if not text.startswith("--")
    ]
    plain = {"--partition": job.partition, "--account": job.account, "--job-name": job.name}
    found += [
        f"{name} {text!r}: letters, digits and ._-, only"
        for name, text in plain.items()
        if text is not None and not re.fullmatch(r"[\w.,@+-]+", text)
    ]
    return found
