"""The verbs of `thinkprune launch`."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nemo_thinkprune.cli_options import Engine, EngineName, NemoRlRoot, OnCpu, Overrides, RecipeName, RunDir

launch_app = typer.Typer(help="Jobs on clusters.", no_args_is_help=True, rich_markup_mode=None)


Partition = Annotated[str | None, typer.Option("--partition", help="Slurm's partition.")]
Account = Annotated[str | None, typer.Option("--account", help="Slurm's account.")]
Container = Annotated[
    str | None, typer.Option("--container", metavar="IMAGE", help="Image for pyxis; default: no container.")
]
Mounts = Annotated[
    list[str] | None,
    typer.Option("--mounts", metavar="/A:/B", help="Folder of the container; may be repeated."),
]
Rounds = Annotated[bool, typer.Option("--rounds", help="All rounds (prune) instead of one (train).")]
MaxFailures = Annotated[
    int, typer.Option("--max-failures", help="Attempts in a row without a new checkpoint that end the job.")
]
StallFactor = Annotated[
    float, typer.Option("--stall-factor", help="Median steps without progress that end an attempt.")
]
StallFloor = Annotated[float, typer.Option("--stall-floor", metavar="S", help="But at least so long.")]
StartPatience = Annotated[
    float, typer.Option("--start-patience", metavar="S", help="So long before an attempt's first step.")
]
Scratch = Annotated[str, typer.Option("--scratch", metavar="DIR", help="Node-local folder, short.")]
SecretsFile = Annotated[
    Path | None, typer.Option("--secrets", metavar="FILE", help="WANDB_API_KEY=..., HF_TOKEN=...; mode 0600.")
]
Setup = Annotated[
    list[str] | None, typer.Option("--setup", metavar="LINE", help="Shell before all else; may be repeated.")
]
Sbatch = Annotated[
    list[str] | None, typer.Option("--sbatch", metavar="--OPTION=X", help="For sbatch; may be repeated.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script and do nothing.")]


@launch_app.command("slurm")
def slurm(
    recipe: RecipeName,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Nodes; default: the recipe's.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", help="GPUs of a node; default: the recipe's.")
    ] = None,
    time: Annotated[
        str, typer.Option("--time", help="Time limit of an attempt, as Slurm writes it.")
    ] = "24:00:00",
    partition: Partition = None,
    account: Account = None,
    container: Container = None,
    mounts: Mounts = None,
    rounds: Rounds = False,
    run_dir: RunDir = None,
    engine: Engine = EngineName.NEMO_RL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
    name: Annotated[str | None, typer.Option("--job-name", help="Default: the recipe's name.")] = None,
    cpus_per_node: Annotated[
        int | None,
        typer.Option("--cpus-per-node", help="Share nodes, with so many CPUs; default: whole nodes."),
    ] = None,
    save_ahead: Annotated[
        int | None,
        typer.Option("--save-ahead", metavar="S", help="Seconds before the limit at which to save."),
    ] = None,
    max_failures: MaxFailures = 3,
    stall_factor: StallFactor = 10.0,
    stall_floor: StallFloor = 600.0,
    start_patience: StartPatience = 7200.0,
    scratch: Scratch = "/tmp",
    secrets: SecretsFile = None,
    setup: Setup = None,
    sbatch: Sbatch = None,
    dry_run: DryRun = False,
) -> None:
    """Submit a recipe to Slurm: survives lost nodes, time limits and stalls."""
    from nemo_thinkprune.launch.commands import Asked, launch_slurm
    from nemo_thinkprune.launch.slurm_job import SlurmJob, default_save_ahead

    job = SlurmJob(
        recipe=recipe, overrides=tuple(overrides or ()), verb="prune" if rounds else "train", engine=engine.value,
        on_cpu=on_cpu, run_dir=run_dir or Path(), work_dir=Path.cwd(), nodes=nodes or 1, gpus_per_node=0, time=time,
        name=name or Path(recipe).stem, partition=partition, account=account, container=container,
        mounts=tuple(mounts or ()), cpus_per_node=cpus_per_node, max_failures=max_failures,
        save_ahead_s=default_save_ahead(time) if save_ahead is None else save_ahead, stall_factor=stall_factor,
        stall_floor_s=stall_floor, start_patience_s=start_patience, scratch=scratch, setup=tuple(setup or ()),
        sbatch=tuple(sbatch or ()),
    )  # fmt: skip
    asked = Asked(
        nodes=nodes, gpus_per_node=gpus_per_node, run_dir=run_dir, nemo_rl_root=nemo_rl_root, secrets_file=secrets,
        job=job,
    )  # fmt: skip
    launch_slurm(asked, dry_run=dry_run, say=typer.echo)


@launch_app.command("ray")
def ray(
    recipe: RecipeName,
    address: Annotated[
        str, typer.Option("--address", metavar="URL", help="Dashboard of the cluster: http://HEAD:8265.")
    ],
    overrides: Overrides = None,
    rounds: Rounds = False,
    run_dir: RunDir = None,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
    max_failures: MaxFailures = 3,
    stall_factor: StallFactor = 10.0,
    stall_floor: StallFloor = 600.0,
    start_patience: StartPatience = 7200.0,
    save_time: Annotated[
        int, typer.Option("--save-time", metavar="S", help="Seconds that `ray job stop` leaves for saving.")
    ] = 1800,
    scratch: Scratch = "/dev/shm",
    secrets: SecretsFile = None,
    setup: Setup = None,
    dry_run: DryRun = False,
) -> None:
    """Submit a recipe to a Ray cluster that is there (KubeRay, ray up); attempts go on until it is done."""
    from nemo_thinkprune.launch.ray_job import RayJob, launch_ray
    from nemo_thinkprune.rounds.commands import default_run_dir

    job = RayJob(
        recipe=recipe, overrides=tuple(overrides or ()), verb="prune" if rounds else "train", address=address,
        run_dir=run_dir or default_run_dir(recipe), work_dir=Path.cwd(), on_cpu=on_cpu, nemo_rl_root=nemo_rl_root,
        max_failures=max_failures, stall_factor=stall_factor, stall_floor_s=stall_floor,
        start_patience_s=start_patience, save_s=save_time, scratch=scratch, secrets_file=secrets,
        setup=tuple(setup or ()),
    )  # fmt: skip
    launch_ray(job, dry_run=dry_run, say=typer.echo)


class Log(StrEnum):
    """Logs of an attempt."""

    DRIVER = "driver"
    RAY_HEAD = "ray-head"
    RAY_WORKERS = "ray-workers"
    RAY_READY = "ray-ready"
    WATCHDOG = "watchdog"
    STACKS = "stacks"
    JOB = "job"


JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or a run folder.")]


@launch_app.command("status")
def status(
    job: JobName,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """State, attempts and progress of a job, from Slurm and its run folder."""
    from nemo_thinkprune.launch.status import status as ask

    found = ask(job)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.text())


@launch_app.command("logs")
def logs(
    job: JobName,
    which: Annotated[Log, typer.Option("--which", help="Whose log.")] = Log.DRIVER,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Default: the newest.")] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Last lines to begin with.")] = 40,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on, over requeues, until it ends.")
    ] = False,
) -> None:
    """Show a log of a job."""
    from nemo_thinkprune.launch.logs import logs as show

    show(job, which=which.value, attempt=attempt, lines=lines, follow=follow, write=_write)


@launch_app.command("cancel")
def cancel(
    job: JobName,
    save: Annotated[bool, typer.Option("--save", help="Let it save first; it is not requeued.")] = False,
) -> None:
    """End a job, and say what it leaves."""
    from nemo_thinkprune.launch.cancel import cancel as end

    if not end(job, save=save, say=typer.echo).over:
        raise typer.Exit(1)


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="What is to run; default: nothing yet.")
    ] = None,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Look at so many nodes of Slurm.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=0, help="GPUs to ask for; default: the recipe's.")
    ] = None,
    time: Annotated[str | None, typer.Option("--time", help="Time limit that a job is to have.")] = None,
    partition: Partition = None,
    account: Account = None,
    container: Container = None,
    mounts: Mounts = None,
    rounds: Rounds = False,
    run_dir: RunDir = None,
    engine: Engine = EngineName.NEMO_RL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
    scratch: Scratch = "/tmp",
    secrets: SecretsFile = None,
    sbatch: Sbatch = None,
) -> None:
    """Look for what would break a run, before GPU hours are spent."""
    from nemo_thinkprune.doctor.commands import Request
    from nemo_thinkprune.doctor.commands import doctor as examine
    from nemo_thinkprune.rounds.commands import EngineChoice

    request = Request(
        recipe=recipe, overrides=tuple(overrides or ()), engine=EngineChoice(engine.value, nemo_rl_root, on_cpu),
        run_dir=run_dir, nodes=nodes, gpus_per_node=gpus_per_node, rounds=rounds, partition=partition,
        account=account, time=time, container=container, mounts=tuple(mounts or ()), scratch=scratch,
        secrets=secrets, sbatch=tuple(sbatch or ()),
    )  # fmt: skip
    if examine(request, say=partial(typer.echo, err=True)):
        raise typer.Exit(2)


def _write(text: str) -> None:
    typer.echo(text, nl=False)
