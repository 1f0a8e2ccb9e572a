"""What `thinkprune doctor` does: ask this machine and the nodes, judge what they tell, show it."""

from __future__ import annotations

import os
import secrets as random_tokens
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from nemo_thinkprune.doctor.facts import Network, NodeFacts, Question
from nemo_thinkprune.doctor.findings import Finding, Level, merged, note, ok, problem
from nemo_thinkprune.doctor.folders import Canary, nearest_existing
from nemo_thinkprune.doctor.gpus import gpu_facts
from nemo_thinkprune.doctor.host import host_facts
from nemo_thinkprune.doctor.hostlist import fold
from nemo_thinkprune.doctor.judge_folders import RUN, judge_folders
from nemo_thinkprune.doctor.judge_gpus import judge_gpus
from nemo_thinkprune.doctor.judge_machine import judge_machine
from nemo_thinkprune.doctor.judge_network import judge_network
from nemo_thinkprune.doctor.judge_software import judge_software
from nemo_thinkprune.doctor.needs import Needs, needs_of
from nemo_thinkprune.doctor.node import node_facts, this_node
from nemo_thinkprune.doctor.reach import Answers, Placement, Say, ask_nodes
from nemo_thinkprune.doctor.slurm import SlurmFacts, judge_slurm, judge_version, slurm_facts
from nemo_thinkprune.doctor.table import show
from nemo_thinkprune.launch.secrets import read_secrets
from nemo_thinkprune.recipe.check_files import check_files
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import find_recipe, load_recipe
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rounds.commands import LOCAL, EngineChoice, default_run_dir

