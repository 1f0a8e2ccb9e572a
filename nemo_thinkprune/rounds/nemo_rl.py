"""NeMo-RL as the rounds use it: training is one supervised process that drives it, evaluation the local engine's."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from nemo_thinkprune.cluster.find import SUPPORTED, NemoRL, copy_packages, find_nemo_rl, python_path
from nemo_thinkprune.cluster.resume import refuse_foreign
from nemo_thinkprune.recipe.check_files import check_files
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.plan import Engine
from nemo_thinkprune.training.console import run_with_progress
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.supervisor import run_job

DRIVER = "nemo_thinkprune.cluster.driver:run"
GPU_THREADS = "16"
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
PACKAGES = "python"
"""Folder of an attempt from which NeMo-RL's processes import this program."""


def nemo_rl_engine(*, root: Path | None, on_cpu: bool) -> Engine:
    """Training on NeMo-RL with progress on the terminal; `on_cpu` with the local engine's policy as its workers.

    On a cluster it fetches the weights of a hub model itself and does not evaluate: what a round hands on is
    chosen by its own validation, and a result is measured by `thinkprune eval`.

    Raises:
        UserError: NeMo-RL is not there (see `cluster.find.find_nemo_rl`), or not the release that CPU workers serve.
    """
    found = find_nemo_rl(root)
    minor = SUPPORTED.removeprefix("v").rpartition(".")[0]
    if on_cpu and not found.version.startswith(f"{minor}."):
        raise UserError(
            f"--on-cpu needs NeMo-RL {SUPPORTED}, and {found.root} is {found.version} or a snapshot between two "
            f"releases: give --nemo-rl-root the checkout of {SUPPORTED}"
        )
    return Engine(
        run=partial(run_on_nemo_rl, found=found, on_cpu=on_cpu),
        evaluates=on_cpu,
        weights=on_cpu,
        check=partial(check_for_nemo_rl, on_cpu=on_cpu),
    )


def check_for_nemo_rl(recipe: Recipe, *, on_cpu: bool) -> None:
    """Refuse a recipe that NeMo-RL cannot run, or whose files are not there.

    Raises:
        UserError: listing every problem.
    """
    check_recipe(recipe, engine="nemo-rl", on_cpu=on_cpu)
    check_files(recipe, on_cpu=on_cpu)


def run_on_nemo_rl(job: Job, *, found: NemoRL, on_cpu: bool) -> None:
    """Run a job with progress: training by the driver of the NeMo-RL `found`; all else on this machine."""
    if job.kind != "train":
        run_with_progress(job)
        return
    if not on_cpu and ARCHITECTURES not in os.environ:  # NeMo-RL itself asks minutes later
        raise UserError(
            f"{ARCHITECTURES} is not set, which NeMo-RL needs for Megatron: inside its container it is; elsewhere "
            f"export {ARCHITECTURES}=9.0 for H100, 10.0 for B200"
        )
    # before the folder is said to be NeMo-RL's
    refuse_foreign(job.run_dir / job.recipe.checkpointing.checkpoint_dir)
    environment = partial(driver_environment, found=found, on_cpu=on_cpu)
    drive = partial(run_job, entry=DRIVER, processes=1, environment=environment)
    run_with_progress(replace(job, engine="nemo-rl", on_cpu=on_cpu), run=drive)


def driver_environment(attempt: Path, *, found: NemoRL, on_cpu: bool) -> dict[str, str]:
    """What the driver of an attempt, and through it every process of NeMo-RL, has in its environment.

    Raises:
        UserError: this program cannot be copied into the attempt's folder.
    """
    environment = {"PYTHONPATH": python_path(found, copy_packages(attempt / PACKAGES))}
    if on_cpu:  # NeMo-RL asks for it without GPUs too
        environment[ARCHITECTURES] = os.environ.get(ARCHITECTURES, "9.0")
    else:  # what one rank of a CPU gets is too little for the processes that feed GPUs
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", GPU_THREADS)
    return environment
