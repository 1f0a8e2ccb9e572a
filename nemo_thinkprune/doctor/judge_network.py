"""Ports, names and clocks: can the nodes talk to each other?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemo_thinkprune.doctor.facts import NodeFacts
from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.doctor.hostlist import fold
from nemo_thinkprune.doctor.needs import Needs
from nemo_thinkprune.doctor.network import NEMO_RL_PORTS, is_loopback

_CLOCK_NOTE_S, _CLOCK_PROBLEM_S = 1.0, 5.0


def judge_network(nodes: Sequence[NodeFacts], needs: Needs, *, is_login: bool = False) -> Iterator[Finding]:
    """Findings about all nodes and every pair of them; `is_login`: the run will be elsewhere."""
    several = len(nodes) > 1 or (needs.nodes > 1 and not is_login)
    for one in nodes:
        yield from _names(one, several=several)
        if needs.engine == "nemo-rl":
            yield from _ports(one)
            yield from _proxies(one)
    if len(nodes) > 1:
        yield from _pairs(nodes)
        yield from judge_clocks(nodes)


def judge_clocks(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Clocks against that of the first node, else of any that measured."""
    first, measured = nodes[0].node, {}
    for one in nodes:
        for peer in one.network.peers:
            if peer.offset_s is None:
                continue
            if one.node == first:
                measured[peer.name] = (peer.offset_s, peer.round_trip_s)
            elif peer.name == first:
                measured.setdefault(one.node, (-peer.offset_s, peer.round_trip_s))
    fine = []
    for name, (offset, round_trip) in measured.items():
        told = (
            f"{abs(offset):.3g} s {'ahead of' if offset > 0 else 'behind'} that of {first} "
            f"(within {round_trip / 2 * 1000:.2g} ms)"
        )
        remedy = f"let chrony or ntpd run on {name}: chronyc makestep"
        if abs(offset) > _CLOCK_PROBLEM_S:
            yield problem("clock", f"its clock is {told}", remedy, name)
        elif abs(offset) > _CLOCK_NOTE_S:
            yield note("clock", f"its clock is {told}", remedy, name)
        else:
            fine.append(name)
    if fine:
        worst = max(abs(measured[name][0]) for name in fine)
        yield ok("clock", f"within {worst * 1000:.2g} ms of {first}'s", *fine)


def _names(one: NodeFacts, *, several: bool) -> Iterator[Finding]:
    network, name = one.network, one.host.hostname or one.node
    if network.problem:
        yield problem("network", network.problem, f"give {name} an address in DNS or /etc/hosts", one.node)
    elif network.addresses and all(is_loopback(address) for address in network.addresses):
        told = f"the host name {name} means {network.addresses[0]} here, an address of this machine alone"
        remedy = f"take {name} out of the line of {network.addresses[0]} in /etc/hosts"
        if several:
            yield problem("network", told, remedy, one.node)
        else:
            yield ok("network", f"{told}; enough for one node", one.node)


def _ports(one: NodeFacts) -> Iterator[Finding]:
    low, high = one.network.ephemeral
    first, last = NEMO_RL_PORTS[0], NEMO_RL_PORTS[-1]
    if low and low <= last and high >= first:
        yield note(
            "ports",
            f"the kernel gives ports {low}-{high} to outgoing connections, among them some that NeMo-RL listens on "
            f"({first}-{last}): now and then one is taken",
            'sysctl -w net.ipv4.ip_local_port_range="32768 60999" on the nodes',
            one.node,
        )
    if used := one.network.listening:
        shown = ", ".join(str(port) for port in used[:6]) + (" ..." if len(used) > 6 else "")
        yield note(
            "ports",
            f"in use between {first} and {last}, from where NeMo-RL takes its own: {shown}; it looks for others",
            "ask for whole nodes (--exclusive), or see whose they are: ss -ltnp",
            one.node,
        )
    elif one.network.port:
        yield ok("ports", f"{first}-{last} are free", one.node)


def _proxies(one: NodeFacts) -> Iterator[Finding]:
    if one.network.proxied:
        missing = ",".join(one.network.proxied[:8])
        yield note(
            "proxy",
            f"{', '.join(one.network.proxies)} is set and no_proxy does not name the nodes: HTTP between them goes to "
            "the proxy (Ray's own calls do not)",
            f"export no_proxy=$no_proxy,{missing}",
            one.node,
        )


def _pairs(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    reached, answered = (
        True,
        {one.node for one in nodes},
    )  # of the others that they are silent is told already
    for one in nodes:
        wrong: dict[str, list[str]] = {}
        for peer in one.network.peers:
            if peer.name not in answered:
                continue
            if peer.addresses and all(is_loopback(address) for address in peer.addresses):
                wrong.setdefault(f"the name means {peer.addresses[0]} there", []).append(peer.name)
            elif peer.problem:
                wrong.setdefault(peer.problem, []).append(peer.name)
        for why, names in wrong.items():
            reached = False
            yield problem(
                "connections",
                f"does not reach {fold(names)}: {why}",
                "open the TCP ports between the nodes (firewall), and correct their names in DNS or /etc/hosts",
                one.node,
            )
    if reached:
        used = {peer.address for one in nodes for peer in one.network.peers}
        kind = "IPv6" if used and all(":" in address and "." not in address for address in used) else "IPv4"
        yield ok("connections", f"every node reaches every other ({kind})", *(one.node for one in nodes))
