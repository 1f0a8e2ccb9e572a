"""What goes wrong under a copy: the message names the file and says what to do, and all threads stop."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from support.copies import simple_jobs

from checkpoints_tools.copying import files
from checkpoints_tools.copying.disk import free_bytes, require_space
from checkpoints_tools.copying.files import Files
from checkpoints_tools.copying.jobs import Job
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError


def make(tmp_path: Path, jobs: int = 8) -> list[Job]:
    return simple_jobs(tmp_path / "source", tmp_path / "target", jobs=jobs)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_truncated_source_is_named(tmp_path: Path) -> None:
    jobs = make(tmp_path)
    file = tmp_path / "source" / "file_1"
    os.truncate(file, file.stat().st_size - 1)
    before = open_files(), threading.active_count()
    with pytest.raises(CheckpointError, match=r"file_1 is truncated: it ends at byte \d+, \d+ are needed"):
        run_jobs(jobs, threads=3, digests=False)
    assert (open_files(), threading.active_count()) == before


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    jobs = make(tmp_path)
    (tmp_path / "source" / "file_0").unlink()
    with pytest.raises(CheckpointError, match="file_0 is missing"):
        run_jobs(jobs, threads=2, digests=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "full.*run the same command again"),
        (errno.EDQUOT, "quota.*run the same command again"),
        (errno.EFBIG, "ulimit -f.*run the same command again"),
        (errno.EROFS, "Read-only.*choose a folder"),
        (errno.EACCES, "Permission denied.*choose a folder"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_refusing_disk_is_explained(
    call: str, number: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    jobs = make(tmp_path)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(CheckpointError, match=rf"target/file_0.*{text}"):
        run_jobs(jobs, threads=2, digests=False)


def test_the_first_error_stops_every_thread(tmp_path: Path) -> None:
    jobs = make(tmp_path, jobs=40)
    seen: list[int] = []

    def fail_third(nbytes: int) -> None:
        seen.append(nbytes)
        if len(seen) == 3:
            raise CheckpointError("third")

    with pytest.raises(CheckpointError, match="third"):
        run_jobs(jobs, threads=4, digests=False, on_bytes=fail_third, block=1024)
    assert len(seen) <= 3 + 4  # of 2560 tiles
    assert not any(thread.name.endswith("(_guarded)") for thread in threading.enumerate())


def test_an_interrupt_stops_every_thread(tmp_path: Path) -> None:
    script = """
import sys, threading, time
from pathlib import Path
from support.copies import simple_jobs
from checkpoints_tools.copying.run import run_jobs
folder = Path(sys.argv[1])
jobs = simple_jobs(folder / "source", folder / "target", jobs=4)
def slow(nbytes):
    print("copying", flush=True)
    time.sleep(0.2)
try:
    run_jobs(jobs, threads=2, digests=False, on_bytes=slow, block=1024)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    process.send_signal(2)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[-1] == "interrupted 1"
    assert len(lines) < 100  # of 256 tiles


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}


def test_a_limit_on_file_sizes_is_explained(tmp_path: Path) -> None:
    jobs = make(tmp_path)
    script = """
import resource, sys
from pathlib import Path
from support.copies import simple_jobs
from checkpoints_tools.copying.run import run_jobs
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run_jobs(simple_jobs(folder / "source", folder / "target", jobs=8), threads=2, digests=False)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, env=environment()
    )
    assert "CheckpointError" in result.stderr and "ulimit -f" in result.stderr
    run_jobs(jobs, threads=2, digests=False)


def test_a_folder_without_permission_is_explained() -> None:
    """In a process without root's privileges."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        jobs = simple_jobs(folder / "source", folder / "target", jobs=1)
        (folder / "target").chmod(0o555)
        script = f"""
import os
from pathlib import Path
from support.copies import simple_jobs
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError
folder = Path({name!r})
if os.geteuid() == 0:
    os.seteuid(65534)
for attempt in (
    lambda: run_jobs(simple_jobs(folder / "source", folder / "target", jobs=1), threads=1, digests=False),
    lambda: PartialFolder(folder / "target" / "out", "plan").__enter__(),
):
    try:
        attempt()
    except CheckpointError as error:
        print(error)
"""
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
        )
        lines = result.stdout.splitlines()
        assert len(lines) == 2, result.stderr
        assert all("choose a folder you may write to" in line for line in lines)
        assert jobs and not list((folder / "target").iterdir())


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    before = open_files()
    with Files() as cache:
        for n in range(100):
            cache.write(tmp_path / f"f{n}", bytes([n]), 0)
        assert open_files() - before <= files._MOST_OPEN
        view = bytearray(1)
        for n in range(100):
            cache.read(tmp_path / f"f{n}", view, 0)
            assert view[0] == n
    assert open_files() == before


def test_a_link_where_we_write_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(victim)
    with Files() as cache, pytest.raises(CheckpointError, match="cannot be written"):
        cache.write(tmp_path / "link", b"x", 0)
    assert victim.read_bytes() == b"precious"


def test_room_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.5)
    require_space(tmp_path, 0)
    with pytest.raises(CheckpointError, match="1000 PB are to be written"):
        require_space(tmp_path / "not" / "yet", 10**18)
