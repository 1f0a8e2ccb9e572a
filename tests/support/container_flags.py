"""Pyxis's options without containers: a plugin for a lab's Slurm that records what each task was given."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("spank_pyxis_stub.c")
BATCH_STEP = 0xFFFFFFFB  # Slurm's number of the step that is the batch script


@dataclass(frozen=True, slots=True)
class ContainerTask:
    """A task that ran with options of pyxis, their names without dashes in front; a flag's value is ''."""

    job_id: int
    step: int
    task: int
    node: str
    options: Mapping[str, str]


def compile_plugin(folder: Path) -> Path:
    """Compile the plugin into `folder`; `require_slurm(containers=True)` says whether that can be done."""
    plugin = folder / "pyxis_stub.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", plugin, SOURCE]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise AssertionError(f"{SOURCE.name} does not compile: {done.stderr}")
    return plugin


def read_record(record: Path) -> list[ContainerTask]:
    """Read what the plugin wrote, in the order in which the tasks started."""
    if not record.exists():
        return []
    tasks = []
    for line in record.read_text(encoding="utf-8").splitlines():
        job, step, task, node, *options = line.split("\t")
        pairs = dict(option.split("=", 1) for option in options)
        tasks.append(ContainerTask(int(job), int(step), int(task), node, pairs))
    return tasks
