"""Every file of a checkpoint with its size and digest: what makes damage visible before it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_thinkprune.recipe.files import fsync_dir, sha256_file, write_atomic

MANIFEST = "manifest.json"
_VERSION = 1
_THREADS = 4


Pulse = Callable[[], None]


def seal(folder: Path, *, pulse: Pulse | None = None) -> None:
    """Sync every file below `folder`, then write its manifest, then sync the folders.

    `pulse` is called, from several threads, for every part that is read: a sign of life while it takes long.

    Raises:
        OSError: The disk is full or a file cannot be read; there is no manifest then.
    """
    files = sorted(_files(folder))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(lambda path: _synced_digest(path, pulse), files))
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, digests, strict=True)
    }
    write_atomic(folder / MANIFEST, _text(entries))
    for parent in sorted({path.parent for path in files} | {folder}, reverse=True):
        fsync_dir(parent)


def verify(folder: Path, *, digests: bool = True, pulse: Pulse | None = None) -> list[str]:
    """What is wrong with a sealed folder, a line for each damaged file; empty when nothing is.

    Without `digests` only presence and sizes are compared, which costs no reading.  `pulse` as in `seal`.
    """
    try:
        entries = _read(folder / MANIFEST)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} is damaged ({error})"]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda item: _problem(folder, *item, digests=digests, pulse=pulse), entries.items())
        return [problem for problem in found if problem is not None]


def _problem(
    folder: Path, name: str, entry: dict[str, Any], *, digests: bool, pulse: Pulse | None
) -> str | None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{name} has {size} bytes instead of {entry['size']}"
        if digests and sha256_file(path, pulse=pulse) != entry["sha256"]:
            return f"{name} has changed (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a manifest; ValueError for anything but the very bytes that `seal` writes."""
    data = path.read_bytes()
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ValueError("unknown version")
    entries = content.get("files")
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.items())):
        raise ValueError("not a list of files")
    if _text(entries).encode() != data:
        raise ValueError("not as it was written")
    return entries


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and "\0" not in name
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
    )


def _text(entries: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"version": _VERSION, "files": entries}, indent=1) + "\n"


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if path != folder / MANIFEST:
                yield path


def _synced_digest(path: Path, pulse: Pulse | None) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return sha256_file(path, pulse=pulse)
