"""Room on the disk, and what to say when it refuses."""

import errno
import shutil
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.sizes import size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where `folder` is or will be."""
    folder = folder.absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise read_error(folder, error) from error


def allocated_bytes(folder: Path) -> int:
    """Bytes of disk that the files below `folder` take."""
    return sum(f.lstat().st_blocks * 512 for f in folder.rglob("*") if f.is_file())


def require_space(folder: Path, nbytes: int) -> None:
    """Raise CheckpointError unless `nbytes` more bytes fit where `folder` is or will be."""
    free = free_bytes(folder)
    if nbytes > free:
        raise CheckpointError(
            f"{folder}: {size(nbytes)} are to be written and {size(free)} are free; "
            "free some room or choose another disk"
        )


def read_error(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{file} is missing")
    return CheckpointError(f"{file} cannot be read: {error.strerror or error}")


def write_error(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be written; says how to go on."""
    again = "and run the same command again: it goes on where it stopped"
    if error.errno in _FULL:
        return CheckpointError(
            f"{file}: the disk or the quota is full ({error.strerror}); free some room {again}"
        )
    if error.errno == errno.EFBIG:
        return CheckpointError(
            f"{file} may not grow further ({error.strerror}); raise the limit on file sizes (ulimit -f), "
            f"or choose smaller files, {again}"
        )
    if error.errno in _DENIED:
        return CheckpointError(
            f"{file} cannot be written ({error.strerror}); choose a folder you may write to, or allow it {again}"
        )
    return CheckpointError(f"{file} cannot be written: {error.strerror or error}")
