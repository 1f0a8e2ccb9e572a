"""Slurm's lists of node names: n[1-3,07],login.  Read here because containers seldom have scontrol."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PART = re.compile(r"([^\[,]*)\[([^\]]*)\]|([^\[,]+)")
_NUMBERED = re.compile(r"(.*?)(\d+)")


def expand(text: str) -> list[str]:
    """Names in a list such as ``gpu[01-03,7]-ib,login``, in its order; at most 100,000 of them."""
    names: list[str] = []
    for item in _items(text):
        names += _expanded(item)
        del names[100_000:]
    return names


def fold(names: Iterable[str]) -> str:
    """Names as Slurm writes them: n1, n2, n3, login become ``n[1-3],login``; names of one stem stand together."""
    stems: dict[tuple[str, int], list[int]] = {}
    order: list[tuple[str, int] | str] = []
    for name in dict.fromkeys(names):
        match = _NUMBERED.fullmatch(name)
        key = (match[1], len(match[2]) if match[2].startswith("0") else 0) if match else name
        if key not in order:
            order.append(key)
        if match and isinstance(key, tuple):
            stems.setdefault(key, []).append(int(match[2]))
    return ",".join(key if isinstance(key, str) else _folded(key, sorted(stems[key])) for key in order)


def _items(text: str) -> list[str]:
    """The list cut at the commas outside of brackets."""
    return [item for item in re.split(r",(?![^\[]*\])", text.strip()) if item]


def _expanded(item: str) -> list[str]:
    names = [""]
    for match in _PART.finditer(item):
        prefix, ranges, plain = match[1] or "", match[2], match[3]
        endings = [plain] if ranges is None else [prefix + number for number in _numbers(ranges)]
        names = [name + ending for name in names for ending in endings][:100_000]
    return names


def _numbers(ranges: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        if not dash or not (first.isdecimal() and last.isdecimal()):
            found.append(part)
            continue
        last_number = min(int(last), int(first) + 100_000)
        found += [str(number).zfill(len(first)) for number in range(int(first), last_number + 1)]
    return found


def _folded(key: tuple[str, int], numbers: list[int]) -> str:
    stem, width = key
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [
        str(run[0]).zfill(width) + (f"-{str(run[-1]).zfill(width)}" if len(run) > 1 else "") for run in runs
    ]
    return f"{stem}{shown[0]}" if len(numbers) == 1 else f"{stem}[{','.join(shown)}]"
