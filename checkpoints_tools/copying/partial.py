"""A folder that appears complete or not at all, and is gone on with where a run was cut short."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self

from checkpoints_tools.copying.crew import on_threads
from checkpoints_tools.copying.disk import read_error, write_error
from checkpoints_tools.copying.files import sync_file
from checkpoints_tools.copying.jobs import Done
from checkpoints_tools.copying.journal import done_line, header_line, is_journal, read_journal
from checkpoints_tools.copying.run import intact_ranges
from checkpoints_tools.errors import CheckpointError

_COPY_BYTES = 1 << 20
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class PartialFolder:
    """Builds `out` in the folder `out`.partial beside it.

        with PartialFolder(out, plan_id, sources=[source]) as partial:
            todo = [job for job in jobs if job.name not in partial.done]
            run_jobs(todo, threads=4, digests=True, on_done=partial.record)
            partial.write_file("config.json", data)
            partial.publish(last=["metadata.json"])

    Leaving the block without `publish` keeps `out`.partial: entering again with the same `plan_id` (a digest of
    the source and the options) goes on there, with another one starts over. `done` are the jobs finished
    earlier whose bytes still have the checksums written down. Files of jobs lie in `folder`.

    The journal is the file `out`.partial.journal; who holds its lock owns both.
    Raises CheckpointError: `out` exists and is no empty folder, overlaps a source, cannot be made; another
    process works on it; `out`.partial holds files and has no journal.
    """

    def __init__(self, out: Path, plan_id: str, *, sources: Sequence[Path] = (), threads: int = 4) -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.with_name(self.out.name + ".partial")
        self.done: dict[str, Done] = {}
        self._plan_id, self._threads = plan_id, threads
        self._sources = [Path(source) for source in sources]
        self._journal_file = self.folder.with_name(self.folder.name + ".journal")
        self._journal = -1
        self._made: set[Path] = set()

    def __enter__(self) -> Self:
        try:
            _check_out(self.out, self._sources)
        except CheckpointError:
            self._clear_stray_journal()
            raise
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            _check_out(self.out, [])  # another run may have finished it in between
            self._read_journal()
        except OSError as error:
            self._close()
            raise write_error(self.folder, error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal >= 0:
            with contextlib.suppress(OSError):  # nothing was begun: no room, say
                self.folder.rmdir()
                self._journal_file.unlink()
        self._close()

    def record(self, done: Done) -> None:
        """Note a finished job. Not synced: after a power loss its checksums tell whether the bytes are there."""
        try:
            self._append(done_line(done, self.folder))
        except OSError as error:
            raise write_error(self._journal_file, error) from error
        self.done[done.name] = done

    def path(self, name: str) -> Path:
        """Where file `name` (relative, with /) of the finished folder lies now; makes the folders above it.

        Raises CheckpointError for a name that leads out of the folder.
        """
        pure = PurePosixPath(name)
        if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\0" in name:
            raise CheckpointError(f"{name!r} is no name of a file inside {self.out}")
        path = self.folder.joinpath(*pure.parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path.parent, error) from error
        self._made.add(path)
        return path

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of one that an earlier run left."""
        path = self.path(name)
        try:
            with _create(path) as stream:
                stream.write(data)
        except OSError as error:
            raise write_error(path, error) from error

    def copy_file(self, source: Path, name: str) -> None:
        """Copy a file byte for byte (its content, where it is a link)."""
        path = self.path(name)
        try:
            stream = _open_regular(source)
        except OSError as error:
            raise read_error(source, error) from error
        with stream:
            try:
                with _create(path) as target:
                    shutil.copyfileobj(stream, target, _COPY_BYTES)
            except OSError as error:
                raise write_error(path, error) from error

    def publish(self, last: Sequence[str] = ()) -> None:
        """Make everything durable and rename the folder to its name.

        A file that no finished job wrote, and whose name this run never asked for, is of an earlier run that was
        given up, and is removed. The files named in `last` (marks of completeness, small) are taken away first
        and written again when all others are safe, so that not even a torn folder can carry one.
        """
        kept = [(name, self._take(name)) for name in last]
        try:
            self._remove_leftovers()
            files = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
            on_threads(sync_file, files, threads=self._threads)
            for name, data in kept:
                self.write_file(name, data)
                sync_file(self.path(name))
            for folder in sorted((p for p in self.folder.rglob("*") if p.is_dir()), reverse=True):
                sync_file(folder)
            sync_file(self.folder)
            os.rename(self.folder, self.out)  # replaces an empty folder, nothing else
            sync_file(self.out.parent)
            with contextlib.suppress(OSError):  # what matters is done
                self._journal_file.unlink()
        except OSError as error:
            raise write_error(self.out, error) from error

    def forget(self) -> None:
        """Trust nothing of what was written: it is removed, and the next run starts over."""
        try:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        except OSError as error:
            raise write_error(self.folder, error) from error
        self.done = {}

    def _remove_leftovers(self) -> None:
        ours = self._made | {r.file for done in self.done.values() for r in done.ranges}
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what lies in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in ours:
                path.unlink()

    def _take(self, name: str) -> bytes:
        path = self.path(name)
        try:
            data = path.read_bytes()
            path.unlink()
        except OSError as error:
            raise read_error(path, error) from error
        return data

    def _take_lock(self) -> None:
        """Open and lock the journal; its file says that the folder is ours."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise CheckpointError(f"{self.folder} is in the way; move or remove it")
        if not self._journal_file.exists() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise CheckpointError(f"{self.folder} is not of an unfinished run; move or remove it")
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._journal = os.open(self._journal_file, flags, 0o666)
        busy = CheckpointError(
            f"another process is writing {self.out}; wait for it, or choose another folder"
        )
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # some cluster file systems have none: go on without
                raise
        try:
            same = os.path.samestat(os.fstat(self._journal), os.stat(self._journal_file))
        except FileNotFoundError:
            same = False
        if not same:  # its holder has published between our opening and our locking
            raise busy

    def _clear_stray_journal(self) -> None:
        """Remove the journal of a run that was killed when all but this was done: OUT is there, OUT.partial not.

        As long as it lies there, a folder of that name would pass for ours.
        """
        if not self.out.is_dir() or not self._journal_file.is_file():
            return
        with contextlib.suppress(OSError, CheckpointError):  # the refusal of OUT is the news
            unused = not self.folder.exists() or not any(self.folder.iterdir())
            if unused and is_journal(self._journal_file.read_bytes()):
                self._take_lock()
                self._journal_file.unlink()
        self._close()

    def _read_journal(self) -> None:
        with open(self._journal, "rb", closefd=False) as stream:
            data = stream.read()
        found = read_journal(data, self._plan_id, self.folder)
        if found is None:
            self._start_over(data)
        self.folder.mkdir(exist_ok=True)
        if found is None:
            self._append(header_line(self._plan_id))
        elif not data.endswith(b"\n"):
            self._append(b"\n")  # ends the line that was cut short
        self.done = self._still_there(found or {})

    def _start_over(self, data: bytes) -> None:
        """Remove what another plan's run left; `data` is what lies in the journal's place.

        Only a journal of ours says that the folder is. It is emptied last, or a kill in between would take that away.
        """
        files = self.folder.is_dir() and any(self.folder.iterdir())
        if not is_journal(data) and (files or b"\n" in data):  # else it is new, or was cut in its first line
            raise CheckpointError(
                f"{self._journal_file} is not the journal of an unfinished run; move or remove it, and "
                f"{self.folder.name} with it"
            )
        if self.folder.exists():
            shutil.rmtree(self.folder)
        os.ftruncate(self._journal, 0)

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._journal, line) :]

    def _still_there(self, found: dict[str, Done]) -> dict[str, Done]:
        intact = intact_ranges([r for done in found.values() for r in done.ranges], threads=self._threads)
        return {name: done for name, done in found.items() if intact.issuperset(done.ranges)}

    def _close(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
        self._journal = -1


def _open_regular(source: Path) -> BinaryIO:
    """A pipe or device of that name would wait or never end."""
    if not stat.S_ISREG(source.stat().st_mode):
        raise CheckpointError(f"{source} is not a regular file")
    return open(source, "rb")


def _create(path: Path) -> BinaryIO:
    """A new file in place of any other; a link of that name is not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def _check_out(out: Path, sources: Sequence[Path]) -> None:
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise CheckpointError(f"{out} exists and is not a folder; choose another name")
        if out.is_dir() and any(out.iterdir()):
            raise CheckpointError(f"{out} exists and is not empty; remove it or choose another name")
        if os.path.ismount(out):
            raise CheckpointError(
                f"{out} is a mount point, which no folder can be renamed to; name one inside it"
            )
    except OSError as error:
        raise read_error(out, error) from error
    real = out.resolve()
    for source in (path.resolve() for path in sources):
        if real.is_relative_to(source):
            raise CheckpointError(f"{out} lies inside the source {source}; choose a folder outside it")
        if source.is_relative_to(real) or source.is_relative_to(real.with_name(real.name + ".partial")):
            raise CheckpointError(f"the source {source} lies inside {out}; choose another folder")
