"""The journal of an unfinished folder: which jobs are done, and the checksums of what they wrote.

One line a record: the CRC-32 of the rest of the line as 8 hex digits, a space, JSON. The first record holds the
plan's digest, every other one a finished job. A line that was cut short by a crash does not fit its CRC-32.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from checkpoints_tools.copying.jobs import Done, Range

_VERSION = 1


def header_line(plan_id: str) -> bytes:
    """The record that opens the journal of a plan."""
    return _line({"plan": plan_id, "version": _VERSION})


def done_line(done: Done, folder: Path) -> bytes:
    """The record of a finished job; its files lie in `folder`."""
    ranges = [[str(r.file.relative_to(folder)), r.offset, r.nbytes, r.crc32] for r in done.ranges]
    return _line({"job": done.name, "ranges": ranges, "digests": done.digests})


def read_journal(data: bytes, plan_id: str, folder: Path) -> dict[str, Done] | None:
    """The finished jobs of a journal by name, or None where it is not of this plan. Damaged records are left out."""
    records = [record for line in data.split(b"\n") if (record := _record(line)) is not None]
    if not records or (records[0].get("plan"), records[0].get("version")) != (plan_id, _VERSION):
        return None
    finished = (_done(record, folder) for record in records[1:])
    return {done.name: done for done in finished if done is not None}


def is_journal(data: bytes) -> bool:
    """Whether a file's content begins as a journal of any plan does."""
    first = _record(data.partition(b"\n")[0])
    return first is not None and {"plan", "version"} <= first.keys()


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _done(record: dict[str, Any], folder: Path) -> Done | None:
    try:
        ranges = tuple(_ranges(record["ranges"], folder))
        return Done(str(record["job"]), ranges, {str(k): str(v) for k, v in record["digests"].items()})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _ranges(entries: Iterable[Any], folder: Path) -> Iterable[Range]:
    for name, offset, nbytes, crc in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(name)
        yield Range(folder / name, int(offset), int(nbytes), int(crc))
