"""The program that the doctor starts on every node: ``python -m nemo_thinkprune.doctor.node QUESTION``.

It needs the standard library alone, so that a node with a broken environment can still say what is broken.
Facts go to standard output in short marked lines, which survive banners of modules and lines of other nodes.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nemo_thinkprune.doctor.facts import NodeFacts, Question
from nemo_thinkprune.doctor.folders import Canary, file_facts, wait_for
from nemo_thinkprune.doctor.gpus import gpu_facts
from nemo_thinkprune.doctor.host import host_facts
from nemo_thinkprune.doctor.hostlist import expand
from nemo_thinkprune.doctor.mesh import Listener, Neighbour
from nemo_thinkprune.doctor.network import network_facts
from nemo_thinkprune.launch.slurm_job import gcs_port

_MARK = "thinkprune-doctor"
_PIECE = 600  # characters: srun keeps labelled lines whole up to 1024
_LINE = re.compile(rf"@{_MARK} (\S+) (\S+) (\d+)/(\d+) ([A-Za-z0-9+/=]*)@")


def node_facts(question: Question, *, node: str, peers: Sequence[str] = ()) -> NodeFacts:
    """All facts about this node; meets the `peers`, which answer the same question at the same time."""
    start = time.monotonic()
    listener, refused = None, ""
    try:
        listener = Listener(node=node, token=question.token, port=question.port)
    except OSError as error:
        refused = f"cannot listen on port {question.port} or the next: {error.strerror or error}"
    port = listener.port if listener else 0
    canaries = [
        Canary(label=label, folder=folder, token=question.token, node=node)
        for label, folder in question.folders.items()
    ]
    neighbours = _neighbours(question, canaries, node, peers)
    try:
        for canary in canaries:
            canary.write(port)
            if not question.asker:  # who asks holds the lock; alone it is only seen whether there are locks
                canary.hold_lock()
        meeting = _meet(neighbours, question, until=start + question.startup_s)
        host = host_facts(nemo_rl_root=_path(question.nemo_rl_root), scratch=question.scratch)
        gpus, files = gpu_facts(), file_facts(question.paths)
        for thread in meeting:
            thread.join()
        expected = {*peers, *([question.asker] if question.asker else [])}
        wait_for(canaries, expected, asker=question.asker, until=time.monotonic() + question.patience_s)
        folders = [canary.facts(question.asker) for canary in canaries]
        network = network_facts(port=port, peers=[one.facts() for one in neighbours], problem=refused)
        alive = {name for folder in folders for name in folder.seen} & set(peers)
        latest = max(start + question.startup_s, time.monotonic() + question.patience_s)
        _part(listener, neighbours, alive, until=latest)
    finally:
        for canary in canaries:
            canary.remove()
        if listener:
            listener.close()
    return NodeFacts(node, host, gpus, folders, files, network)


def spoken(facts: NodeFacts, token: str) -> list[str]:
    """Facts as lines for standard output."""
    data = base64.b64encode(zlib.compress(json.dumps(asdict(facts)).encode())).decode()
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
    return [
        f"@{_MARK} {token} {facts.node} {number}/{len(pieces)} {piece}@"
        for number, piece in enumerate(pieces, start=1)
    ]


def heard(lines: Iterable[str], token: str) -> dict[str, bytes]:
    """The JSON of each node whose lines are all there, whatever stands between and before them."""
    pieces: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for line in lines:
        match = _LINE.search(line)
        if match and match[1] == token:
            pieces.setdefault(match[2], {})[int(match[3])] = match[5]
            counts[match[2]] = int(match[4])
    found = {}
    for node, parts in pieces.items():
        if set(parts) != set(range(1, counts[node] + 1)):
            continue
        try:
            found[node] = zlib.decompress(base64.b64decode("".join(parts[n] for n in sorted(parts))))
        except (ValueError, zlib.error):
            continue
    return found


def this_node() -> str:
    """The name that Slurm has for this machine, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _neighbours(
    question: Question, canaries: Sequence[Canary], node: str, peers: Sequence[str]
) -> list[Neighbour]:
    def port_of(name: str) -> int | None:
        return next((seen[name] for seen in (one.seen() for one in canaries) if name in seen), None)

    return [
        Neighbour(name, node=node, token=question.token, port_of=port_of, port=question.port)
        for name in peers
    ]


def _meet(neighbours: Sequence[Neighbour], question: Question, *, until: float) -> list[threading.Thread]:
    threads = [
        threading.Thread(
            target=one.meet, kwargs={"until": until, "patience_s": question.patience_s}, daemon=True
        )
        for one in neighbours
    ]
    for thread in threads:
        thread.start()
    return threads


def _part(
    listener: Listener | None, neighbours: Sequence[Neighbour], alive: set[str], *, until: float
) -> None:
    """Leave the others, and stay until they have left: they may be looking for this node's file still.

    `alive` are those whose files were seen; one that was neither seen nor met is not waited for.
    """
    for one in neighbours:
        one.leave()
    if listener:
        met = {one.name for one in neighbours if one.sample is not None}
        listener.wait_until_left(met | alive, until=until)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def main(arguments: Sequence[str]) -> None:
    """Answer the question in the one argument, as JSON."""
    question, node = Question(**json.loads(arguments[0])), this_node()
    if (job := os.environ.get("SLURM_JOB_ID", "")).isdecimal() and not question.port:
        question = replace(question, port=gcs_port(int(job)))
    nodes = expand(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or node)
    facts = node_facts(question, node=node, peers=[name for name in nodes if name != node])
    for line in spoken(facts, question.token):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
