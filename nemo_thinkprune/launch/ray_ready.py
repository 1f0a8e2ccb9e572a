"""Wait until every node of a job has joined its Ray cluster with its GPUs, and say which one is missing if not.

    python -m nemo_thinkprune.launch.ray_ready --address HOST:PORT --nodes n1,n2 --deadline-s 600 [--gpus-per-node G]

Asks the head's control store (GCS) for its table of nodes, as ``ray status`` does: no dashboard, no worker, no
driver of its own.  Leaves with 0 when all are there and 1 after the deadline.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_thinkprune.launch.ray_table import NotAnswering, RayNode, Refused, ask_in_a_process, names_of
from nemo_thinkprune.recipe.errors import UserError

DEADLINE_S = 600.0
TRY_S = 20.0
PERIOD_S = 1.0
LEAST_TRY_S = 5.0
WHERE = "see ray_workers.log, and ray_head.log for the first node, in the log folder of this attempt"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A node that must join: its name in the list, and all that Ray may call it."""

    name: str
    aliases: frozenset[str]

    def among(self, nodes: Sequence[RayNode]) -> list[RayNode]:
        """Those of `nodes` that are this one; several where a node was started twice."""
        return [node for node in nodes if node.names & self.aliases]


def wait(
    wanted: Sequence[Wanted],
    ask: Callable[[float], list[RayNode]],
    *,
    deadline_s: float,
    gpus_per_node: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether all nodes joined before the deadline; says so, and what is missing whenever more have joined.

    `ask(seconds)` gives the living nodes within that time or raises `NotAnswering`.
    """
    began, said = clock(), -1
    why: str | None = None
    nodes: list[RayNode] = []
    while True:
        left = deadline_s - (clock() - began)
        try:
            nodes, why = ask(max(LEAST_TRY_S, min(TRY_S, left))), ""  # an empty word: it answers
        except Refused as error:
            say(f"Ray not ready: {error}; {WHERE}")
            return False
        except NotAnswering as error:
            if why is None:
                say(f"waiting for the head: {error}")
            why = str(error)
        lacking = _lacking(wanted, nodes, gpus_per_node)
        joined = len(wanted) - len(lacking)
        if not lacking and not why:
            gpus = sum(max(node.gpus for node in want.among(nodes)) for want in wanted)
            say(f"Ray ready: {_count(joined, 'node')}, {_count(gpus, 'GPU')}, {clock() - began:.1f} s")
            return True
        if joined > said and nodes:
            said = joined
            say(f"{joined} of {_count(len(wanted), 'node')}: waiting for {', '.join(lacking)}")
        if clock() - began >= deadline_s:
            say(_given_up(lacking, why, total=len(wanted), deadline_s=deadline_s))
            return False
        sleep(PERIOD_S)


def _given_up(lacking: Sequence[str], why: str | None, *, total: int, deadline_s: float) -> str:
    if why:
        return f"Ray not ready after {deadline_s:g} s: the head does not answer: {why}; {WHERE}"
    return (
        f"Ray not ready after {deadline_s:g} s: waiting for {len(lacking)} of {_count(total, 'node')}: "
        f"{', '.join(lacking)}; {WHERE}"
    )


def _lacking(wanted: Sequence[Wanted], nodes: Sequence[RayNode], gpus: float) -> list[str]:
    """The nodes that have not joined, or have with fewer GPUs, in words."""
    lacking = []
    for want in wanted:
        found = want.among(nodes)
        if not found:
            lacking.append(want.name)
        elif (most := max(node.gpus for node in found)) < gpus:
            lacking.append(f"{want.name} ({most:g} of {_count(gpus, 'GPU')})")
    return lacking


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" if number == 1 else f"{number:g} {what}s"


def aliases(name: str, resolve: Callable[[str], frozenset[str]]) -> frozenset[str]:
    """What Ray may call a node: its name in full and short, and the addresses it stands for; none of them loopback.

    A short name is no alias of a name with a domain's other host: both sides are compared in full and short.
    """
    return names_of(name) | resolve(name)


def resolved(name: str) -> frozenset[str]:
    """The addresses of a host, without those that every host has; empty where the name is not known here."""
    try:
        found = socket.getaddrinfo(name.strip("[]"), None)
    except (OSError, UnicodeError):
        return frozenset()
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    return frozenset(a for a in addresses if not a.startswith("127.") and a != "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when all nodes are there, 1 after the deadline."""
    args = _parser().parse_args(arguments)
    names = [name for name in (args.nodes or "").split(",") if name]
    if not args.address or not names:
        _parser().error("--address and --nodes are needed")
    try:
        ask = ask_in_a_process(args.address)
    except UserError as error:
        _parser().error(str(error))
    wanted = [Wanted(name, aliases(name, resolved)) for name in names]
    ready = wait(
        wanted,
        ask,
        deadline_s=args.deadline_s,
        gpus_per_node=args.gpus_per_node,
        say=lambda line: print(line, flush=True),
    )
    return 0 if ready else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ray_ready", description="Wait until all nodes have joined Ray.")
    parser.add_argument("--address", help="HOST:PORT of the head; an IPv6 address in brackets")
    parser.add_argument("--nodes", help="names of the nodes, separated by commas")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="default %(default)s")
    parser.add_argument("--gpus-per-node", type=float, default=0.0, help="logical GPUs (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
