"""Waiting for the nodes of a Ray cluster: the decisions with a made-up head, the asking with a real one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nemo_thinkprune.launch import ray_ready
from nemo_thinkprune.launch.ray_ready import (
    NotAnswering,
    RayNode,
    Refused,
    Wanted,
    aliases,
    ask_in_a_process,
    names_of,
    resolved,
    wait,
)
from nemo_thinkprune.launch.ray_table import split_address
from nemo_thinkprune.recipe.errors import UserError

PLENTY_S = 300  # Ray starts in 5 s, on a busy machine in a minute
Answer = list[RayNode] | NotAnswering


def node(*names: str, gpus: float = 8) -> RayNode:
    return RayNode(frozenset(name for each in names for name in names_of(each)), gpus)


def waited(
    *answers: Answer, nodes: str = "n1,n2", gpus: float = 8, deadline_s: float = 60
) -> tuple[bool, list[str]]:
    """Whether all were ready, and what was said; each try takes a second, the last answer is given for ever."""
    now, tries, said = [0.0], list(answers), []

    def ask(seconds: float) -> list[RayNode]:
        now[0] += 1
        answer = tries.pop(0) if len(tries) > 1 else tries[0]
        if isinstance(answer, NotAnswering):
            raise answer
        return answer

    def sleep(seconds: float) -> None:
        now[0] += seconds

    ready = wait(
        [Wanted(name, aliases(name, lambda _: frozenset())) for name in nodes.split(",")],
        ask,
        deadline_s=deadline_s,
        gpus_per_node=gpus,
        say=said.append,
        clock=lambda: now[0],
        sleep=sleep,
    )
    return ready, said


def test_it_says_who_is_waited_for_whenever_the_set_grows() -> None:
    down = NotAnswering("head:1: Connection refused")
    one, two = [node("n1")], [node("n1"), node("n3")]
    ready, said = waited(down, down, [], one, one, two, [*two, node("n2")], nodes="n1,n2,n3")
    assert ready
    assert said == [
        "waiting for the head: head:1: Connection refused",
        "1 of 3 nodes: waiting for n2, n3",
        "2 of 3 nodes: waiting for n2",
        "Ray ready: 3 nodes, 24 GPUs, 13.0 s",
    ]


def test_after_the_deadline_the_missing_nodes_are_named() -> None:
    ready, said = waited([node("n1")], nodes="n1,n2,n3")
    assert not ready
    assert said[-1].startswith(
        "Ray not ready after 60 s: waiting for 2 of 3 nodes: n2, n3; see ray_workers.log"
    )


def test_a_node_with_too_few_gpus_is_named_with_their_number() -> None:
    ready, said = waited([node("n1"), node("n2", gpus=7)])
    assert not ready and "waiting for 1 of 2 nodes: n2 (7 of 8 GPUs)" in said[-1]
    assert waited([node("n1", gpus=0), node("n2", gpus=0)], gpus=0)[0]


def test_a_head_that_never_answers_is_said_to_be_the_reason() -> None:
    ready, said = waited(NotAnswering("head:1: Connection refused"))
    assert not ready and "the head does not answer: head:1: Connection refused" in said[-1]
    assert len(said) == 2


def test_a_head_that_fell_silent_is_not_ready_by_its_last_answer() -> None:
    ready, said = waited([node("n1")], NotAnswering("head:1: no answer within 20 s"))
    assert not ready and "no answer within 20 s" in said[-1]


def test_a_refusal_ends_the_waiting_at_once() -> None:
    ready, said = waited(Refused("head:1: the cluster wants a token"))
    assert not ready and said == [f"Ray not ready: head:1: the cluster wants a token; {ray_ready.WHERE}"]


@pytest.mark.parametrize(
    ("in_list", "in_ray"),
    [("n1", "n1.cluster.example"), ("n1.cluster.example", "n1"), ("N1", "n1."), ("[fd00::1]", "fd00::1")],
)
def test_full_and_short_names_are_the_same_node(in_list: str, in_ray: str) -> None:
    assert waited([node(in_ray)], nodes=in_list)[0]


def test_a_name_is_found_by_its_address_and_parts_of_an_address_are_no_names() -> None:
    wanted = Wanted("n1", aliases("n1", lambda name: frozenset({"10.77.0.11"})))
    assert wanted.among([node("another-name", "10.77.0.11")])
    assert not Wanted("10.77.0.12", aliases("10.77.0.12", lambda _: frozenset())).among([node("10.77.0.11")])


def test_loopback_addresses_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", (address, 0)) for address in ("127.0.1.1", "::1", "10.0.0.7", "fe80::1%eth0")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    assert resolved("n1") == {"10.0.0.7", "fe80::1"}


def test_an_unknown_name_has_no_addresses() -> None:
    assert resolved("no such name." + "x" * 300) == frozenset()


def test_addresses_are_split_with_and_without_brackets() -> None:
    assert split_address("[fd77::11]:6379") == ("fd77::11", 6379)
    assert split_address("n1.example:80") == ("n1.example", 80)
    for wrong in ("fd77::11:6379", "n1", "n1:", ":1", "[n1]:1", "n1:http"):
        with pytest.raises(UserError, match="brackets"):
            split_address(wrong)


def test_a_port_where_nothing_answers_is_given_up_within_its_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = run(address, "n1", "--deadline-s", "0.1", home=tmp_path)
    assert ended.returncode == 1
    assert f"Ray not ready after 0.1 s: the head does not answer: {address}: " in ended.stdout


def test_a_process_that_dies_while_it_asks_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Ray that aborts at first, as Ray's own client does, and then answers."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("")
    (tmp_path / "ray" / "_raylet.py").write_text(ABORTS_ONCE.format(flag=str(tmp_path / "flag")))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with socket.create_server(("127.0.0.1", 0)) as head:
        ask = ask_in_a_process(f"127.0.0.1:{head.getsockname()[1]}")
        with pytest.raises(NotAnswering, match=r": Failed to connect to GCS$"):
            ask(PLENTY_S)
        assert ask(PLENTY_S) == ask(PLENTY_S) == [node("n1", "10.0.0.1", gpus=2)]


ABORTS_ONCE = """
import os, sys
from types import SimpleNamespace

