"""Files that are never seen half-written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees either the old content or the new.

    Writes a temporary file in the same folder (which is made if missing), syncs it, renames it over `path`
    and syncs the folder.  Text is written as UTF-8 with its newlines unchanged.  The file gets the mode that
    an ordinary `open` would have given it, or keeps the mode of the file it replaces.

    Raises:
        OSError: when the disk is full or the folder cannot be written; the old content is then untouched
            and no temporary file is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fchmod(stream.fileno(), _mode_for(target))
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_dir(target.parent)


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make the names in folder `path` durable: a rename counts only once its folder is synced.

    Raises:
        OSError: when `path` is not a folder or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is there; False also for a name that no file can have (too long, a NUL inside)."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is there; False also for a name that no folder can have."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def sha256_file(path: str | os.PathLike[str], *, pulse: Callable[[], None] | None = None) -> str:
    """Return the SHA-256 of a file's bytes as 64 lowercase hex digits; `pulse` is called for each megabyte read.

    Raises:
        OSError: when the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if pulse is not None:
                pulse()
    return digest.hexdigest()


def _mode_for(target: Path) -> int:
    """Return the permission bits for a new or replaced file (mkstemp alone would make it private)."""
    with contextlib.suppress(FileNotFoundError):
        return target.stat().st_mode & 0o777
    # The umask can only be read by setting it; a thread that makes a file in between gets the same mask back.
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
