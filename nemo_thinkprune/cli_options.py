"""Arguments and options that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineName(StrEnum):
    """Engines that can train."""

    LOCAL = "local"
    NEMO_RL = "nemo-rl"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name in recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe, such as grpo.max_num_steps=10."),
]
RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Folder of the run; default runs/RECIPE.")
]
Engine = Annotated[EngineName, typer.Option("--engine", help="What trains: this machine, or NeMo-RL on Ray.")]
OnCpu = Annotated[
    bool, typer.Option("--on-cpu", help="NeMo-RL's loop with the local engine's model, without GPUs.")
]


def _folder(text: str) -> Path:
    """A folder by name; an unset variable of a script's is not the current folder."""
    if not text.strip():
        raise typer.BadParameter("it is empty: name a folder, or leave the option away")
    return Path(text)


NemoRlRoot = Annotated[
    Path | None,
    typer.Option(
        "--nemo-rl-root",
        metavar="DIR",
        parser=_folder,
        help="Checkout of NeMo-RL, where it is not installed.",
    ),
]
