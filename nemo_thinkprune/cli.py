"""The command `thinkprune`: verbs without logic.  Each parses, calls one function and prints.

Exit codes: 0 done, 1 the job failed, 2 something the user can correct, 75 stopped as asked with everything
saved (EX_TEMPFAIL, the code that schedulers requeue on), 130 interrupted.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from nemo_thinkprune.cli_launch import doctor, launch_app
from nemo_thinkprune.cli_measure import bench_app, plan
from nemo_thinkprune.cli_options import Engine, EngineName, NemoRlRoot, OnCpu, Overrides, RecipeName, RunDir
from nemo_thinkprune.recipe.errors import UserError

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130


class Verbs(typer.core.TyperGroup):
    """The verbs; expected errors become messages and exit codes, a defect keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _complaint("interrupted", EXIT_INTERRUPTED) from None
        except UserError as error:
            raise _complaint(f"error: {error}", EXIT_USAGE) from None
        except RuntimeError as error:
            code = _job_exit_code(error)
            if code is None:
                raise
            raise _complaint(str(error), code) from None


def _complaint(message: str, code: int) -> typer.Exit:
    typer.echo(message, err=True)
    return typer.Exit(code)


def _job_exit_code(error: RuntimeError) -> int | None:
    """Return the exit code of a job that was stopped or failed; None for any other error."""
    from nemo_thinkprune.rounds.lane import LaneFailed
    from nemo_thinkprune.training.supervisor import JobFailed, JobStopped

    if isinstance(error, JobStopped):
        return EXIT_STOPPED
    return EXIT_FAILED if isinstance(error, JobFailed | LaneFailed) else None


app = typer.Typer(
    cls=Verbs,
    help="Train reasoning models to think shorter without thinking worse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(launch_app, name="launch")
app.command("doctor")(doctor)
app.command("plan")(plan)
app.add_typer(bench_app, name="bench")


class Truncation(StrEnum):
    """What a response that was cut at the limit earns."""

    ZERO = "zero"
    SCORE_CUT_TEXT = "score_cut_text"


class Family(StrEnum):
    """Prompt families."""

    DEEPSEEK = "deepseek"
    QWEN = "qwen"
    PLAIN = "plain"


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    engine: Engine = EngineName.LOCAL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
) -> None:
    """Train one round; continues a run that was stopped."""
    from nemo_thinkprune.rounds import commands

    choice = commands.EngineChoice(engine.value, nemo_rl_root, on_cpu)
    commands.train(recipe, overrides or [], run_dir, say=typer.echo, engine=choice)


@app.command()
def prune(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    engine: Engine = EngineName.LOCAL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
) -> None:
    """Run the rounds of thinkprune.limits, each from the checkpoint that the paper's rule selects."""
    from nemo_thinkprune.rounds import commands

    choice = commands.EngineChoice(engine.value, nemo_rl_root, on_cpu)
    commands.prune(recipe, overrides or [], run_dir, say=typer.echo, engine=choice)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="HF folder, hub id or checkpoint step_N.")],
    data: Annotated[str, typer.Option("--data", help="Problems: JSONL or Parquet file, or hub id.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Response tokens.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Responses to each problem.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; 0: most likely token.")
    ] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus.")] = 0.95,
    top_k: Annotated[int | None, typer.Option(min=1, help="Most likely tokens to choose from.")] = None,
    within: Annotated[
        list[int] | None, typer.Option(min=1, help="Also accuracy within so many tokens; may be repeated.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe for prompts and layout.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File of the summary (.json).")] = None,
) -> None:
    """Measure accuracy and length of any model folder or checkpoint."""
    from nemo_thinkprune.rounds import commands

    table = commands.evaluate(
        model, overrides or [], data=data, limit=limit, samples=samples, temperature=temperature, top_p=top_p,
        top_k=top_k, within=within or [], recipe=recipe, out=out,
    )  # fmt: skip
    typer.echo(table)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Rows with response, gold, finished.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default FILE itself.")] = None,
    truncation: Annotated[Truncation, typer.Option(help="What a cut response earns.")] = Truncation.ZERO,
    workers: Annotated[int, typer.Option(min=1, help="Scoring processes.")] = 2,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for one answer.")] = 5.0,
    memory_mb: Annotated[int, typer.Option(min=256, help="MiB for one process.")] = 1024,
) -> None:
    """Score the responses in a file with the training reward."""
    from nemo_thinkprune.rounds import commands

    done = commands.score(
        file, out, truncation=truncation.value, workers=workers, deadline_s=deadline, memory_mb=memory_mb
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(done.reasons.items()))
    typer.echo(f"{done.path}: {done.rows} rows, mean reward {done.reward_mean:.4f} ({reasons})")


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    engine: Engine = EngineName.LOCAL,
    on_cpu: OnCpu = False,
    nemo_rl_root: NemoRlRoot = None,
) -> None:
    """Check a recipe and say what it will do: the loss, the steps, the layout."""
    from nemo_thinkprune.rounds import commands

    choice = commands.EngineChoice(engine.value, nemo_rl_root, on_cpu)
    typer.echo(commands.check(recipe, overrides or [], engine=choice))


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]) -> None:
    """Write the self-contained page report.html of a run."""
    from nemo_thinkprune.reporting.report import write_report

    typer.echo(write_report(run))


@app.command()
def warmup(recipe: RecipeName, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Teach a small model to reason by supervised training (thinkprune.warmup)."""
    from nemo_thinkprune.rounds import commands

    typer.echo(commands.warmup(recipe, overrides or [], run_dir))


@app.command()
def quickstart(
    overrides: Overrides = None,
    run_dir: RunDir = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="A YAML file, or a name in recipes/.")
    ] = "quickstart",
) -> None:
    """Warm up a tiny model, prune it in three rounds and show the result: minutes on two CPU cores."""
    from nemo_thinkprune.rounds import commands

    commands.quickstart(recipe, overrides or [], run_dir, say=typer.echo)


@data_app.command("prepare")
def prepare(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("data"),
    source: Annotated[
        str | None,
        typer.Option("--from", help="Training data: file, folder or hub id; default Eurus-2-RL."),
    ] = None,
    family: Annotated[Family, typer.Option(help="Prompt family of the example.")] = Family.DEEPSEEK,
    aime: Annotated[
        str | None,
        typer.Option("--aime", help="AIME22-24: the released test_aime.parquet, or a hub id."),
    ] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="More evaluation data; may be given several times.")
    ] = None,
) -> None:
    """Write the training and evaluation problems, with counts and checksums."""
    from nemo_thinkprune.data.prepare import aime_missing
    from nemo_thinkprune.data.prepare import prepare as run

    for file in run(out=out, source=source, family=family.value, eval_files=evaluation or [], aime=aime):
        rows = "" if file.rows is None else f"{file.rows} rows  "
        typer.echo(f"{file.path}  {rows}sha256 {file.sha256}")
        for note in file.notes:
            typer.echo(f"  {note}")
    if aime is None:
        typer.echo(aime_missing(out, source))


def main() -> None:
    """Run the command line and exit with its code."""
    app(prog_name="thinkprune")