_FOLDER_VARIABLES = ("HF_HOME", "NEMO_RL_VENV_DIR", "NRL_MEGATRON_CHECKPOINT_DIR")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be examined: a recipe on this machine, or on `nodes` nodes of a Slurm cluster.

    `rounds`: room on disk for all rounds of `thinkprune prune`; `time` as Slurm writes it; `scratch` is the
    folder of each node in which a job makes its private one; `sbatch` are a job's further options for sbatch;
    `wait_s`, `startup_s` and `patience_s` are seconds to wait for an allocation, for the nodes to start, and for a
    file to be seen by others, which NFS may keep from them for a minute.
    """

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    engine: EngineChoice = LOCAL
    run_dir: Path | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    rounds: bool = False
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    container: str | None = None
    mounts: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    scratch: str = "/tmp"
    secrets: Path | None = None
    wait_s: float = 600.0
    startup_s: float = 60.0
    patience_s: float = 75.0


def doctor(request: Request, *, stream: TextIO | None = None, say: Say = lambda text: None) -> int:
    """Examine, show the findings on `stream` (default: standard output) and return the number of problems.

    `say` is told what is waited for.
    """
    findings = merged(examine(request, environment=os.environ, say=say))
    problems = sum(finding.level == Level.PROBLEM for finding in findings)
    show(findings, closing=_closing(request, problems), stream=sys.stdout if stream is None else stream)
    return problems


def examine(
    request: Request, *, environment: Mapping[str, str], say: Say = lambda text: None
) -> Iterator[Finding]:
    """All findings; `say` as in `doctor`."""
    engine = request.engine
    recipe, found = _recipe(request)
    yield from found
    needs = Needs(engine.name, engine.name == "nemo-rl" and not engine.on_cpu)
    if recipe is not None:
        needs = needs_of(
            recipe, engine=engine.name, on_cpu=engine.on_cpu, rounds=request.rounds, environment=environment
        )
    yield from _secrets(request, environment)
    inside = "SLURM_JOB_ID" in environment
    slurm = slurm_facts(request.partition)
    found = [] if slurm is None else [*_slurm(slurm, request, inside=inside)]
    yield from found
    question = _question(request, needs, environment)
    if request.nodes is None:
        nodes = [node_facts(replace(question, port=0), node=this_node())]
        is_login = slurm is not None and not inside
        if request.container:
            yield note("container", "it was not looked into", "--nodes N starts it on nodes and asks there")
            yield from judge_folders(nodes, nodes[0], needs)
        else:
            yield from _judged(nodes, nodes[0], needs, is_login=is_login)
    elif any(one.level == Level.PROBLEM and one.check == "Slurm" for one in found):
        yield note("nodes", "they were not asked, since Slurm would not give them")
    else:
        yield from _asked_nodes(request, question, needs, environment, say)


def _asks_slurm(request: Request) -> bool:
    return bool(request.nodes or request.partition or request.time)


def _slurm(slurm: SlurmFacts, request: Request, *, inside: bool) -> Iterator[Finding]:
    if _asks_slurm(request) or request.engine.name == "nemo-rl":
        yield from judge_version(slurm)
    if _asks_slurm(request) and not inside:
        yield from judge_slurm(slurm, nodes=request.nodes, time=request.time)


def _asked_nodes(
    request: Request, question: Question, needs: Needs, environment: Mapping[str, str], say: Say
) -> Iterator[Finding]:
    """Findings about the nodes that Slurm gives."""
    asked = replace(question, asker=f"{this_node()} (here)")
    gpus = (request.gpus_per_node or 0) if needs.gpus is None else needs.gpus
    try:
        answers, here = _ask(request, asked, gpus, environment, say)
    except UserError as error:
        yield problem("nodes", str(error), "sinfo shows which nodes there are")
        return
    yield from _silent(answers, request.nodes or 1)
    if answers.facts:
        yield from _judged(list(answers.facts), here, needs, is_login=False)


def _judged(
    nodes: Sequence[NodeFacts], here: NodeFacts, needs: Needs, *, is_login: bool
) -> Iterator[Finding]:
    yield from judge_software(nodes, here, needs)
    yield from judge_folders(nodes, here, needs)
    for one in nodes:
        yield from judge_machine(one, needs)
    yield from judge_gpus(nodes, needs, is_login=is_login)
    yield from judge_network(nodes, needs, is_login=is_login)


def _recipe(request: Request) -> tuple[Recipe | None, list[Finding]]:
    """The recipe, when it can be loaded, and what is wrong with it."""
    if request.recipe is None:
        return None, []
    overrides = [*request.overrides, *_sizes(request)]
    again = shlex.join(["thinkprune", "check", request.recipe, *overrides, "--engine", request.engine.name])
    try:
        recipe = load_recipe(request.recipe, overrides)
    except UserError as error:
        return None, [problem("recipe", str(error), f"correct it, then: {again}")]
    try:
        check_recipe(recipe, engine=request.engine.name, on_cpu=request.engine.on_cpu)
    except UserError as error:
        return recipe, [problem("recipe", str(error), f"correct it, then: {again}")]
    found = [ok("recipe", f"{request.recipe} passes the checks for the {request.engine.name} engine")]
    if request.engine.name == "nemo-rl":
        try:
            check_files(recipe, on_cpu=request.engine.on_cpu)
        except UserError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            found += [
                problem("recipe", line, again) for line in lines if line.startswith("policy.pretrained")
            ]
    return recipe, found


def _sizes(request: Request) -> list[str]:
    """Settings over the recipe that follow from the nodes asked for, as `thinkprune launch slurm` gives them."""
    given = {"cluster.num_nodes": request.nodes, "cluster.gpus_per_node": request.gpus_per_node}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _question(request: Request, needs: Needs, environment: Mapping[str, str]) -> Question:
    run_dir = request.run_dir or (default_run_dir(request.recipe) if request.recipe else Path("."))
    folders = {RUN: str(nearest_existing(run_dir.expanduser()))}
    for name in _FOLDER_VARIABLES:
        if environment.get(name):
            folders[name] = str(nearest_existing(Path(environment[name]).expanduser()))
    paths = {"working folder": os.getcwd(), **needs.paths}
    if request.recipe is not None:
        with suppress(UserError):  # told by the recipe's own check
            paths["recipe"] = str(find_recipe(request.recipe).absolute())
    root = request.engine.nemo_rl_root
    return Question(
        token=random_tokens.token_hex(4),
        folders=folders,
        paths=paths,
        nemo_rl_root=str(root.expanduser().absolute()) if root else None,
        scratch=request.scratch,
        startup_s=request.startup_s,
        patience_s=request.patience_s,
    )


def _ask(
    request: Request, question: Question, gpus: int, environment: Mapping[str, str], say: Say
) -> tuple[Answers, NodeFacts]:
    """Ask the nodes while this machine, which is perhaps none of them, watches the shared folders."""
    root = Path(question.nemo_rl_root) if question.nemo_rl_root else None
    host = host_facts(nemo_rl_root=root, scratch=request.scratch)
    placement = Placement(
        request.nodes or 1, gpus, request.partition, request.account, request.container, request.mounts,
        request.sbatch, request.wait_s,
    )  # fmt: skip
    canaries = [
        Canary(label=label, folder=folder, token=question.token, node=question.asker)
        for label, folder in question.folders.items()
    ]
    try:
        for canary in canaries:
            canary.write(0)
            canary.hold_lock()
        with _watched(canaries) as seen:
            answers = ask_nodes(question, placement, environment=environment, say=say)
        folders = [
            replace(canary.facts(question.asker), seen=sorted({question.asker, *seen[canary.label]}))
            for canary in canaries
        ]
    finally:
        for canary in canaries:
            canary.clear()
    return answers, NodeFacts(question.asker, host, gpu_facts(), folders, [], Network())


@contextmanager
def _watched(canaries: Sequence[Canary]) -> Iterator[dict[str, set[str]]]:
    """Collect whose files appear in each folder, by its label, until the end of the block."""
    seen: dict[str, set[str]] = {canary.label: set() for canary in canaries}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for canary in canaries:
                seen[canary.label] |= canary.acknowledge()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _silent(answers: Answers, count: int) -> Iterator[Finding]:
    if not answers.missing:
        return
    who = fold(answers.silent) or f"{answers.missing} of {count} nodes"
    said = "".join(f"\n{line}" for line in answers.said)
    if not answers.facts and any(line.startswith("srun: error:") for line in answers.said):
        why, remedy = (
            "Slurm started nothing",
            "correct --nodes, --partition and --account: sinfo shows what there is",
        )
    else:
        why = f"no answer from {who}: this program cannot be started there, or did not end in time"
        remedy = "install it at the same path on all nodes (a shared file system), or give --container and --mounts"
    yield problem("nodes", f"{why}{said}", remedy, *answers.silent)


def _secrets(request: Request, environment: Mapping[str, str]) -> Iterator[Finding]:
    try:
        found = read_secrets(file=request.secrets, environment=environment)
    except UserError as error:
        yield problem("secrets", str(error), "see the message")
        return
    if found.found:
        yield ok("secrets", found.describe())
    elif request.secrets is not None:
        yield note("secrets", f"{request.secrets} gives none", "lines such as HF_TOKEN=hf_...")


def _closing(request: Request, problems: int) -> str:
    """How it ended, and the next command."""
    options = _options(request)
    if problems:
        count = f"{problems} problems" if problems > 1 else "A problem"
        again = shlex.join(["thinkprune", "doctor", *options])
        return f"{count}.  Put right what stands above, then ask again: {again}"
    nodes = [] if request.nodes is not None else ["--nodes", "N"]
    if request.recipe is None:
        return f"No problems.  Next: {shlex.join(['thinkprune', 'doctor', 'RECIPE', *options])}"
    asks_slurm = _asks_slurm(request) or request.account or request.container or request.sbatch
    if asks_slurm or (request.engine.name == "nemo-rl" and shutil.which("sbatch")):
        return f"No problems.  Next: {shlex.join(['thinkprune', 'launch', 'slurm', *options, *nodes])}"
    verb = "prune" if request.rounds else "train"
    return f"No problems.  Next: {shlex.join(['thinkprune', verb, *_run_options(request, _sizes(request))])}"


def _options(request: Request) -> list[str]:
    """The words of the command line that lead to this request."""
    given = {
        "--nodes": request.nodes, "--gpus-per-node": request.gpus_per_node, "--partition": request.partition,
        "--account": request.account, "--time": request.time, "--container": request.container,
        "--secrets": request.secrets, "--scratch": None if request.scratch == "/tmp" else request.scratch,
    }  # fmt: skip
    words = [*_run_options(request), *_words(given)]
    words += [word for mount in request.mounts for word in ("--mounts", mount)]
    words += [f"--sbatch={option}" for option in request.sbatch]
    return [*words, *(["--rounds"] if request.rounds else [])]


def _run_options(request: Request, sizes: Sequence[str] = ()) -> list[str]:
    """Those words that `thinkprune train` takes, too; the engine always, since not all verbs have the same default."""
    engine = request.engine
    given = {
        "--engine": engine.name, "--nemo-rl-root": engine.nemo_rl_root, "--run-dir": request.run_dir,
    }  # fmt: skip
    words = [*([request.recipe] if request.recipe else []), *request.overrides, *sizes, *_words(given)]
    return [*words, *(["--on-cpu"] if engine.on_cpu else [])]


def _words(given: Mapping[str, object]) -> list[str]:
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]
