"""Asking every node: one task of `doctor.node` on each, by srun, inside the job that is there or in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from pydantic import TypeAdapter, ValidationError

from nemo_thinkprune.doctor.facts import NodeFacts, Question
from nemo_thinkprune.doctor.hostlist import expand
from nemo_thinkprune.doctor.node import heard
from nemo_thinkprune.launch.templates import launchers_folder
from nemo_thinkprune.recipe.errors import UserError

_FACTS = TypeAdapter(NodeFacts)
_END_S = 10.0
_ANSWER_S = 180.0  # beyond what the question itself allows: a first import from a slow file system
_MINUTES = 10


@dataclass(frozen=True, slots=True)
class Placement:
    """Which nodes, and how a program is started there; what is None is left to Slurm.

    `wait_s`: seconds to wait for an allocation.
    """

    nodes: int
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    mounts: tuple[str, ...] = ()
    wait_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back: `silent` are the nodes that never answered by name, `missing` is their number.

    `said` are the last lines that srun and the nodes wrote beside their answers.
    """

    facts: tuple[NodeFacts, ...]
    silent: tuple[str, ...]
    missing: int
    said: tuple[str, ...]


def ask_nodes(question: Question, placement: Placement, *, environment: Mapping[str, str]) -> Answers:
    """Start `doctor.node` on every node and collect the facts.

    Raises:
        UserError: there is no srun, or Slurm gave no nodes within `placement.wait_s` seconds.
    """
    inside = "SLURM_JOB_ID" in environment
    command = srun_command(question, placement, inside=inside)
    patience = question.startup_s + 2 * question.patience_s + _ANSWER_S + (0 if inside else placement.wait_s)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        timed_out = _run(command, out, errors, patience_s=patience)
        told = list(_lines(out))
        said = [line for line in (*_lines(errors), *told) if "@thinkprune-doctor" not in line]
    facts = read_answers(heard(told, question.token))
    if not facts and timed_out and not inside:
        raise UserError(
            f"Slurm gave no {placement.nodes} nodes within {placement.wait_s:.0f} s: {_last(said)}; ask for nodes that "
            "are free (sinfo), or run the same command inside a job (salloc)"
        )
    return answers(facts, placement.nodes, environment, said)


def srun_command(question: Question, placement: Placement, *, inside: bool) -> list[str]:
    """The srun that starts one task on each node; inside a job it shares what the job has."""
    count = placement.nodes
    options = [
        f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--label", "--kill-on-bad-exit=0",
        "--wait=0", "--mpi=none", "--cpu-bind=none", "--job-name=thinkprune-doctor",
    ]  # fmt: skip
    if inside:
        options.append("--overlap")
    else:
        given = {"partition": placement.partition, "account": placement.account}
        options += [f"--{name}={value}" for name, value in given.items() if value]
        options += [f"--gpus-per-node={placement.gpus_per_node}"] if placement.gpus_per_node else []
        options.append(f"--time={_MINUTES}")
    if placement.container:
        options += [f"--container-image={placement.container}", "--no-container-mount-home"]
        options += [f"--container-mounts={','.join(placement.mounts)}"] if placement.mounts else []
    start = [sys.executable]
    if placement.container:  # its own Python, and this program as a job would find it there
        start = ["env", f"PYTHONPATH={launchers_folder().parent}", "python"]
    return ["srun", *options, *start, "-m", "nemo_thinkprune.doctor.node", json.dumps(asdict(question))]


def read_answers(texts: Mapping[str, bytes]) -> list[NodeFacts]:
    """Facts of the nodes whose answers can be read."""
    found = []
    for _, text in sorted(texts.items()):
        with contextlib.suppress(ValidationError):
            found.append(_FACTS.validate_json(text))
    return found


def answers(
    facts: Sequence[NodeFacts], count: int, environment: Mapping[str, str], said: Sequence[str]
) -> Answers:
    """Tell who is missing: by what those who answered know, else by the job's own list of nodes."""
    told = {one.node for one in facts}
    known = {peer.name for one in facts for peer in one.network.peers}
    listed = expand(environment.get("SLURM_JOB_NODELIST", ""))
    if not facts and len(listed) == count:
        known = set(listed)
    silent = tuple(sorted(known - told))
    return Answers(tuple(facts), silent, max(0, count - len(told)), tuple(said[-5:]))


def _run(command: Sequence[str], out: IO[bytes], errors: IO[bytes], *, patience_s: float) -> bool:
    """Run srun to its end; whether it had to be ended."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
        )
    except FileNotFoundError:
        raise UserError("srun is not here: --nodes needs Slurm; without it ask each node itself") from None
    deadline = time.monotonic() + patience_s
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End srun and with it its tasks, or its place in the queue."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_S)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    stream.seek(0)
    for line in stream:
        if text := line.decode("utf-8", "replace").strip():
            yield text


def _last(said: Sequence[str]) -> str:
    return said[-1] if said else "it said nothing"
