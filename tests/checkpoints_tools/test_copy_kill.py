"""A copy killed at any moment leaves no output, and the next run finishes it without redoing what was done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One process that forks a copy per attempt: an attempt can be killed anywhere and costs no start of Python.
DRIVER = """
import itertools, os, random, shutil, signal, sys, time
from pathlib import Path
from support.copies import simple_jobs
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.copying.run import run_jobs

folder = Path(sys.argv[1])
JOBS = 6
EVENTS = ("pwrite", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate")


def copy(out, *, slow=0.0):
    log = open(out.with_name("log"), "a")
    jobs = simple_jobs(folder / "source", out.with_name(out.name + ".partial"), jobs=JOBS)

    def record(done):
        partial.record(done)
        print(done.name, file=log, flush=True)

    with PartialFolder(out, "plan", threads=2) as partial:
        todo = [job for job in jobs if job.name not in partial.done]
        run_jobs(todo, threads=2, digests=True, block=4096, on_done=record,
                 on_bytes=lambda n: time.sleep(slow))
        partial.write_file("deep/metadata.json", b"{}")
        partial.publish(last=["deep/metadata.json"])


def attempt(out, kill_at=None, slow=0.0):
    # Whether a forked copy came to its end; it is killed before its system call number `kill_at`.
    if (child := os.fork()) == 0:
        counter = itertools.count(1)
        for name in EVENTS:
            def call(*args, real=getattr(os, name), name=name, **options):
                if next(counter) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return None if name == "fsync" else real(*args, **options)
            setattr(os, name, call)
        try:
            copy(out, slow=slow)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finished(child):
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def content(out):
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}


def fresh(name):
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    return folder / name / "out"


out = fresh("wanted")
assert finished(attempt(out))
wanted = content(out)


if sys.argv[2] == "calls":
    kill_at = 1
    while True:
        out = fresh("killed")
        if finished(attempt(out, kill_at)):
            break
        if out.exists():
            assert content(out) == wanted
        else:
            assert finished(attempt(out))
        assert content(out) == wanted
        names = out.with_name("log").read_text().split()
        assert len(names) == len(set(names)), names
        kill_at += 1 if kill_at < 12 else 3
    print("kill points", kill_at)
else:
    rng, kills = random.Random(0), 0
    for _ in range(4):
        out = fresh("killed")
        while not out.exists():
            child = attempt(out, slow=0.003)
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
            kills += not finished(child)
        assert content(out) == wanted
        names = out.with_name("log").read_text().split()
        assert len(names) == len(set(names)), names
    print("kills", kills)
"""


def run(script: str, *arguments: str) -> list[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("moment", ["calls", "random"])
def test_a_killed_copy_is_gone_on_with(moment: str, tmp_path: Path) -> None:
    *_, count = run(DRIVER, str(tmp_path), moment)
    assert int(count) >= (40 if moment == "calls" else 4)


LARGE = """
import os, sys
from pathlib import Path
from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.layout import Extent, TensorLayout

folder = Path(sys.argv[1])
source, target = folder / "sparse", folder / "target"
rows, columns, jobs = 8192, 4096, 34
size = rows * columns * 2
source.touch()
os.truncate(source, size * jobs)
work = []
for n in range(jobs):
    halves = [Extent(source, n * size + t * size // 2, 0, t * columns // 2, rows, columns // 2) for t in range(2)]
    # All to one place: what is measured is memory, the disk need not pay for it.
    whole = (Extent(target, 0, 0, 0, rows, columns),)
    shape = (rows, columns)
    pair = Pair(TensorLayout("w", "F16", shape, tuple(halves)), TensorLayout("w", "F16", shape, whole))
    work.append(Job(str(n), (pair,)))
seen = []
run_jobs(work, threads=4, digests=False, on_bytes=seen.append)
# Not getrusage: its peak begins with that of the process we were started from.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(sum(seen), peak)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    copied, peak_kib = map(int, run(LARGE, str(tmp_path)))
    assert copied == 34 * 8192 * 4096 * 2 > 2 << 30
    assert peak_kib < 100_000
