"""The lab itself: real nodes that fail as machines do, labs that do not meet, and nothing left of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import slurm_here
from support.namespaces import inhabitants, namespace
from support.slurm_conf import LabSettings
from support.slurm_here import require_slurm
from support.slurm_lab import SlurmLab, slurm_lab


def until(true: Callable[[], bool], *, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


CONNECT = """
import errno, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
answer = socket.socket(family).connect_ex((sys.argv[1], 9))
print(answer == errno.ECONNREFUSED)
"""


def test_nodes_have_their_own_host_names_and_addresses(slurm: SlurmLab) -> None:
    assert [slurm.node_state(node) for node in slurm.nodes] == ["idle", "idle", "idle"]
    assert sorted(slurm.run(["srun", "-N2", "hostname"]).stdout.split()) == ["n1", "n2"]
    for kind, address in (("ahostsv4", "10.77.0.13"), ("ahostsv6", "fd77::13")):
        assert slurm.in_node("n1", ["getent", kind, "n3"]).stdout.startswith(address)
        assert slurm.in_node("n1", [sys.executable, "-c", CONNECT, address]).stdout == "True\n"


def test_a_job_writes_to_the_shared_folder(slurm: SlurmLab, tmp_path: Path) -> None:
    script = "#!/bin/sh\nsrun hostname\nscontrol show job $SLURM_JOB_ID\n"
    job = slurm.submit(script, "-N2", "-o", str(tmp_path / "out.log"))
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    hosts, command = (tmp_path / "out.log").read_text().split("JobId=")
    assert sorted(hosts.split()) == ["n1", "n2"]
    assert command.startswith(f"{job} ")


def test_jobs_share_a_node_and_wait_for_their_cpus(slurm: SlurmLab) -> None:
    script = "#!/bin/sh\nsleep 60\n"
    halves = [slurm.submit(script, "-w", "n1", "-n1", "-c2") for _ in range(2)]
    for job in halves:
        slurm.wait(job, {"RUNNING"})
    third = slurm.submit(script, "-w", "n1", "-n1", "-c2")
    assert slurm.job(third)["JobState"] == "PENDING"
    slurm.run(["scancel", str(halves[0])])
    slurm.wait(third, {"RUNNING"})
    slurm.run(["scancel", *map(str, [*halves, third])])
    slurm.wait_node("n1")


def test_places_and_processes_are_the_nodes_own(slurm: SlurmLab, tmp_path: Path) -> None:
    path = "/tmp/of_a_node/below"
    slurm.in_node("n1", ["sh", "-c", f"mkdir -p {path}; touch /dev/shm/of_a_node {tmp_path}/of_both"])
    assert slurm.node_files("n1") == ["/tmp/of_a_node", path]
    assert slurm.node_files("n1", "/dev/shm") == ["/dev/shm/of_a_node"]
    assert slurm.node_files("n2") == slurm.node_files("n2", "/dev/shm") == []
    assert slurm.node_path("n1", path).is_dir() and not Path(path).exists()
    assert (tmp_path / "of_both").exists()

    job = slurm.submit("#!/bin/sh\nexec sleep 61\n", "-w", "n2")
    until(lambda: ("sleep", "61") in [process.argv for process in slurm.processes("n2")])
    (sleeper,) = [process for process in slurm.processes("n2") if process.argv == ("sleep", "61")]
    assert sleeper.environ["SLURM_JOB_ID"] == str(job) and sleeper.node_pid < sleeper.pid
    assert ("sleep", "61") not in [process.argv for process in slurm.processes("n1")]
    slurm.run(["scancel", str(job)])


def test_a_crashed_node_goes_down_and_comes_back_empty(slurm: SlurmLab) -> None:
    job = slurm.submit("#!/bin/sh\nsleep 60\n", "-w", "n3")
    slurm.wait(job, {"RUNNING"})
    slurm.in_node("n3", ["touch", "/tmp/lost"])
    slurm.crash("n3")
    assert slurm.processes("n3") == []
    slurm.wait_node("n3", {"down*"})
    requeued = slurm.job(job)
    assert (requeued["JobState"], requeued["Restarts"]) == ("PENDING", "1")
    slurm.boot("n3")
    slurm.wait_node("n3")
    assert slurm.node_files("n3") == []
    slurm.start_now(job)
    slurm.wait(job, {"RUNNING"})
    slurm.run(["scancel", str(job)])


@pytest.mark.parametrize("daemon", ["controller", "slurmd"])
def test_a_daemon_stops_and_jobs_go_on(slurm: SlurmLab, daemon: str) -> None:
    job = slurm.submit("#!/bin/sh\nsleep 62\n", "-w", "n1")
    slurm.wait(job, {"RUNNING"})
    if daemon == "controller":
        slurm.stop_controller()
        assert "is DOWN" in slurm.run(["scontrol", "ping"], check=False).stdout
    else:
        slurm.stop_slurmd("n1")
        assert "slurmd" not in [process.argv[0] for process in slurm.processes("n1")]
    assert ("sleep", "62") in [process.argv for process in slurm.processes("n1")]
    if daemon == "controller":
        slurm.start_controller()
    else:
        slurm.start_slurmd("n1")
    assert slurm.run(["srun", "-w", "n1", "hostname"]).stdout == "n1\n"
    assert slurm.job(job)["JobState"] == "RUNNING"
    slurm.run(["scancel", str(job)])
    slurm.wait_node("n1")


def test_a_jobs_time_limit_is_moved(slurm: SlurmLab) -> None:
    job = slurm.submit("#!/bin/sh\nsleep 60\n")
    before = slurm.wait(job, {"RUNNING"})["EndTime"]
    slurm.end_in(job, 40)
    assert slurm.job(job)["EndTime"] < before
    slurm.run(["scancel", str(job)])


def test_an_urgent_job_takes_the_nodes(tmp_path: Path) -> None:
    with slurm_lab(tmp_path / "lab", nodes=1, preempt_grace=0) as lab:
        job = lab.submit("#!/bin/sh\nsleep 60\n", "--exclusive")
        lab.wait(job, {"RUNNING"})
        urgent = lab.submit("#!/bin/sh\nsleep 60\n", "--partition=urgent")
        lab.wait(urgent, {"RUNNING"})
        told = lab.job(job)
        assert (told["JobState"], told["Restarts"]) == ("PENDING", "1")


def test_labs_do_not_meet(slurm: SlurmLab, tmp_path: Path) -> None:
    with slurm_lab(tmp_path / "lab", nodes=1, addresses="ipv6", gpus=(2,), shared=[tmp_path]) as other:
        assert other.run(["srun", "--gpus=2", "printenv", "CUDA_VISIBLE_DEVICES"]).stdout == "0,1\n"
        addresses = other.in_node("n1", ["ip", "-4", "address", "show", "eth0"]).stdout
        assert addresses == ""
        job = other.submit("#!/bin/sh\nsleep 63\n")
        other.wait(job, {"RUNNING"})
        assert ("sleep", "63") not in [process.argv for process in slurm.processes("n1")]
        assert slurm.run(["srun", "-n1", "hostname"]).stdout == "n1\n"
        networks = {namespace("net", process.pid) for process in other.processes("n1")}
        assert namespace("net", slurm.processes("n1")[0].pid) not in networks
    assert inhabitants("net", networks) == []
    assert slurm.node_state("n1") == "idle"


def test_options_of_pyxis_are_recorded(tmp_path: Path) -> None:
    with slurm_lab(tmp_path / "lab", nodes=2, containers=True, shared=[tmp_path]) as lab:
        options = ["--container-image=a b.sqsh", "--container-mounts=/x:/y,/z", "--no-container-mount-home"]
        lab.run(["srun", "-N2", *options, "true"])
        lab.run(["srun", "true"])
        first, second = sorted(lab.containers(), key=lambda task: task.task)
    assert (first.node, first.task, second.node, second.task) == ("n1", 0, "n2", 1)
    assert first.options == second.options
    assert first.options == {
        "container-image": "a b.sqsh",
        "container-mounts": "/x:/y,/z",
        "no-container-mount-home": "",
    }


OWNER = """
import sys, time
from pathlib import Path
from support.namespaces import namespace
from support.slurm_lab import slurm_lab
with slurm_lab(Path(sys.argv[1]), nodes=2) as lab:
    lab.submit("#!/bin/sh\\nsetsid sleep 64 &\\nsleep 64\\n", "-N2")
    print(*{namespace("net", process.pid) for node in lab.nodes for process in lab.processes(node)}, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_process_that_made_a_lab(tmp_path: Path, ending: signal.Signals) -> None:
    require_slurm()
    links = Path("/proc/net/dev").read_text().count("\n")
    mounts = Path("/proc/mounts").read_text()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "lab")],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with owner:
        assert owner.stdout
        networks = {int(number) for number in owner.stdout.readline().split()}
        assert len(networks) == 2 and inhabitants("net", networks)
        owner.send_signal(ending)
    until(lambda: not inhabitants("net", networks))
    assert Path("/proc/net/dev").read_text().count("\n") == links
    assert Path("/proc/mounts").read_text() == mounts


def test_where_slurm_is_missing_the_test_is_skipped_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_here, "PROGRAMS", ("sh", "no-slurmctld"))
    monkeypatch.setattr(slurm_here.os, "geteuid", lambda: 0)
    reason = slurm_here.slurm_missing.__wrapped__()
    assert reason and "no-slurmctld not found: apt-get install" in reason
    monkeypatch.setattr(slurm_here.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(slurm_here, "slurm_missing", slurm_here.slurm_missing.__wrapped__)
    with pytest.raises(pytest.skip.Exception, match="only root"):
        require_slurm()


def test_gpus_are_told_for_all_nodes_or_each() -> None:
    assert [LabSettings(gpus=(8, 4, 0)).gpus_of(name) for name in ("n1", "n2", "n3")] == [8, 4, 0]
    with pytest.raises(ValueError, match="2 numbers for 3 nodes"):
        LabSettings(gpus=(8, 4))
