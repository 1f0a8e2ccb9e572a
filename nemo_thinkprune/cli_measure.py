"""The verbs that measure: `plan` before a run, `bench` during one, `bench compare` after it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from nemo_thinkprune.cli_options import Engine, EngineName, NemoRlRoot, OnCpu, Overrides, RecipeName

_PEAK_HELP = "Dense peak of one device in TFLOP/s at the recipe's precision, where the device's is not known."

_FIXED_HELP = "Let every response run to the limit, so that two measurements have the same work."


class GpuName(StrEnum):
    """GPUs that a plan can be made for."""

    A100_80G = "a100-80g"
    H100_80G = "h100-80g"
    H200_141G = "h200-141g"
    B200_192G = "b200-192g"


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[GpuName, typer.Option("--gpu", help="The GPU of the cluster.")] = GpuName.H100_80G,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="FOLDER", help="Folder of the model's config.json.")
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="Build every rank's module without memory and compare the counts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan memory by phase and pipeline stage, disk, and step time; exit code 1 when it does not fit."""
    from nemo_thinkprune.plan import commands

    code = commands.plan(
        recipe, overrides or [], gpu=gpu.value, model=model, build=build, as_json=as_json, say=typer.echo
    )
    raise typer.Exit(code)


class _RecipeOrCompare(typer.core.TyperGroup):
    """`bench RECIPE` is `bench run RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    cls=_RecipeOrCompare,
    help="Measure real steps: bench RECIPE [KEY=VALUE]...; or compare two measurements: bench compare A.json B.json.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench_app.command("run")
def bench(
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that are measured.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps before them that are not.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the result; default bench/RECIPE.")
    ] = None,
    engine: Engine = EngineName.LOCAL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", min=0.001, metavar="X", help=_PEAK_HELP)
    ] = None,
    fixed_length: Annotated[bool, typer.Option("--fixed-length", help=_FIXED_HELP)] = False,
) -> None:
    """Run real steps of a recipe and report medians by phase, tokens per second, memory and MFU."""
    from nemo_thinkprune.bench import commands

    code = commands.bench(
        recipe,
        overrides or [],
        steps=steps,
        warmup=warmup,
        out=out,
        engine=engine.value,
        on_cpu=on_cpu,
        nemo_rl_root=nemo_rl_root,
        peak_tflops=peak_tflops,
        fixed_length=fixed_length,
        say=typer.echo,
    )
    raise typer.Exit(code)


@bench_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="What is compared with.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="What is compared.")],
) -> None:
    """Ratios of B to A with their spread; refuses measurements of different work."""
    from nemo_thinkprune.bench import commands

    commands.compare(first, second, say=typer.echo)
