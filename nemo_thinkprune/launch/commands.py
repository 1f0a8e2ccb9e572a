"""What `thinkprune launch slurm` does: check all that can be checked here, write the script, hand it to Slurm."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_thinkprune.launch.render import render
from nemo_thinkprune.launch.secrets import Secrets, read_secrets
from nemo_thinkprune.launch.slurm import SCRIPT_NAME, slurm_version, submit, version_problem
from nemo_thinkprune.launch.slurm_job import SlurmJob, check_job
from nemo_thinkprune.launch.templates import launchers_folder
from nemo_thinkprune.recipe.check_files import check_files
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import find_recipe, load_recipe, recipes_folder
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.commands import default_run_dir
from nemo_thinkprune.rounds.length_reward_formula import length_reward_formula
from nemo_thinkprune.training.attempts import LOGS

CONTAINER_NEMO_RL = Path("/opt/nemo-rl")
# What steers NeMo-RL, Ray and the hub's library: written into the script, so that it says all that it needs.
CARRIED = (
    "HF_HOME", "HF_HUB_OFFLINE", "NEMO_RL_VENV_DIR", "NRL_MEGATRON_CHECKPOINT_DIR", "TORCH_CUDA_ARCH_LIST",
    "WANDB_BASE_URL",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line asks for; None is for what the recipe or the place decides."""

    nodes: int | None
    gpus_per_node: int | None
    run_dir: Path | None
    nemo_rl_root: Path | None
    secrets_file: Path | None
    job: SlurmJob


def launch_slurm(
    asked: Asked, *, dry_run: bool, say: Say, environment: Mapping[str, str] | None = None
) -> None:
    """Submit a recipe as a job, or print its script.

    Raises:
        UserError: a recipe, job or file of secrets that would fail on the cluster, or no Slurm here.
    """
    variables = os.environ if environment is None else environment
    job, recipe = complete_job(asked, variables)
    secrets = read_secrets(file=asked.secrets_file, environment=variables)
    job = replace(job, secrets_file=secrets.file)
    check_job(job)
    check_recipe(recipe, engine=job.engine, on_cpu=job.on_cpu)
    script = render(job)
    if shown := secrets.names_in(script):
        raise UserError(
            f"the value of {', '.join(shown)} stands in the job itself: take it out of the recipe's keys"
        )
    if dry_run:
        say(script.rstrip("\n"))
        return
    if reason := version_problem(slurm_version()):
        raise UserError(reason)
    for note in _absent_files(recipe, job):
        say(note)
    job_id = submit(write_script(job, script))
    _tell(job, job_id, secrets, say)


def complete_job(asked: Asked, environment: Mapping[str, str]) -> tuple[SlurmJob, Recipe]:
    """The job with everything that the recipe, the environment and the place decide, and its recipe.

    Raises:
        UserError: the recipe cannot be read.
    """
    job = asked.job
    recipe = load_recipe(job.recipe, job.overrides)
    length_reward_formula(recipe)
    nodes = recipe.cluster.num_nodes if asked.nodes is None else asked.nodes
    gpus = recipe.cluster.gpus_per_node if asked.gpus_per_node is None else asked.gpus_per_node
    layout = (f"cluster.num_nodes={nodes}", f"cluster.gpus_per_node={gpus}")
    overrides = (*job.overrides, *layout)
    job = replace(
        job,
        recipe=_lasting_name(job.recipe),
        overrides=overrides,
        nodes=nodes,
        gpus_per_node=gpus,
        checkpoint_dir=recipe.checkpointing.checkpoint_dir,
        without_gpus=job.on_cpu or (job.engine == "local" and recipe.thinkprune.runtime.device == "cpu"),
        run_dir=Path(os.path.abspath(asked.run_dir or default_run_dir(job.recipe))),
        nemo_rl_root=_nemo_rl_root(asked, environment),
        variables=tuple((name, environment[name]) for name in CARRIED if environment.get(name)),
        python=None if job.container else Path(sys.executable).parent,
        source=launchers_folder().parent if job.container else None,
    )
    return job, load_recipe(job.recipe, overrides)


def write_script(job: SlurmJob, script: str) -> Path:
    """Write RUN/launch.sbatch and make the folder of its logs, which sbatch does not.

    Raises:
        UserError: the run folder cannot be made.
    """
    try:
        (job.run_dir / LOGS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {job.run_dir} ({error.strerror}): give another --run-dir"
        ) from error
    path = job.run_dir / SCRIPT_NAME
    write_atomic(path, script)
    return path


def _lasting_name(recipe: str) -> str:
    """The name of a shipped recipe, or the absolute path of a file."""
    found = find_recipe(recipe)
    return recipe if found.parent == recipes_folder() and "/" not in recipe else str(found.resolve())


def _nemo_rl_root(asked: Asked, environment: Mapping[str, str]) -> Path | None:
    if asked.job.engine != "nemo-rl":
        return None
    if asked.nemo_rl_root is not None:
        return Path(os.path.abspath(asked.nemo_rl_root))
    if asked.job.container:
        return CONTAINER_NEMO_RL
    given = environment.get("NEMO_RL_ROOT")
    return Path(os.path.abspath(given)) if given else None


def _absent_files(recipe: Recipe, job: SlurmJob) -> Sequence[str]:
    """What is not on this machine may be on the nodes: worth a word, no reason to refuse."""
    try:
        check_files(recipe, on_cpu=job.on_cpu)
    except UserError as error:
        return [
            f"note: seen from this machine {error}",
            "  the job ends at once, with code 2, if its nodes see none either",
        ]
    return []


def _tell(job: SlurmJob, job_id: int, secrets: Secrets, say: Say) -> None:
    say(f"Job:      {job_id}, {job.nodes} nodes, {job.time}")
    say(f"Script:   {job.run_dir / SCRIPT_NAME}")
    say(f"Log:      {job.run_dir / LOGS / f'job_{job_id}.log'}")
    if secrets.found:
        say(f"Secrets:  {secrets.describe()}")
    say(f"Next:     thinkprune launch status {job_id}")
    say(f"          thinkprune launch logs {job_id} --follow")
    say(f"          thinkprune launch cancel {job_id} --save")
