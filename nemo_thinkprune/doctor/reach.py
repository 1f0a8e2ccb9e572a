"""Asking every node: one task of `doctor.node` on each, by srun, inside the job that is there or in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from pydantic import TypeAdapter, ValidationError

from nemo_thinkprune.doctor.facts import NodeFacts, Question
from nemo_thinkprune.doctor.hostlist import expand
from nemo_thinkprune.doctor.node import heard
from nemo_thinkprune.launch.templates import launchers_folder
from nemo_thinkprune.recipe.errors import UserError

Say = Callable[[str], None]

_FACTS = TypeAdapter(NodeFacts)
_END_S = 10.0
_ANSWER_S = 180.0  # beyond what the question itself allows: a first import from a slow file system
_MINUTES = 10
# Options for sbatch that say nothing about nodes, that srun does not know, or that are the doctor's own to give.
_NOT_FOR_SRUN = {
    "--array", "--batch", "--begin", "--deadline", "--dependency", "--error", "--export", "--export-file",
    "--get-user-env", "--hold", "--ignore-pbs", "--input", "--job-name", "--mail-type", "--mail-user", "--no-requeue",
    "--nodes", "--ntasks", "--ntasks-per-node", "--open-mode", "--output", "--parsable", "--quiet", "--requeue",
    "--signal", "--test-only", "--time", "--wait", "--wrap",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """Which nodes, and how a program is started there; what is None is left to Slurm.

    `sbatch`: a job's further options for sbatch, of which those are taken that choose nodes, as --qos=high;
    `wait_s`: seconds to wait for an allocation.
    """

    nodes: int
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    container: str | None = None
    mounts: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
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


def ask_nodes(
    question: Question, placement: Placement, *, environment: Mapping[str, str], say: Say = lambda text: None
) -> Answers:
    """Start `doctor.node` on every node and collect the facts; `say` is told when Slurm has no nodes yet.

    Raises:
        UserError: there is no srun, or Slurm gave no nodes within `placement.wait_s` seconds.
    """
    command = srun_command(question, placement, inside="SLURM_JOB_ID" in environment)
    patience = question.startup_s + 2 * question.patience_s + _ANSWER_S
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        _run(command, out, errors, wait_s=placement.wait_s, patience_s=patience, say=say)
        told = list(_lines(out))
        said = [line for line in (*_lines(errors), *told) if "@thinkprune-doctor" not in line]
    facts = read_answers(heard(told, question.token))
    return answers(facts, placement.nodes, environment, said)


def srun_command(question: Question, placement: Placement, *, inside: bool) -> list[str]:
    """The srun that starts one task on each node; inside a job it shares what the job has."""
    count = placement.nodes
    options = [
        f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--label", "--kill-on-bad-exit=0",
        "--wait=0", "--mpi=none", "--export=ALL", "--cpu-bind=none", "--job-name=thinkprune-doctor",
    ]  # fmt: skip
    if inside:
        options.append("--overlap")
    else:
        given = {"partition": placement.partition, "account": placement.account}
        options += [f"--{name}={value}" for name, value in given.items() if value]
        options += [f"--gres=gpu:{placement.gpus_per_node}"] if placement.gpus_per_node else []
        options.append(f"--time={_MINUTES}")
        options += _for_srun(placement.sbatch)
    if placement.container:
        options += [f"--container-image={placement.container}", "--no-container-mount-home"]
        options += [f"--container-mounts={','.join(placement.mounts)}"] if placement.mounts else []
    start = [sys.executable]
    if placement.container:  # its own Python, and this program as a job would find it there
        start = ["env", f"PYTHONPATH={launchers_folder().parent}", "python"]
    return ["srun", *options, *start, "-m", "nemo_thinkprune.doctor.node", json.dumps(asdict(question))]


def _for_srun(options: Iterable[str]) -> Iterator[str]:
    """The words of those options of sbatch that srun is to have as well; each may be ``--name=value`` or two words."""
    for option in options:
        try:
            words = shlex.split(option)
        except ValueError:  # a quote that does not end
            words = [option]
        if words and words[0].partition("=")[0] not in _NOT_FOR_SRUN:
            yield from words


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


def _run(
    command: Sequence[str], out: IO[bytes], errors: IO[bytes], *, wait_s: float, patience_s: float, say: Say
) -> None:
    """Run srun to its end, at most `patience_s` seconds once it has nodes.

    Raises:
        UserError: there is no srun, or it has no nodes after `wait_s` seconds.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
        )
    except FileNotFoundError:
        raise UserError("srun is not here: --nodes needs Slurm; without it ask each node itself") from None
    asked = began = time.monotonic()
    is_told = False
    try:
        while process.poll() is None and time.monotonic() < began + patience_s:
            time.sleep(0.05)
            if not (queued := queued_job(_lines(errors))):
                continue
            began = time.monotonic()
            if not is_told:
                say(f"job {queued} waits for nodes, at most {wait_s:.0f} s")
            is_told = True
            if began > asked + wait_s:
                raise UserError(
                    f"Slurm gave no nodes within {wait_s:.0f} s; ask for some that are free (sinfo), or run the same "
                    "command inside a job (salloc)"
                )
    finally:
        _end(process)


def queued_job(said: Iterable[str]) -> str:
    """The job of an srun that waits for nodes, by what it has said so far; empty when it does not wait."""
    job = ""
    for line in said:
        if match := re.match(r"srun: job (\d+) (queued and waiting|has been allocated)", line):
            job = match[1] if match[2].startswith("queued") else ""
    return job


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
    """What was written so far; srun shares the file's offset, so it is read by position."""
    text = os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0)
    for line in text.decode("utf-8", "replace").splitlines():
        if line.strip():
            yield line.strip()
