"""The living nodes of a Ray cluster, asked of its head by a process that may hang, die and be started again.

As a program it is that process: it prints a line when Ray is imported (which takes long from a cold shared file
system) and then, for each line of input (seconds), a line with the table of nodes or with why there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from nemo_thinkprune.recipe.errors import UserError

_CONNECT_S = 10.0
_LOG_PREFIX = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\]\s*(\S+\.(cc|h):\d+:\s*)?")
_TOKEN = (
    "the cluster wants a token that this process does not have: give RAY_AUTH_MODE (and, with tokens, "
    "RAY_AUTH_TOKEN_PATH) the same value for the head, the workers and all that connects to them"
)


@dataclass(frozen=True, slots=True)
class RayNode:
    """A living node of a Ray cluster: the names and addresses that it is known by, and its logical GPUs."""

    names: frozenset[str]
    gpus: float


class NotAnswering(RuntimeError):
    """The head did not answer; the message is one line that says why."""


class Refused(NotAnswering):
    """It answered that it will not: trying again is of no use."""


def ask_in_a_process(address: str) -> Callable[[float], list[RayNode]]:
    """What gives the living nodes within some seconds or raises `NotAnswering`.

    Raises:
        UserError: The address is not HOST:PORT.
    """
    host, port = split_address(address)
    asker = _Asker(address)

    def ask(seconds: float) -> list[RayNode]:
        try:  # costs nothing while nobody listens there
            socket.create_connection((host, port), timeout=min(seconds, _CONNECT_S)).close()
        except OSError as error:
            raise NotAnswering(f"{address}: {error.strerror or error}") from None
        return asker.ask(seconds)

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


def names_of(name: str) -> frozenset[str]:
    """A host's name as it is and without its domain; an address stays whole."""
    name = name.strip("[]").lower().rstrip(".")
    if not name:
        return frozenset()
    if ":" in name or name.replace(".", "").isdigit():
        return frozenset({name})
    return frozenset({name, name.partition(".")[0]})


class _Asker:
    """The process that asks; it ends with its input."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the asker
        self._ready, self._partial = False, b""

    def ask(self, seconds: float) -> list[RayNode]:
        until = time.monotonic() + seconds
        process = self._process = self._process or self._started()
        if not self._ready and self._line(process, until) is None:
            # Not ended: importing is done once, however long it takes.
            raise NotAnswering(f"{self._address}: Ray is still being imported")
        self._ready = True
        assert process.stdin is not None
        try:
            process.stdin.write(f"{seconds}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(process) from None
        line = self._line(process, until)
        if line is None:
            self._end(process)
            raise NotAnswering(f"{self._address}: no answer within {seconds:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            kind = Refused if answer["refused"] else NotAnswering
            raise kind(f"{self._address}: {answer['error']}")
        return [RayNode(frozenset(node["names"]), node["gpus"]) for node in answer["nodes"]]

    def _started(self) -> subprocess.Popen[bytes]:
        self._ready, self._partial = False, b""
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(
            [sys.executable, "-m", "nemo_thinkprune.launch.ray_table", self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def _line(self, process: subprocess.Popen[bytes], until: float) -> bytes | None:
        """The next line, None when there is none in time.

        Raises:
            NotAnswering: The process ended.
        """
        assert process.stdout is not None
        while b"\n" not in self._partial:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(process.stdout.fileno(), 1 << 20)
            if not data:
                raise self._ended(process)
            self._partial += data
        line, _, self._partial = self._partial.partition(b"\n")
        return line

    def _ended(self, process: subprocess.Popen[bytes]) -> NotAnswering:
        self._end(process)
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        said = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        what = _LOG_PREFIX.sub("", said)[:300] or f"asking ended with {process.returncode}"
        return NotAnswering(f"{self._address}: {what}")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _nodes(address: str, seconds: float) -> list[dict[str, Any]]:
    """The living nodes as the head's control store (GCS) tells them: `names`, in full and short, and `gpus`."""
    from ray._raylet import GcsClient

    table = GcsClient(address=address).get_all_node_info(timeout=seconds)
    living = [node for node in (table.values() if isinstance(table, Mapping) else table) if node.state == 0]
    return [
        {
            "names": sorted(
                names_of(node.node_manager_hostname)
                | names_of(node.node_name)
                | names_of(node.node_manager_address)
            ),
            "gpus": dict(node.resources_total).get("GPU", 0.0),
        }
        for node in living
    ]


def _answer(address: str, seconds: float) -> dict[str, Any]:
    try:
        return {"nodes": _nodes(address, seconds)}
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        refused = "Unauthenticated" in what or "InvalidAuthToken" in what
        return {"error": _TOKEN if refused else what[:300], "refused": refused}


def main() -> None:
    """The process that asks."""
    address = sys.argv[1]
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", "5")
    import ray._raylet  # noqa: F401

    print(flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(address, float(line))), flush=True)


if __name__ == "__main__":
    main()
