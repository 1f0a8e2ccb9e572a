"""Wait until every node of a job has joined its Ray cluster with its GPUs, and say which one is missing if not.

    python -m nemo_thinkprune.launch.ray_ready --address HOST:PORT --nodes n1,n2 --deadline-s 600 [--gpus-per-node G]

Asks the head's control store (GCS) for its table of nodes, as ``ray status`` does: no dashboard, no worker, no
driver of its own.  Leaves with 0 when all are there and 1 after the deadline.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.recipe.errors import UserError

DEADLINE_S = 600.0
TRY_S = 20.0
PERIOD_S = 1.0
LEAST_TRY_S = 5.0
_LOG_PREFIX = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\]\s*(\S+\.(cc|h):\d+:\s*)?")
EXIT_REFUSED = 3
_TOKEN = (
    "the cluster wants a token that this process does not have: give RAY_AUTH_MODE (and, with tokens, "
    "RAY_AUTH_TOKEN_PATH) the same value for the head, the workers and all that connects to them"
)
WHERE = "see ray_workers.log, and ray_head.log for the first node, in the log folder of this attempt"


@dataclass(frozen=True, slots=True)
class RayNode:
    """A living node of a Ray cluster: the names and addresses that it is known by, and its logical GPUs."""

    names: frozenset[str]
    gpus: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A node that must join: its name in the list, and all that Ray may call it."""

    name: str
    aliases: frozenset[str]

    def among(self, nodes: Sequence[RayNode]) -> list[RayNode]:
        """Those of `nodes` that are this one; several where a node was started twice."""
        return [node for node in nodes if node.names & self.aliases]


class NotAnswering(RuntimeError):
    """The head did not answer; the message is one line that says why."""


class Refused(NotAnswering):
    """It answered that it will not: trying again is of no use."""


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


def names_of(name: str) -> frozenset[str]:
    """A host's name as it is and without its domain; an address stays whole."""
    name = name.strip("[]").lower().rstrip(".")
    if not name:
        return frozenset()
    if ":" in name or name.replace(".", "").isdigit():
        return frozenset({name})
    return frozenset({name, name.partition(".")[0]})


def resolved(name: str) -> frozenset[str]:
    """The addresses of a host, without those that every host has; empty where the name is not known here."""
    try:
        found = socket.getaddrinfo(name.strip("[]"), None)
    except (OSError, UnicodeError):
        return frozenset()
    addresses = {str(entry[4][0]).partition("%")[0] for entry in found}
    return frozenset(a for a in addresses if not a.startswith("127.") and a != "::1")


def ask_in_a_process(address: str) -> Callable[[float], list[RayNode]]:
    """Ask the head in a process of its own, as Ray's connecting can hang or end the process that does it."""
    host, port = split_address(address)

    def ask(seconds: float) -> list[RayNode]:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError as error:
            raise NotAnswering(f"{address}: {error.strerror or error}") from None
        process = subprocess.Popen(
            [sys.executable, "-m", "nemo_thinkprune.launch.ray_ready", "--ask", address, str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise NotAnswering(f"{address}: no answer within {seconds:g} s") from None
        if process.returncode == EXIT_REFUSED:
            raise Refused(f"{address}: {_last_line(err)}")
        if process.returncode != 0:
            raise NotAnswering(f"{address}: {_last_line(err) or f'asking ended with {process.returncode}'}")
        return [RayNode(frozenset(node["names"]), node["gpus"]) for node in json.loads(out)]

    return ask


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPv6]:PORT.

    Raises:
        UserError: It is neither.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not port.isdecimal() or (":" in bare) != (bare != host):
        raise UserError(
            f"{address!r} is not HOST:PORT; an IPv6 address is written in brackets, as in [fd00::1]:6379"
        )
    return bare, int(port)


def _last_line(text: str) -> str:
    """The last thing said, without the place in Ray's sources."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return _LOG_PREFIX.sub("", line)


def node_table(address: str, seconds: float) -> list[dict[str, Any]]:
    """The living nodes: `names` (host, label, address; in full and short) and `gpus`.  Imports Ray."""
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "5")
    from ray._raylet import GcsClient

    table = GcsClient(address=address).get_all_node_info(timeout=seconds)
    return [
        {
            "names": sorted(
                names_of(node.node_manager_hostname)
                | names_of(node.node_name)
                | names_of(node.node_manager_address)
            ),
            "gpus": dict(node.resources_total).get("GPU", 0.0),
        }
        for node in _values(table)
        if node.state == 0
    ]


def _values(table: Any) -> list[Any]:
    return list(table.values()) if isinstance(table, Mapping) else list(table)


def _ask(address: str, seconds: float) -> int:
    """The child's side: the table as JSON on stdout, or why not as the last line of stderr."""
    signal.alarm(int(seconds) + 3)  # Ray's own deadlines do not cover everything
    try:
        print(json.dumps(node_table(address, seconds)), flush=True)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "Unauthenticated" in what or "InvalidAuthToken" in what:
            print(_TOKEN, file=sys.stderr, flush=True)
            return EXIT_REFUSED
        print(what[:300], file=sys.stderr, flush=True)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when all nodes are there, 1 after the deadline."""
    args = _parser().parse_args(arguments)
    if args.ask:
        return _ask(args.ask[0], float(args.ask[1]))
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
    parser.add_argument("--ask", nargs=2, metavar=("ADDRESS", "SECONDS"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
