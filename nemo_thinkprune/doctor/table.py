"""Findings on a terminal, or as plain lines in a log; problems come last and together."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nemo_thinkprune.doctor.findings import Finding, Level

_COLOURS = {Level.OK: "green", Level.NOTE: "yellow", Level.PROBLEM: "bold red"}
_WIDTH = 110


def show(findings: Sequence[Finding], *, closing: str, stream: TextIO) -> None:
    """Write findings, best first, and the line that tells the next command."""
    ordered = sorted(findings, key=lambda finding: finding.level)
    if stream.isatty():
        console = Console(file=stream)
        console.print(_table(ordered))
        console.print(closing, markup=False, highlight=False, soft_wrap=True)
    else:
        lines = [line for finding in ordered for line in _lines(finding)]
        stream.write("\n".join([*lines, "", closing]) + "\n")
        stream.flush()


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_places = any(finding.where for finding in findings)
    table.add_column("")
    table.add_column("check", overflow="fold")
    if has_places:
        table.add_column("node", overflow="fold")
    table.add_column("found", ratio=2, overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.level]
        told = escape(finding.found) + (f"\n[dim]->[/dim] {escape(finding.remedy)}" if finding.remedy else "")
        places = [escape(finding.place)] if has_places else []
        table.add_row(f"[{colour}]{finding.level}[/{colour}]", escape(finding.check), *places, told)
    return table


def _lines(finding: Finding) -> list[str]:
    place = f" [{finding.place}]" if finding.where else ""
    indent = " " * 9
    lines = []
    for number, part in enumerate(f"{finding.check}{place}: {finding.found}".splitlines()):
        first = f"{finding.level!s:<9}" if number == 0 else indent
        lines += textwrap.wrap(
            part, _WIDTH, initial_indent=first, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    if finding.remedy:  # on one line, to be copied
        lines.append(f"{indent}-> {finding.remedy}")
    return lines
