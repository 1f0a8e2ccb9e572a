"""Is a shared folder shared?  Every node writes a file of its own there and looks for those of the others."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from nemo_thinkprune.doctor.facts import File, Folder
from nemo_thinkprune.doctor.host import space
from nemo_thinkprune.recipe.files import write_atomic

_LOCK = "lock"
_SEEN = ".seen"
_LOOK = ".look"
_POLL_S = 0.2
_REFRESH_S = 1.0


class Canary:
    """This node's file in one folder, and what it sees of the others."""

    def __init__(self, *, label: str, folder: str, token: str, node: str) -> None:
        self.label = label
        self.parent = Path(folder)
        self.folder = self.parent / f".thinkprune-doctor-{token}"
        self.problem = ""
        self._token, self._node = token, node
        self._lock: int | None = None
        self._lock_problem = ""
        self._refreshed = time.monotonic()

    def write(self, port: int) -> None:
        """Write aside, sync and rename, as checkpoints are; `problem` says what did not work."""
        if not self.parent.is_dir():
            self.problem = "there is no such folder"
            return
        content = {"token": self._token, "port": port}
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomic(self.folder / f"{self._node}.json", json.dumps(content))
        except OSError as error:
            self.problem = f"cannot be written: {error.strerror or error}"

    def hold_lock(self) -> None:
        """Keep a file locked until `remove`, so that other nodes can see whether they notice.

        That it cannot be locked is told as the facts' `lock`: the folder may be shared all the same.
        """
        if self.problem:
            return
        try:
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_problem = error.strerror or str(error)

    def seen(self) -> dict[str, int]:
        """The nodes whose files are here, with the ports that they listen on."""
        found = {}
        self._refresh()
        with suppress(OSError):
            # looking for a name may be answered from memory where a listing is asked for anew
            for name in os.listdir(self.folder):
                if not name.endswith(".json"):
                    continue
                with suppress(OSError, ValueError, KeyError, TypeError):
                    content = json.loads((self.folder / name).read_bytes())
                    if content["token"] == self._token:
                        found[name.removesuffix(".json")] = int(content["port"])
        return found

    def acknowledge(self) -> set[str]:
        """The nodes whose files are here, each told so by a file of its own: it stays until then."""
        seen = self.seen().keys() - {self._node}
        for name in seen:
            with suppress(OSError):
                (self.folder / f"{name}{_SEEN}").touch()
        return seen

    def waits_for(self, names: Collection[str], asker: str) -> bool:
        """Whether the file of one of `names` is not here yet, or `asker` has not seen this node's."""
        seen = self.seen().keys()
        with suppress(OSError):
            return not set(names) <= seen or (
                asker in seen and f"{self._node}{_SEEN}" not in os.listdir(self.folder)
            )
        return True

    def facts(self, asker: str) -> Folder:
        """What is known by now; asks for the lock that `asker` holds."""
        seen = sorted(self.seen())
        return Folder(
            self.label,
            str(self.parent),
            self.problem,
            file_system(self.parent),
            seen,
            self._lock_problem or (self._other_lock() if asker in seen and not self.problem else "unknown"),
            space(str(self.parent)),
        )

    def remove(self) -> None:
        """Take this node's file away, and the folder with the last of them."""
        for name in (f"{self._node}.json", f"{self._node}{_SEEN}"):
            with suppress(OSError):
                (self.folder / name).unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            with suppress(OSError):
                (self.folder / _LOCK).unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def clear(self) -> None:
        """Remove the folder with whatever nodes that died have left in it."""
        self.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refresh(self) -> None:
        """Make and remove a file: a network file system then forgets what it remembers of the folder.

        NFS keeps a listing for up to a minute (acdirmax), unless this machine changes the folder itself.
        """
        if self.problem or time.monotonic() < self._refreshed + _REFRESH_S:
            return
        self._refreshed = time.monotonic()
        name = self.folder / f"{self._node}{_LOOK}"
        with suppress(OSError):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644))
        with suppress(OSError):
            os.unlink(name)

    def _other_lock(self) -> str:
        try:
            descriptor = os.open(self.folder / _LOCK, os.O_RDWR)
        except OSError as error:
            return error.strerror or str(error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return "local"
        except BlockingIOError:
            return ""
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(descriptor)


def wait_for(canaries: Collection[Canary], names: Collection[str], *, asker: str, until: float) -> None:
    """Wait until every folder shows the files of all `names`, and those of this node to `asker`.

    At most until the monotonic time `until`; an empty `asker` sees nothing.
    """
    usable = [canary for canary in canaries if not canary.problem]
    while any(canary.waits_for(names, asker) for canary in usable):
        if time.monotonic() >= until:
            return
        time.sleep(_POLL_S)


def file_facts(paths: dict[str, str]) -> list[File]:
    """Whether this node can read the files and folders that a run needs."""
    return [_file(label, Path(os.path.expanduser(path))) for label, path in paths.items()]


def _file(label: str, path: Path) -> File:
    try:
        if path.is_dir():
            os.listdir(path)
            return File(label, str(path))
        with path.open("rb") as stream:
            stream.read(1)
            return File(label, str(path), size=os.fstat(stream.fileno()).st_size)
    except OSError as error:
        return File(label, str(path), error.strerror or str(error))


def file_system(path: Path) -> str:
    """The type of the file system that holds `path` (nfs4, lustre, tmpfs, ...); empty when it is not told."""
    try:
        real = os.path.realpath(path)
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if point and inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = Path(os.path.abspath(path))
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
