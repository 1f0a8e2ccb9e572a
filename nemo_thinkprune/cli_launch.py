"""The verbs of `thinkprune launch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemo_thinkprune.cli_options import Engine, EngineName, NemoRlRoot, OnCpu, Overrides, RecipeName, RunDir

launch_app = typer.Typer(help="Jobs on clusters.", no_args_is_help=True, rich_markup_mode=None)


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
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm's partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm's account.")] = None,
    container: Annotated[
        str | None,
        typer.Option("--container", metavar="IMAGE", help="Image for pyxis; default: no container."),
    ] = None,
    mounts: Annotated[
        list[str] | None,
        typer.Option("--mounts", metavar="/A:/B", help="Folder of the container; may be repeated."),
    ] = None,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="All rounds (prune) instead of one (train).")
    ] = False,
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
    max_failures: Annotated[
        int,
        typer.Option("--max-failures", help="Attempts in a row without a new checkpoint that end the job."),
    ] = 3,
    stall_factor: Annotated[
        float, typer.Option("--stall-factor", help="Median steps without progress that end an attempt.")
    ] = 10.0,
    stall_floor: Annotated[
        float, typer.Option("--stall-floor", metavar="S", help="But at least so long.")
    ] = 600.0,
    start_patience: Annotated[
        float, typer.Option("--start-patience", metavar="S", help="So long before an attempt's first step.")
    ] = 7200.0,
    scratch: Annotated[
        str, typer.Option("--scratch", metavar="DIR", help="Node-local folder, short.")
    ] = "/tmp",
    secrets: Annotated[
        Path | None,
        typer.Option("--secrets", metavar="FILE", help="WANDB_API_KEY=..., HF_TOKEN=...; mode 0600."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option("--setup", metavar="LINE", help="Shell before all else; may be repeated."),
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", metavar="--OPTION=X", help="For sbatch; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and do nothing.")] = False,
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
