"""The local engine as the rounds use it: one job in the foreground, a second beside it where cores allow."""

from __future__ import annotations

import os

from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.plan import Engine
from nemo_thinkprune.training.accelerators import gpus_visible
from nemo_thinkprune.training.console import run_with_progress
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.supervisor import run_job


def local_engine(recipe: Recipe) -> Engine:
    """Jobs on this machine, with progress on the terminal."""
    return Engine(run=run_with_progress, beside=run_quietly if cores_allow_two(recipe) else None)


def run_quietly(job: Job) -> None:
    """Run a job without progress."""
    run_job(job)


def cores_allow_two(recipe: Recipe) -> bool:
    """Whether two jobs fit on the CPU cores this process may use; never on GPUs, which one job fills."""
    runtime = recipe.thinkprune.runtime
    if runtime.device == "cuda" or (runtime.device == "auto" and gpus_visible()):
        return False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores >= 2 * recipe.world_size * runtime.threads_per_rank
