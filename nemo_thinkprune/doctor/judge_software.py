"""Versions: is everything there, and the same on every node?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from nemo_thinkprune.cluster.find import SUPPORTED
from nemo_thinkprune.doctor.facts import NodeFacts
from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.doctor.hostlist import fold
from nemo_thinkprune.doctor.needs import Needs

_ONE_VERSION = ("torch", "transformers", "ray", "megatron-core", "vllm", "transformer-engine")
# Of our requirements those that NeMo-RL's Python must have (docs/cluster.md, section 1).
_OF_DRIVER = ("torch", "transformers", "pydantic", "PyYAML", "typer", "rich", "jinja2", "huggingface_hub",
              "math-verify", "psutil")  # fmt: skip
_OLDEST, _BEYOND = (3, 11), (3, 14)
_SAME = "use one environment on all nodes: on a shared file system, or in one container image"


def judge_software(nodes: Sequence[NodeFacts], here: NodeFacts, needs: Needs) -> Iterator[Finding]:
    """Findings about Python, packages, this program and NeMo-RL; `here` is who asks, perhaps one of `nodes`."""
    yield from _program(nodes, here)
    yield from _python(nodes)
    yield from _packages(nodes)
    for one in nodes:
        yield from _missing(one, needs)
    if needs.engine == "nemo-rl":
        yield from _nemo_rl(nodes)


def _program(nodes: Sequence[NodeFacts], here: NodeFacts) -> Iterator[Finding]:
    groups = _groups(nodes, lambda one: one.host.package_hash)
    if len(groups) > 1:
        told = "; ".join(f"{fold(names)} {text}" for text, names in groups.items())
        yield problem("thinkprune", f"not the same program on all nodes: {told}", _SAME)
    elif here.host.package_hash not in groups:
        there = nodes[0].host
        yield note(
            "thinkprune",
            f"the nodes run other code than this machine ({there.package_hash} in {there.package_folder}; here "
            f"{here.host.package_hash} in {here.host.package_folder})",
            "if you changed something here, change it there, or let them use this folder (--mounts)",
        )
    else:
        version = here.host.packages.get("nemo-thinkprune", "not installed")
        yield ok("thinkprune", f"{version}, files {here.host.package_hash}", *_names(nodes))


def _python(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    groups = _groups(nodes, lambda one: one.host.python)
    minors = {_minor(version) for version in groups}
    told = "; ".join(f"{fold(names)} {text}" for text, names in groups.items())
    if len(groups) > 1:
        yield problem("Python", f"not the same on all nodes, which Ray refuses: {told}", _SAME)
    for version, names in groups.items():
        if not _OLDEST <= _minor(version) < _BEYOND:
            yield problem("Python", f"{version} is not supported", "use Python 3.11, 3.12 or 3.13", *names)
    if len(groups) == 1 and all(_OLDEST <= minor < _BEYOND for minor in minors):
        yield ok("Python", next(iter(groups)), *_names(nodes))


def _packages(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    same = []
    for name in _ONE_VERSION:
        groups = _groups(nodes, lambda one, name=name: one.host.packages.get(name, ""))  # type: ignore[misc]
        if len(groups) > 1:
            told = "; ".join(f"{fold(names)} {text or 'none'}" for text, names in groups.items())
            yield problem(name, f"not the same version on all nodes: {told}", _SAME)
        elif version := next(iter(groups), ""):
            same.append(f"{name} {version}")
    if same:
        yield ok("packages", ", ".join(same), *_names(nodes))


def _missing(one: NodeFacts, needs: Needs) -> Iterator[Finding]:
    unmet = one.host.unmet
    if needs.engine == "nemo-rl":
        unmet = [text for text in unmet if text.startswith(_OF_DRIVER)]
        if "ray" not in one.host.packages:
            unmet = [*unmet, "ray (missing)"]
    if unmet:
        yield problem(
            "packages",
            f"{', '.join(unmet)} in the Python {one.host.executable}",
            "start thinkprune from NeMo-RL's own environment or container"
            if needs.engine == "nemo-rl"
            else "pip install nemo-thinkprune's requirements (make in the checkout)",
            one.node,
        )


def _nemo_rl(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    wanted = SUPPORTED.removeprefix("v")
    groups = _groups(nodes, lambda one: one.host.nemo_rl.version)
    if len(groups) > 1 and all(groups):
        told = "; ".join(f"{fold(names)} {text}" for text, names in groups.items())
        yield problem("NeMo-RL", f"not the same version on all nodes: {told}", _SAME)
    for one in nodes:
        found = one.host.nemo_rl
        where = f"{found.version} in {found.root}"
        if found.problem:
            yield problem(
                "NeMo-RL", found.problem, "give --nemo-rl-root FOLDER on a shared file system", one.node
            )
        elif found.version.rpartition(".")[0] != wanted.rpartition(".")[0]:
            yield note(
                "NeMo-RL", f"{where}; this program was tried with {SUPPORTED}", f"use {SUPPORTED}", one.node
            )
        else:
            yield ok("NeMo-RL", where, one.node)


def _groups(nodes: Sequence[NodeFacts], value: Callable[[NodeFacts], str]) -> dict[str, list[str]]:
    """Nodes by what is the same on them."""
    found: dict[str, list[str]] = {}
    for one in nodes:
        found.setdefault(value(one), []).append(one.node)
    return found


def _names(nodes: Sequence[NodeFacts]) -> list[str]:
    return [one.node for one in nodes]


def _minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
