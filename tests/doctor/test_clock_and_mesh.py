"""Clocks and connections between two nodes that are two listeners of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from nemo_thinkprune.doctor.clock import Sample, best
from nemo_thinkprune.doctor.mesh import Listener, Neighbour

HERE = "localhost"  # a node's name that every machine knows


def visit(port: int, *, token: str = "t", name: str = HERE, port_of: int | None = None) -> Neighbour:
    one = Neighbour(name, node="me", token=token, port_of=lambda _: port_of, port=port)
    one.meet(until=time.monotonic() + 0.6, patience_s=0.3)
    return one


@pytest.fixture
def listen() -> Callable[..., Listener]:
    made: list[Listener] = []

    def start(**options: object) -> Listener:
        made.append(Listener(**{"node": HERE, "token": "t", "port": 0, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_the_offset_is_exact_when_both_ways_take_the_same_time() -> None:
    sample = Sample(sent=100.0, received=107.2, answered=107.3, back=100.5)
    assert sample.offset_s == pytest.approx(7.0)
    assert sample.round_trip_s == pytest.approx(0.4)


def test_the_error_is_at_most_half_the_way() -> None:
    # 0.4 s there, nothing back: the worst case
    sample = Sample(sent=0.0, received=5.4, answered=5.4, back=0.4)
    assert abs(sample.offset_s - 5.0) <= sample.round_trip_s / 2 + 1e-9
    assert best([sample, Sample(0.0, 5.1, 5.1, 0.2)]).round_trip_s == pytest.approx(0.2)


@pytest.mark.parametrize("shift", [7.5, -3.0, 0.0])
def test_a_peer_whose_clock_is_off(listen: Callable[..., Listener], shift: float) -> None:
    there = listen(clock=lambda: time.time() + shift)
    one = visit(there.port)
    told = one.facts()
    one.leave()
    assert told.problem == "" and told.address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert told.offset_s == pytest.approx(shift, abs=told.round_trip_s / 2 + 0.005)


def test_the_port_that_a_file_tells_is_taken(listen: Callable[..., Listener]) -> None:
    there = listen()
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    assert visit(port, port_of=there.port).facts().problem == ""
    assert "no connection to" in visit(port).facts().problem


@pytest.mark.parametrize("other", [{"token": "another asking"}, {"node": "another"}])
def test_somebody_else_at_that_port_is_not_the_node(
    listen: Callable[..., Listener], other: dict[str, str]
) -> None:
    told = visit(listen(**other).port).facts()
    assert "another program answers" in told.problem and told.offset_s is None


def test_a_program_that_says_nothing_is_left(listen: Callable[..., Listener]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True).start()
        assert visit(silent.getsockname()[1]).facts().problem != ""


def test_a_name_without_address() -> None:
    assert "has no address" in visit(1, name="no-such-node.invalid").facts().problem


def test_a_listener_takes_the_next_port_when_one_is_taken(listen: Callable[..., Listener]) -> None:
    first = listen()
    assert first.port < listen(port=first.port).port <= first.port + 15


def test_who_asks_stays_until_its_visitors_have_left(listen: Callable[..., Listener]) -> None:
    there = listen()
    one = visit(there.port)
    begin = time.monotonic()
    there.wait_until_left({"me"}, until=begin + 0.2)
    assert time.monotonic() >= begin + 0.2  # still there
    one.leave()
    there.wait_until_left({"me"}, until=begin + 30)
    assert time.monotonic() < begin + 20
    begin = time.monotonic()
    there.wait_until_left({"me", "never"}, until=begin + 0.1)
    assert time.monotonic() >= begin + 0.1
