"""The command `thinkprune-ckpt`: verbs without logic.  Each parses, calls one function and prints.

Exit codes: 0 done (or equal), 1 different, 2 something the user can correct, 70 a defect of this program (with
a traceback), 130 interrupted, 141 nobody reads the output any more. So 1 never means anything but different.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from checkpoints_tools.errors import CheckpointError, printable

EXIT_DIFFERENT, EXIT_USAGE, EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_UNREAD = 1, 2, 70, 130, 141


class Verbs(typer.core.TyperGroup):
    """The verbs; expected errors become messages and exit codes, a defect keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; run the same command again to go on", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except (CheckpointError, OSError, MemoryError) as error:
            raise typer.Exit(_explained(error)) from None


def _explained(error: Exception) -> int:
    """Say what went wrong in one message; gives the exit code."""
    if isinstance(error, OSError):
        _drop_output()  # what could not be printed would be tried again at the end
    if isinstance(error, BrokenPipeError):
        return EXIT_UNREAD
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or 'reading or writing'}: {error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = "out of memory; free some, or raise the limit (ulimit -v)"
    typer.echo(f"error: {printable(text)}", err=True)
    return EXIT_USAGE


def _drop_output() -> None:
    """Leave standard output without what it still holds, if it cannot be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _path(value: Path | None) -> Path | None:
    """A path as the user means it. Raises CheckpointError where the system refuses even to look there."""
    if value is None:
        return None
    try:
        # ~ is only asked for here: of a user who is not there, it is a name like any other.
        path = Path(os.path.expanduser(value))
        path = path.absolute() if str(path).startswith("~") else path
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise CheckpointError(f"{str(value)[:300]} cannot be used: {error.strerror}") from None
    return path


app = typer.Typer(
    cls=Verbs,
    help="Convert between Megatron distributed checkpoints and Hugging Face, and prove that they are equal.",
    epilog="Exit codes: 0 done, or the same; 1 different; 2 something to correct; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plan_app = typer.Typer(
    help="Say what a conversion would write; touch nothing.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(plan_app, name="plan")


class DTypeName(StrEnum):
    """Types of the written tensors."""

    KEEP = "keep"
    BF16 = "bf16"
    FP32 = "fp32"


HFArgument = Annotated[
    Path, typer.Argument(metavar="HF_DIR", help="Hugging Face model folder.", callback=_path)
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CKPT",
        help="step_N folder, iter_* folder, or a folder with latest_checkpointed_iteration.txt.",
        callback=_path,
    ),
]
ModelArgument = Annotated[
    Path, typer.Argument(callback=_path, metavar="MODEL", help="Hugging Face folder or checkpoint.")
]
OutArgument = Annotated[
    Path, typer.Argument(callback=_path, metavar="OUT", help="Folder to make; must not exist, or be empty.")
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        callback=_path,
        metavar="HF_DIR",
        help="Hugging Face folder of the base model, for a checkpoint without config.json.",
    ),
]
DTypeOption = Annotated[
    DTypeName, typer.Option("--dtype", help="Type of the written tensors; keep: as they are stored.")
]
ChunkTPOption = Annotated[
    int, typer.Option("--chunk-tp", metavar="N", min=1, help="Cut chunks for N tensor parallel loaders.")
]
ShardOption = Annotated[
    str,
    typer.Option("--max-shard-size", metavar="SIZE", help="Largest safetensors file, such as 5GB or 900MB."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=32,
        help="Threads that read and write; by default the cores, 2 to 8.",
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify", help="Read the output back, compare it with the source, write a manifest."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]?I?B?)", text.strip().upper())
    if match is None or match[2] not in _UNITS or not float(match[1]) * _UNITS[match[2]] >= 1:
        raise typer.BadParameter(
            f"{text[:40]!r} is not a size such as 5GB or 900MB", param_hint="--max-shard-size"
        )
    return int(float(match[1]) * _UNITS[match[2]])


@app.command("import")
def import_(
    hf_dir: HFArgument,
    out: OutArgument,
    chunk_tp: ChunkTPOption = 1,
    dtype: DTypeOption = DTypeName.KEEP,
    threads: ThreadsOption = None,
    verify: VerifyOption = True,
) -> None:
    """Hugging Face to Megatron: a checkpoint for any TP x PP x DP."""
    from checkpoints_tools import convert, report

    result = convert.import_model(
        hf_dir, out, chunk_tp=chunk_tp, dtype=dtype.value, threads=threads, verify=verify
    )
    report.converted(result)


@app.command("export")
def export(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    base: BaseOption = None,
    dtype: DTypeOption = DTypeName.KEEP,
    max_shard_size: ShardOption = "5GB",
    threads: ThreadsOption = None,
    verify: VerifyOption = True,
) -> None:
    """Megatron to Hugging Face: safetensors, config, tokenizer."""
    from checkpoints_tools import convert, report

    result = convert.export_model(
        checkpoint,
        out,
        base=base,
        dtype=dtype.value,
        max_shard_bytes=_bytes(max_shard_size),
        threads=threads,
        verify=verify,
    )
    report.converted(result)


@app.command("reshard")
def reshard(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    chunk_tp: ChunkTPOption,
    base: BaseOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = True,
) -> None:
    """Megatron to Megatron: other chunks, for N loaders."""
    from checkpoints_tools import convert, report

    report.converted(
        convert.reshard(checkpoint, out, chunk_tp=chunk_tp, base=base, threads=threads, verify=verify)
    )


@app.command("verify")
def verify(
    a: Annotated[
        Path, typer.Argument(callback=_path, metavar="A", help="Hugging Face folder or checkpoint.")
    ],
    b: Annotated[
        Path | None, typer.Argument(callback=_path, metavar="B", help="The one to compare it with.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(callback=_path, metavar="FILE", help="Compare A with this manifest instead of with B."),
    ] = None,
    base: BaseOption = None,
    dtype: Annotated[
        DTypeName, typer.Option("--dtype", help="Convert what is compared to this type first.")
    ] = DTypeName.KEEP,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do two folders hold the same model? Exit code 0 or 1."""
    from checkpoints_tools import report

    if (b is None) == (manifest is None):
        raise typer.BadParameter("give B, or --manifest FILE, and not both", param_hint="B")
    result = report.verified(a, b, manifest, base=base, dtype=dtype.value, threads=threads, as_json=as_json)
    raise typer.Exit(result.exit_code)


@app.command("inspect")
def inspect(
    path: ModelArgument,
    base: BaseOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what lies in a checkpoint or model folder."""
    from checkpoints_tools import report

    report.inspected(path, base=base, tensors=tensors, as_json=as_json)


@app.command("release")
def release(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path,
        typer.Argument(
            callback=_path, metavar="OUT", help="Folder to make, or an earlier release of CKPT to go on with."
        ),
    ],
    base: BaseOption = None,
    dtype: DTypeOption = DTypeName.KEEP,
    base_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id of the base model, such as Qwen/QwQ-32B.")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the base model, as on the hub.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the model card.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload to this hub repository, with the token in the environment variable HF_TOKEN.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    max_shard_size: ShardOption = "5GB",
    threads: ThreadsOption = None,
) -> None:
    """Export with manifest and model card; push to the hub."""
    from checkpoints_tools import report
    from checkpoints_tools.release.draft import CardOptions
    from checkpoints_tools.release.release import Request
    from checkpoints_tools.release.release import release as make

    request = Request(
        checkpoint,
        out,
        base=base,
        dtype=dtype.value,
        max_shard_bytes=_bytes(max_shard_size),
        options=CardOptions(base_model=base_model, license=license, title=title),
        push_to=push,
        private=private,
    )
    report.after_release(make(request, threads=threads, on_made=report.released))


@plan_app.command("import")
def plan_import(
    hf_dir: HFArgument,
    out: OutArgument,
    chunk_tp: ChunkTPOption = 1,
    dtype: DTypeOption = DTypeName.KEEP,
    as_json: JsonOption = False,
) -> None:
    """What `import` would write."""
    from checkpoints_tools import report
    from checkpoints_tools.models import open_hf
    from checkpoints_tools.to_megatron import plan_import as plan

    planned = plan(open_hf(hf_dir), out, chunk_tp=chunk_tp, dtype=dtype.value)
    report.planned(planned, dtype=dtype.value, as_json=as_json)


@plan_app.command("export")
def plan_export(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    base: BaseOption = None,
    dtype: DTypeOption = DTypeName.KEEP,
    max_shard_size: ShardOption = "5GB",
    as_json: JsonOption = False,
) -> None:
    """What `export` would write."""
    from checkpoints_tools import report
    from checkpoints_tools.models import open_checkpoint
    from checkpoints_tools.to_hf import plan_export as plan

    model = open_checkpoint(checkpoint, base=base).model
    planned = plan(model, out, dtype=dtype.value, max_shard_bytes=_bytes(max_shard_size))
    report.planned(planned, dtype=dtype.value, as_json=as_json)


@plan_app.command("reshard")
def plan_reshard(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    chunk_tp: ChunkTPOption,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """What `reshard` would write."""
    from checkpoints_tools import report
    from checkpoints_tools.models import open_checkpoint
    from checkpoints_tools.to_megatron import plan_reshard as plan

    report.planned(plan(open_checkpoint(checkpoint, base=base), out, chunk_tp=chunk_tp), as_json=as_json)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted:  # all that is on the disk can be gone on from
            os._exit(EXIT_INTERRUPTED)
        interrupted = True
        raise KeyboardInterrupt

    code: Any = EXIT_DEFECT
    try:
        signal.signal(signal.SIGINT, interrupt)
        app(prog_name="thinkprune-ckpt")
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        pass
    except (CheckpointError, OSError, MemoryError) as error:
        code = _explained(error)
    except Exception:
        import traceback

        traceback.print_exc()
    _drop_output()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but Python's own end
    sys.exit(EXIT_INTERRUPTED if interrupted else code)
