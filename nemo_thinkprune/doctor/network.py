"""Ports, addresses and proxies of this machine; neighbours are in `mesh`."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.request import getproxies_environment
from urllib.request import proxy_bypass_environment as bypasses  # type: ignore[attr-defined]

from nemo_thinkprune.doctor.facts import Network, Peer
from nemo_thinkprune.doctor.mesh import addresses_of

NEMO_RL_PORTS = range(11001, 28001)
"""vLLM servers, environments, vLLM and PyTorch rendezvous (NeMo-RL v0.7.0, distributed/virtual_cluster.py)."""
_LISTEN = "0A"


def network_facts(*, port: int, peers: list[Peer], problem: str = "") -> Network:
    """What this machine tells about its network; `port` is our own listener's, which is not counted."""
    hostname = socket.gethostname()
    addresses: list[str] = []
    try:
        addresses = addresses_of(hostname)
    except OSError as error:
        problem = problem or f"the host name {hostname} has no address: {error.strerror or error}"
    others = [name for peer in peers for name in (peer.name, *peer.addresses)]
    proxies = getproxies_environment()
    return Network(
        port,
        addresses,
        [used for used in listening_ports() if used in NEMO_RL_PORTS and used != port],
        ephemeral_ports(),
        sorted(f"{scheme}_proxy" for scheme in proxies if scheme in ("http", "https", "all", "grpc")),
        proxied([*others, *addresses], proxies) if proxies else [],
        peers,
        problem,
    )


def listening_ports(tables: Iterable[str] = ("/proc/net/tcp", "/proc/net/tcp6")) -> list[int]:
    """TCP ports that somebody listens on, read from the kernel's tables."""
    found = set()
    for table in tables:
        try:
            lines = Path(table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if len(fields) > 3 and fields[3] == _LISTEN:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found)


def ephemeral_ports() -> tuple[int, int]:
    """First and last port that the kernel gives to outgoing connections; (0, 0) where it does not say."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 0, 0


def proxied(names: Iterable[str], proxies: Mapping[str, str]) -> list[str]:
    """Those of `names` that connections go to through a proxy: no_proxy does not name them."""
    if os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).strip() == "*":
        return []
    return [name for name in dict.fromkeys(names) if not bypasses(name, dict(proxies))]


def is_loopback(address: str) -> bool:
    """Whether an address means the machine itself and cannot be given to others."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
