"""Reading and writing at positions of many files, with few of them open."""

import ctypes
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from checkpoints_tools.copying.disk import read_error, write_error
from checkpoints_tools.errors import CheckpointError

_MOST_OPEN = 32
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of <linux/fs.h>


class Files:
    """Descriptors of one thread: at most 32 are open, those used last. Errors come as CheckpointError.

    `locks`, shared by threads, are held while a file is written: the kernel lets one thread at a time write to a
    file, and those that wait for it in there burn their core, where those that wait for a lock sleep.
    """

    def __init__(self, locks: Mapping[Path, threading.Lock] | None = None) -> None:
        self._open: OrderedDict[tuple[Path, bool], int] = OrderedDict()
        self._locks: Mapping[Path, AbstractContextManager[object]] = locks or {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, file: Path, view: Any, offset: int) -> None:
        """Fill `view` (a writable buffer of bytes) from byte `offset` of `file`."""
        try:
            descriptor = self._descriptor(file, writing=False)
            at, left = offset, memoryview(view)
            while left:
                count = os.preadv(descriptor, [left], at)
                if count == 0:
                    raise CheckpointError(
                        f"{file} is truncated: it ends at byte {at}, {offset + len(view)} are needed"
                    )
                at, left = at + count, left[count:]
        except OSError as error:
            raise read_error(file, error) from error

    def write(self, file: Path, view: Any, offset: int) -> None:
        """Write the bytes of `view` at byte `offset` of `file`, which is made where it is missing."""
        try:
            descriptor = self._descriptor(file, writing=True)
            left = memoryview(view)
            with self._locks.get(file, nullcontext()):
                while left:
                    count = os.pwrite(descriptor, left, offset)
                    offset, left = offset + count, left[count:]
        except OSError as error:
            raise write_error(file, error) from error

    def start_writing(self, file: Path, offset: int, nbytes: int) -> None:
        """Let the kernel begin to write these bytes to the disk, without waiting for it.

        Otherwise it begins when gigabytes have gathered, and the sync at the end waits for all of them.
        """
        if (start := _sync_file_range()) is not None:
            start(self._descriptor(file, writing=True), offset, nbytes, _START_WRITING)

    def _descriptor(self, file: Path, *, writing: bool) -> int:
        key = (file, writing)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if len(self._open) >= _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        # A link in the folder we write to could lead anywhere: never follow one.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW if writing else os.O_RDONLY
        descriptor = self._open[key] = os.open(file, flags | os.O_CLOEXEC, 0o666)
        return descriptor


def sync_file(file: Path) -> None:
    """Make a written file durable. Raises CheckpointError where the disk refuses."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(file, error) from error


def drop_cached(file: Path) -> None:
    """Make a written file durable and have the system forget its content, so that it is next read from the disk.

    Raises CheckpointError where the disk refuses to write; that the system may keep the content is no error.
    """
    sync_file(file)
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function
