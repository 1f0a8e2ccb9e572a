"""Jobs whose script was rendered, changed by its owner and handed to sbatch: "copy it and own it"."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.slurm_jobs import LaunchedJob, thinkprune
from support.slurm_lab import SlurmLab

PROGRAM = Path(__file__).with_name("ray_program.py")


@dataclass(frozen=True, slots=True)
class ProgramJob(LaunchedJob):
    """A job that runs ray_program.py."""

    @property
    def answers(self) -> Path:
        """Where the program writes."""
        return self.run_dir / "program"

    def answer(self, attempt: int = 1) -> dict[str, Any]:
        """What the program wrote down, waiting for it."""
        path = self.answers / f"attempt_{attempt}.json"
        self.wait_for(path.exists, f"no {path.name} of the program")
        return dict(json.loads(path.read_text()))

    def let_go(self) -> None:
        """Have the program end."""
        (self.answers / "go").touch()


def digest(secret: str) -> str:
    """What the program writes down of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def render_own(
    lab: SlurmLab,
    *options: str | Path,
    run_dir: Path,
    nodes: int = 2,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The script of a job of two nodes that NeMo-RL would run on, with ray_program.py in the trainer's place."""
    job = ["--on-cpu", "--gpus-per-node", "1", "--nodes", str(nodes), "--cpus-per-node", "2", "--time", "60"]
    command = ["launch", "slurm", "quickstart", *job, "--run-dir", run_dir, "--dry-run", *options]
    script = thinkprune(lab, *command, environment=environment).stdout
    return with_trainer(script, "python", PROGRAM, run_dir / "program", str(nodes))


def with_trainer(script: str, *command: str | Path) -> str:
    """The script with another command in its array `trainer`."""
    words = " ".join(shlex.quote(str(word)) for word in command)
    changed, times = re.subn(
        r"^trainer=\(\n.*?^\)$", lambda _: f"trainer=({words})", script, flags=re.M | re.S
    )
    assert times == 1, script
    return changed


def submit_own(
    lab: SlurmLab,
    script: str,
    *options: str,
    run_dir: Path,
    environment: Mapping[str, str] | None = None,
) -> ProgramJob:
    """sbatch a script, as its first lines tell to."""
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "program").mkdir()
    path = run_dir / "mine.sbatch"
    path.write_text(script)
    said = lab.run(["sbatch", "--parsable", *options, path], environment=environment).stdout
    return ProgramJob(lab, int(said.split(";")[0]), run_dir)
