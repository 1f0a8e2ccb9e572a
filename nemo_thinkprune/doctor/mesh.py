"""Can the nodes reach each other?  Every node listens on a port of the job and visits all others.

A visit is lines of text: ``hello TOKEN NAME`` (answer: ``hello TOKEN NAME``), ``clock`` (answer: two times in
seconds, received and answered), ``bye`` once the visitor needs nothing more of this node.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from nemo_thinkprune.doctor.clock import Clock, Sample, best
from nemo_thinkprune.doctor.facts import Peer

PORTS = 16
"""Ports tried from the one asked for on, where others may listen already."""
_ROUNDS = 8
_CONNECT_S = 2.0
_LONGEST_LINE = 400


class Listener:
    """Answers the visits of other nodes until it is closed."""

    def __init__(self, *, node: str, token: str, port: int, clock: Clock = time.time) -> None:
        self._hello = f"hello {token} {node}"
        self._token, self._clock = token, clock
        self._changed = threading.Condition()
        self._visiting: dict[str, int] = {}
        self._visited: set[str] = set()
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        self._socket.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_until_left(self, names: set[str], *, until: float) -> None:
        """Wait until each of `names` has been here and all visitors have left, at most until `until`."""
        with self._changed:
            while not (names <= self._visited and not any(self._visiting.values())):
                rest = until - time.monotonic()
                if rest <= 0 or not self._changed.wait(rest):
                    return

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):  # closing alone would leave the thread that accepts asleep
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                visitor, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(visitor,), daemon=True).start()

    def _serve(self, visitor: socket.socket) -> None:
        name = ""
        with visitor, suppress(OSError, ValueError), visitor.makefile("rb") as lines:
            visitor.settimeout(600)
            hello, token, name = lines.readline(_LONGEST_LINE).decode("ascii").split()
            if (hello, token) != ("hello", self._token):
                return
            self._count(name, 1)
            try:
                visitor.sendall(f"{self._hello}\n".encode())
                while lines.readline(_LONGEST_LINE).strip() == b"clock":
                    received = self._clock()
                    visitor.sendall(f"{received!r} {self._clock()!r}\n".encode())
            finally:
                self._count(name, -1)

    def _count(self, name: str, change: int) -> None:
        with self._changed:
            self._visited.add(name)
            self._visiting[name] = self._visiting.get(name, 0) + change
            self._changed.notify_all()


class Visit:
    """A connection to the listener of another node, kept until `leave`."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection, self._clock = connection, clock
        self._lines = connection.makefile("rb")
        self.address: str = connection.getpeername()[0]

    def hello(self, *, token: str, node: str, peer: str) -> bool:
        """Whether the other end is the node `peer`, asked in the same asking."""
        self._connection.sendall(f"hello {token} {node}\n".encode())
        return self._lines.readline(_LONGEST_LINE) == f"hello {token} {peer}\n".encode()

    def clock(self) -> Sample:
        """The most exact of some comparisons of the two clocks."""
        return best([self._sample() for _ in range(_ROUNDS)])

    def leave(self) -> None:
        """Tell the other end that it is not needed any more."""
        with suppress(OSError):
            self._connection.sendall(b"bye\n")
        with suppress(OSError):
            self._lines.close()
            self._connection.close()

    def _sample(self) -> Sample:
        sent = self._clock()
        self._connection.sendall(b"clock\n")
        received, answered = (float(word) for word in self._lines.readline(_LONGEST_LINE).split())
        return Sample(sent, received, answered, self._clock())


class Neighbour:
    """Another node: visited in a thread of its own until it answers or time is up."""

    def __init__(
        self, name: str, *, node: str, token: str, port_of: Callable[[str], int | None], port: int
    ) -> None:
        self.name = name
        self._node, self._token, self._port_of, self._port = node, token, port_of, port
        self._visit: Visit | None = None
        self.addresses: list[str] = []
        self.problem = "it was not tried"
        self.sample: Sample | None = None

    def meet(self, *, until: float, patience_s: float, clock: Clock = time.time) -> None:
        """Try to visit it, at most until `until`, or `patience_s` seconds after its file was seen."""
        announced: float | None = None
        while self._visit is None:
            known_port = self._port_of(self.name)
            if known_port is not None and announced is None:
                announced = time.monotonic()
            self._try(known_port or self._port, clock)
            now = time.monotonic()
            if now >= until or (announced is not None and now >= announced + patience_s):
                return
            if self._visit is None:
                time.sleep(0.2)

    def leave(self) -> None:
        """End the visit."""
        if self._visit is not None:
            self._visit.leave()

    def facts(self) -> Peer:
        """What came of it."""
        if self.sample is None or self._visit is None:
            return Peer(self.name, self.addresses, problem=self.problem)
        return Peer(
            self.name, self.addresses, self._visit.address, "", self.sample.offset_s, self.sample.round_trip_s
        )

    def _try(self, port: int, clock: Clock) -> None:
        try:
            self.addresses = addresses_of(self.name)
        except OSError as error:
            self.problem = f"its name has no address: {error.strerror or error}"
            return
        for address in self.addresses:
            try:
                connection = socket.create_connection((address, port), timeout=_CONNECT_S)
            except OSError as error:
                self.problem = f"no connection to {shown(address, port)}: {error.strerror or error}"
                continue
            visit = Visit(connection, clock)
            with suppress(OSError, ValueError):
                if visit.hello(token=self._token, node=self._node, peer=self.name):
                    self.sample = visit.clock()
                    self._visit = visit
                    return
            self.problem = f"another program answers at {shown(address, port)}"
            visit.leave()


def addresses_of(name: str) -> list[str]:
    """Addresses of a host name, IPv4 first, as Ray's head would be looked up.

    Raises:
        OSError: the name is not known.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in sorted(found, key=lambda item: item[0])))


def shown(address: str, port: int) -> str:
    """``1.2.3.4:5`` or ``[::1]:5``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _bound(port: int) -> socket.socket:
    """A socket on the first free port from `port` on, for IPv4 and IPv6 where the machine has both.

    Raises:
        OSError: all are taken.
    """
    dual = socket.has_dualstack_ipv6()
    family, host = (socket.AF_INET6, "::") if dual else (socket.AF_INET, "0.0.0.0")
    for number in range(port, port + PORTS if port else 1):
        try:
            return socket.create_server((host, number), family=family, dualstack_ipv6=dual)
        except OSError as error:
            failure = error
    raise failure
