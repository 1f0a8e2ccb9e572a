"""A full disk told as what it is: which file, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_SPARE = 1.05


class DiskFull(UserError):
    """There is no room for a file; what had been saved before is intact."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or write-protected disk into messages that name `path`.

    Raises:
        DiskFull: No space, no quota, or a limit on the size of files.
        UserError: The place may not be written.
        OSError: Anything else, unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"cannot write {path}: {error.strerror}; make room and run the same command again "
                "(everything saved before is intact)"
            ) from error
        if error.errno in _FORBIDDEN:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        raise


def check_disk_space(folder: Path, *, needed: int) -> None:
    """Make sure that `needed` bytes and a twentieth more are free where `folder` is.

    Raises:
        DiskFull: They are not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed * _SPARE:
        raise DiskFull(
            f"{folder} has {free / 1e9:.2f} GB free but a checkpoint needs about {needed * _SPARE / 1e9:.2f} GB: "
            "make room, or set checkpointing.keep_top_k, and run the same command again"
        )


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file and sync it; on an error the file is as it was.

    Raises:
        DiskFull: There is no room.
    """
    with disk_errors(path):
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            fsync_dir(path.parent)
