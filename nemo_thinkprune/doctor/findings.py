"""What the doctor found: one check on one or several nodes, how bad it is, and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from nemo_thinkprune.doctor.hostlist import fold


class Level(IntEnum):
    """How bad a finding is; higher is worse."""

    OK = 0
    NOTE = 1
    PROBLEM = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `where` are node names, empty for what is not about one node; `remedy` is what to do or type."""

    check: str
    level: Level
    found: str
    remedy: str = ""
    where: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The nodes as Slurm writes them: n[1-3]."""
        return fold(self.where)


def ok(check: str, found: str, *where: str) -> Finding:
    """A check with nothing to complain about."""
    return Finding(check, Level.OK, found, "", where)


def note(check: str, found: str, remedy: str = "", *where: str) -> Finding:
    """Something that need not break the run and may not be meant."""
    return Finding(check, Level.NOTE, found, remedy, where)


def problem(check: str, found: str, remedy: str, *where: str) -> Finding:
    """Something that would break the run, or lose work."""
    return Finding(check, Level.PROBLEM, found, remedy, where)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings that differ in their nodes alone become one, in the order in which the first of each came."""
    nodes: dict[Finding, list[str]] = {}
    for finding in findings:
        known = nodes.setdefault(replace(finding, where=()), [])
        known += [name for name in finding.where if name not in known]
    return [replace(finding, where=tuple(names)) for finding, names in nodes.items()]
