"""Jobs submitted to a lab by the project's own command line, and what they leave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.launch.events import LAST_EVENTS, Attempt, JobFolder, attempts
from support.slurm_lab import ENDED, NodeProcess, SlurmLab

PROGRAMS = Path(sys.executable).parent
MOST_S = 900.0
"""How long a test waits for what must come, however busy the machine."""


def thinkprune(
    lab: SlurmLab,
    *arguments: str | Path,
    check: bool = True,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line on the login node, as a user would."""
    command = [PROGRAMS / "thinkprune", *arguments]
    return lab.run(command, timeout=120, check=check, cwd=cwd, environment=environment)


@dataclass(frozen=True, slots=True)
class LaunchedJob:
    """A job of `thinkprune launch slurm` in a lab."""

    lab: SlurmLab
    job_id: int
    run_dir: Path

    @property
    def folder(self) -> JobFolder:
        """Where the job keeps its records."""
        return JobFolder(self.run_dir, str(self.job_id))

    @property
    def output(self) -> str:
        """What the script printed so far, in all attempts."""
        return self.folder.output.read_text() if self.folder.output.exists() else ""

    def events(self) -> list[tuple[int, str, str]]:
        """(attempt, event, detail) of events.tsv so far."""
        return [(event.attempt, event.name, event.detail) for event in self.folder.events()]

    def attempts(self) -> list[Attempt]:
        """The attempts that events.tsv tells of."""
        return attempts(self.folder.events())

    def ends(self) -> list[tuple[str | None, str | None]]:
        """Of each attempt the reason of its end, and what followed."""
        return [(attempt.reason, attempt.then) for attempt in self.attempts()]

    def status(self) -> str:
        """What `thinkprune launch status` prints."""
        return thinkprune(self.lab, "launch", "status", str(self.job_id)).stdout

    def log(self, name: str, attempt: int = 1) -> str:
        """A log of an attempt, such as driver.log; empty when there is none."""
        path = self.folder.attempt(attempt) / name
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_event(
        self, name: str, detail: str = "", *, attempt: int | None = None, timeout: float = MOST_S
    ) -> None:
        """Wait for an event, of any attempt or one, whose detail begins with `detail`."""

        def seen() -> bool:
            events = self.events()
            if attempt is not None and any(number > attempt for number, _, _ in events):
                assert any(number == attempt and event == name for number, event, _ in events), self.told()
            return any(
                event == name and text.startswith(detail) and attempt in (None, number)
                for number, event, text in events
            )

        self.wait_for(seen, f"no event {name} {detail}", timeout=timeout)

    def wait_step(self, step: int, *, timeout: float = MOST_S) -> None:
        """Wait until metrics.jsonl tells of `step`."""
        self.wait_for(lambda: last_step(self.run_dir) >= step, f"no step {step}", timeout=timeout)

    def wait_over(self, *, timeout: float = MOST_S) -> str:
        """Wait until the job is over for good; its state in Slurm.

        A requeued job is shortly CANCELLED or TIMEOUT too: the end is what its own records call one.
        """
        self.wait_for(self._said_end, "its records tell of no end", timeout=timeout)
        return self.lab.wait(self.job_id, ENDED, timeout=60)["JobState"]

    def wait_for(
        self, reached: Callable[[], bool], what: str, *, timeout: float = MOST_S, every: float = 0.1
    ) -> None:
        """Wait for something that the job must bring about; give up when it has ended without."""
        deadline = time.monotonic() + timeout
        while not reached():
            if self._said_end() and not reached():
                raise AssertionError(f"job {self.job_id} is over, and {what}\n{self.told()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"job {self.job_id}: {what} within {timeout:g} s\n{self.told()}")
            time.sleep(every)

    def told(self) -> str:
        """Everything that the job wrote down, for the message of a failed test."""
        logs = [self.folder.output, *sorted(self.folder.path.glob("attempt_*/*.log"))]
        texts = [
            f"--- {log}\n" + log.read_text(errors="replace")[-3000:]
            for log in logs
            if log.exists() and log.stat().st_size
        ]
        return "\n".join(texts)

    def processes(self) -> dict[str, list[NodeProcess]]:
        """The job's processes, by node; nodes without any are left out."""
        found = {
            node: [
                process
                for process in self.lab.processes(node)
                if process.environ.get("SLURM_JOB_ID") == str(self.job_id)
            ]
            for node in self.lab.nodes
        }
        return {node: processes for node, processes in found.items() if processes}

    def ranks(self) -> list[NodeProcess]:
        """The processes that train in the local engine, by rank."""
        found = [process for process in self._all_processes() if "--rank" in process.argv]
        return sorted(found, key=lambda process: int(process.argv[process.argv.index("--rank") + 1]))

    def drivers(self) -> list[NodeProcess]:
        """The process of `thinkprune train` or `prune`, once it runs."""
        return [p for p in self._all_processes() if p.argv[1:3] == ("-m", "nemo_thinkprune")]

    def starting(self) -> list[NodeProcess]:
        """The driver, or the srun that is about to start it."""
        return [p for p in self._all_processes() if {"nemo_thinkprune", str(self.run_dir)} <= {*p.argv}]

    def files(self) -> list[str]:
        """What is left of the job's own folders on the nodes that run."""
        mark = f"thinkprune-{self.job_id}-"
        up = [node for node in self.lab.nodes if self.lab.processes(node)]
        return [f"{node}:{path}" for node in up for path in self.lab.node_files(node) if mark in path]

    def wait_gone(self, *, timeout: float = 60) -> None:
        """Wait until no node that runs holds a process or a file of the job."""
        deadline = time.monotonic() + timeout
        while (processes := self.processes()) or self.files():
            if time.monotonic() > deadline:
                left = {node: [p.argv for p in found] for node, found in processes.items()}
                raise AssertionError(f"left of job {self.job_id}: {left}, {self.files()}\n{self.told()}")
            time.sleep(0.2)

    def _all_processes(self) -> list[NodeProcess]:
        return [process for processes in self.processes().values() for process in processes]

    def _said_end(self) -> bool:
        return any(name in LAST_EVENTS for _, name, _ in self.events())


def launch(
    lab: SlurmLab,
    recipe: str | Path,
    *options: str | Path,
    run_dir: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> LaunchedJob:
    """Submit a recipe by `thinkprune launch slurm`; `options` are its options and overrides."""
    command = ["launch", "slurm", str(recipe), "--run-dir", str(run_dir), *map(str, options)]
    said = thinkprune(lab, *command, cwd=cwd, environment=environment).stdout
    found = re.search(r"^Job: +(\d+)", said, re.MULTILINE)
    assert found, said
    return LaunchedJob(lab, int(found[1]), run_dir)


def send(processes: Iterable[NodeProcess], number: signal.Signals) -> None:
    """Send a signal to each of the processes that still run."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def last_step(run_dir: Path) -> int:
    """The newest step that metrics.jsonl tells of, 0 before the first."""
    return max(steps_of(run_dir), default=0)


def steps_of(run_dir: Path) -> list[int]:
    """The steps of metrics.jsonl in its order, without the rows of validations."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row["step"] for row in rows if "validation" not in row]
