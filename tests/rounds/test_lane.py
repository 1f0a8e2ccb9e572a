import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from nemo_thinkprune.rounds.lane import Lane, LaneFailed, LaneStopped


def write_when_told(folder: Path) -> None:
    """Say that work has begun, end with 0 once told to, and leave a mark on SIGTERM."""

    def saved(*_):
        (folder / "saved").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, saved)
    (folder / "begun").write_text(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.01)
    print("done")


def fail() -> None:
    print("before")
    raise RuntimeError("the disk is full")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_work_runs_beside_and_its_output_goes_to_the_log(tmp_path):
    lane = Lane(partial(write_when_told, tmp_path), log=tmp_path / "logs" / "beside.log")
    wait_for(tmp_path / "begun")
    lane.check()  # nothing to say while it works
    (tmp_path / "go").touch()
    lane.join()
    assert int((tmp_path / "begun").read_text()) != os.getpid()
    assert "done" in (tmp_path / "logs" / "beside.log").read_text()


def test_a_failure_is_raised_with_its_last_line_and_log(tmp_path):
    lane = Lane(fail, log=tmp_path / "beside.log")
    with pytest.raises(LaneFailed, match=r"the disk is full.*beside\.log"):
        lane.join()
    with pytest.raises(LaneFailed):
        lane.check()
    assert "Traceback" in (tmp_path / "beside.log").read_text()


def test_stop_lets_the_work_save(tmp_path):
    lane = Lane(partial(write_when_told, tmp_path), log=tmp_path / "beside.log")
    wait_for(tmp_path / "begun")
    lane.stop()
    assert (tmp_path / "saved").exists()
    lane.stop()  # once more does nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_waiting_stops_the_lane_too(tmp_path, number):
    lane = Lane(partial(write_when_told, tmp_path), log=tmp_path / "beside.log")
    wait_for(tmp_path / "begun")
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_IGN)  # a signal sent before join listens must not end the test run
    asker = threading.Timer(0.5, os.kill, (os.getpid(), number))
    asker.start()
    try:
        with pytest.raises(LaneStopped):
            lane.join()
    finally:
        asker.join()
        signal.signal(number, before)
    assert (tmp_path / "saved").exists()


def test_the_lane_does_not_outlive_its_parent(tmp_path):
    code = (
        "import sys, time; from functools import partial; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_lane import write_when_told\n"
        "from nemo_thinkprune.rounds.lane import Lane\n"
        "if __name__ == '__main__':\n"
        f"    Lane(partial(write_when_told, Path({str(tmp_path)!r})), log=Path({str(tmp_path / 'log')!r}))\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")])
    try:
        wait_for(tmp_path / "begun")
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "begun").read_text() or "0")
    deadline = time.monotonic() + 30
    while child and Path(f"/proc/{child}/stat").exists():
        if Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        assert time.monotonic() < deadline, "the lane outlived its parent"
        time.sleep(0.02)