class GcsClient:
    def __init__(self, address):
        if not os.path.exists({flag!r}):
            open({flag!r}, "w").close()
            sys.stderr.write("[2026-11-21 19:38:32,427 W 1 1] rpc_client.h:153: Failed to connect to GCS\\n")
            sys.stderr.flush()
            os.abort()

    def get_all_node_info(self, timeout):
        common = dict(node_name="10.0.0.1", node_manager_address="10.0.0.1", node_manager_hostname="n1")
        living = SimpleNamespace(state=0, resources_total={{"GPU": 2.0, "CPU": 4.0}}, **common)
        return {{b"1": living, b"2": SimpleNamespace(state=1, resources_total={{}}, **common)}}
"""


def test_the_command_line_wants_an_address_and_nodes() -> None:
    for words in (
        [],
        ["--address", "a:1"],
        ["--address", "a:1", "--nodes", ","],
        ["--address", "a", "--nodes", "b"],
    ):
        with pytest.raises(SystemExit) as left:
            ray_ready.main(words)
        assert left.value.code == 2


# ---- A real Ray ----


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's own Ray: neither a running cluster nor a token of theirs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", **more}


def command(address: str, nodes: str, *words: str) -> list[str]:
    module = "nemo_thinkprune.launch.ray_ready"
    return [sys.executable, "-m", module, "--address", address, "--nodes", nodes, *words]


def run(address: str, nodes: str, *words: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(address, nodes, *words),
        capture_output=True,
        text=True,
        env=environment(home, **more),
        timeout=120,
    )


@contextmanager
def ray_start(home: Path, folder: str, *words: str, **more: str) -> Iterator[None]:
    """`ray start` with a folder of its own; ends all of its processes and no others."""
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
    small = ["--num-cpus", "1", "--object-store-memory", "80000000", "--temp-dir", folder]
    with open(home / f"{Path(folder).name}.log", "wb") as log:
        process = subprocess.Popen(
            [*program, *small, *words],
            env=environment(home, RAY_TMPDIR=folder, **more),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        # Its servants lead groups of their own or not, as Ray's releases like: all are of this session.
        from nemo_thinkprune.training.process_tree import kill_sessions

        kill_sessions({process.pid})
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


Starter = Callable[..., None]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts nodes of Ray that live until the test ends, in folders short enough for a socket's path."""
    pytest.importorskip("ray")
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(
            ray_start(
                tmp_path,
                stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp")),
                *words,
                **more,
            )
        )


def test_a_real_cluster_is_waited_for_from_before_its_head_is_there(
    start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    waiting = subprocess.Popen(
        command(address, "n1.cluster.example,n2", "--gpus-per-node", "2", "--deadline-s", str(PLENTY_S)),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == f"waiting for the head: {address}: Connection refused\n"
    head = ("--head", "--port", str(port), "--include-dashboard=false", "--node-ip-address", "127.0.0.1")
    start(*head, "--num-gpus", "2", "--node-name", "n1")
    lines = iter(waiting.stdout.readline, "")
    assert next(line for line in lines if " of " in line).endswith("waiting for n2\n")
    start("--address", address, "--num-gpus", "3", "--node-name", "n2")
    said = list(lines)
    assert waiting.wait(timeout=PLENTY_S) == 0
    assert re.fullmatch(r"Ray ready: 2 nodes, 5 GPUs, \d+\.\d s\n", said[-1])

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    found = ask_in_a_process(address)(PLENTY_S)
    ready, said = waited(found, nodes="n1,n2,n3", gpus=3)
    assert not ready and "waiting for 2 of 3 nodes: n1 (2 of 3 GPUs), n3; see ray_workers.log" in said[-1]
    # Both raylets are on this host: it is known by its name, too.
    assert waited(found, nodes=socket.gethostname(), gpus=0)[0]


def test_a_cluster_that_wants_a_token_is_named_as_such(start: Starter, tmp_path: Path) -> None:
    port = free_port()
    address, token = f"127.0.0.1:{port}", tmp_path / "token"
    token.write_text("0" * 32)
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    start("--head", "--port", str(port), "--include-dashboard=false", "--node-name", "n1", **with_token)
    assert run(address, "n1", "--deadline-s", str(PLENTY_S), home=tmp_path, **with_token).returncode == 0
    ended = run(address, "n1", "--deadline-s", str(PLENTY_S), home=tmp_path)
    assert ended.returncode == 1 and "the cluster wants a token" in ended.stdout.splitlines()[-1]
