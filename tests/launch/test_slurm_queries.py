"""What Slurm prints is read right, whatever a job's name holds; and Slurm itself, where it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.slurm_lab import SlurmLab

from nemo_thinkprune.launch import slurm as queries
from nemo_thinkprune.recipe.errors import UserError

# As Slurm 22.05 printed them, with the paths shortened.
RUNNING = """\
JobId=1 JobName=my job JobState=X
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:05 TimeLimit=1-00:10:00 TimeMin=N/A
   SubmitTime=2026-11-21T19:30:35 EligibleTime=2026-11-21T19:30:35
   AccrueTime=2026-11-21T19:30:35
   StartTime=2026-11-21T19:30:36 EndTime=2026-11-21T19:40:36 Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-21T19:30:36 Scheduler=Backfill
   Partition=test AllocNode:Sid=localhost:14814
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=m[1-2]
   BatchHost=m1
   NumNodes=2 NumCPUs=4 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=4,node=2,billing=4
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0
   Features=(null) DelayBoot=00:00:00
   OverSubscribe=NO Contiguous=0 Licenses=(null) Network=(null)
   Command=/fs/run dir/launch.sbatch 1000 0
   WorkDir=/fs
   Comment=two words Reason=fake JobState=X 
   StdErr=/fs/out_1.log
   StdIn=/dev/null
   StdOut=/fs/out_1.log
   Power=
   

"""  # noqa: W291, W293
REQUEUED = (
    RUNNING.replace("JobState=RUNNING Reason=None", "JobState=PENDING Reason=BeginTime")
    .replace("Restarts=0", "Restarts=1")
    .replace("   NodeList=m[1-2]\n   BatchHost=m1\n", "   NodeList= SchedNodeList=m3\n")
)
FAILED = RUNNING.replace("JobState=RUNNING Reason=None", "JobState=FAILED Reason=NonZeroExitCode").replace(
    "ExitCode=0:0", "ExitCode=75:0"
)
NEVER = RUNNING.replace(
    "StartTime=2026-11-21T19:30:36 EndTime=2026-11-21T19:40:36", "StartTime=Unknown EndTime=Unknown"
)
ARRAY = RUNNING.replace("JobId=1 JobName", "JobId=9 ArrayJobId=4 ArrayTaskId=2 ArrayTaskThrottle=1 JobName")
HET = RUNNING.replace("JobId=1 JobName", "JobId=13 HetJobId=13 HetJobOffset=0 JobName")
# JobID, JobIDRaw, JobName, State, Reason, NodeList, Submit, Start, End, TimelimitRaw, ExitCode, SubmitLine
ACCOUNTED = """\
20|20|my job = x|REQUEUED|ReqNodeNotAvail|m[2-3]|2026-11-21T19:39:51|2026-11-21T19:39:54|2026-11-21T19:39:55|10|0:0|sbatch --parsable -N2 --time=10 /fs/run dir/launch.sbatch
20|20|my job = x|CANCELLED by 0|BeginTime|m[1-2]|2026-11-21T19:39:55|2026-11-21T19:40:01|2026-11-21T19:40:05|10|0:0|sbatch --parsable -N2 --time=10 /fs/run dir/launch.sbatch
21|21|my job = x|CANCELLED by 0|BeginTime|None assigned|2026-11-21T19:40:05|None|2026-11-21T19:40:40|Partition_Limit|0:0|sbatch --parsable b.sh
22_2|22|my job = x|COMPLETED|None|m2|2026-11-21T19:40:34|2026-11-21T19:40:35|2026-11-21T19:40:36|10|0:0|sbatch --parsable --array=1-2 b.sh
""".replace("|", "\x1f")  # noqa: E501


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("text", "version", "runs"),
    [
        ("slurm-wlm 22.05.8", (22, 5), True),
        ("slurm 24.11.0", (24, 11), True),
        ("slurm 25.05.1-1\n", (25, 5), True),
        ("slurm 23.02.0-0rc1", (23, 2), True),
        ("slurm-wlm 21.08.8-2", (21, 8), False),
        ("slurm 20.11.9", (20, 11), False),
        ("something else", None, True),
    ],
)
def test_releases_of_slurm(
    text: str, version: tuple[int, int] | None, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\n[ \"$*\" = --version ] && echo '{text}'\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queries.slurm_version() == version
    told = queries.version_problem(version)
    assert (told == "") == runs and (runs or "since 22.05" in told)


def test_without_slurm_there_is_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(queries.SlurmUnavailable, match="sbatch is not on this machine"):
        queries.slurm_version()


def test_a_running_job_is_read_whatever_its_name_and_comment_hold(utc: None) -> None:
    info = queries.parse_show_job(RUNNING, 1)
    assert (info.job_id, info.name, info.state, info.reason) == (1, "my job JobState=X", "RUNNING", None)
    assert (info.nodes, info.restarts, info.exit_code) == ("m[1-2]", 0, None)
    assert info.command == "/fs/run dir/launch.sbatch 1000 0" and info.run_dir == Path("/fs/run dir")
    assert info.start_time == datetime(2026, 11, 21, 19, 30, 36, tzinfo=UTC)
    assert info.time_limit == 24 * 3600 + 600
    assert not info.pending and not info.over


def test_a_job_that_was_requeued_waits_and_has_no_nodes() -> None:
    info = queries.parse_show_job(REQUEUED, 1)
    assert info.pending and not info.over
    assert (info.reason, info.restarts, info.nodes) == ("BeginTime", 1, None)


def test_a_failed_job_is_over_and_has_its_code() -> None:
    info = queries.parse_show_job(FAILED, 1)
    assert info.over and (info.exit_code, info.reason) == (75, "NonZeroExitCode")


def test_a_time_that_is_unknown_is_none() -> None:
    info = queries.parse_show_job(NEVER, 1)
    assert info.start_time is None and info.end_time is None


@pytest.mark.parametrize("text", [ARRAY, HET, RUNNING + RUNNING], ids=["array", "heterogeneous", "several"])
def test_arrays_and_heterogeneous_jobs_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="array or a heterogeneous job"):
        queries.parse_show_job(text, 4)


@pytest.mark.parametrize("text", ["", "No jobs in the system\n", "JobId=1 JobName=x\n   other=1\n"])
def test_a_form_that_is_not_known_is_told(text: str) -> None:
    with pytest.raises(UserError, match="form is not known"):
        queries.parse_show_job(text, 1)


def test_accounting_counts_the_starts_and_gives_the_last(utc: None) -> None:
    info = queries.parse_accounting(ACCOUNTED, 20)
    assert info is not None
    assert (info.state, info.reason, info.restarts, info.nodes) == ("CANCELLED", None, 1, "m[1-2]")
    assert info.run_dir == Path("/fs/run dir") and info.time_limit == 600
    assert info.start_time == datetime(2026, 11, 21, 19, 40, 1, tzinfo=UTC)


def test_accounting_of_a_job_that_never_started() -> None:
    info = queries.parse_accounting(ACCOUNTED, 21)
    assert info is not None and info.over
    assert (info.nodes, info.start_time, info.time_limit, info.command) == (None, None, None, None)


def test_accounting_refuses_arrays_and_does_not_take_another_job() -> None:
    with pytest.raises(UserError, match="array"):
        queries.parse_accounting(ACCOUNTED, 22)
    assert queries.parse_accounting(ACCOUNTED, 2) is None
    assert queries.parse_accounting("garbage\n", 2) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:10:00", 600), ("1-02:03:04", 93784), ("UNLIMITED", None), ("Partition_Limit", None), (None, None)],
)
def test_durations(text: str | None, seconds: int | None) -> None:
    assert queries.parse_duration(text) == seconds


def test_ids() -> None:
    assert queries.parse_job_id("4711") == 4711
    assert [queries.parse_job_id(text) for text in ("runs/x", "", "-1", "4711x", "1" * 20, "٣")] == [None] * 6
    for part in ("4711_3", "4711_[1-4]", "4711+1", "4711.batch", "4711_*"):
        with pytest.raises(UserError, match="one part of a job"):
            queries.parse_job_id(part)


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("/fs/a b/launch.sbatch", "/fs/a b"),
        ("/fs/launch.sbatch.d/launch.sbatch x", "/fs/launch.sbatch.d"),
        ("/fs/other.sh", None),
        ("launch.sbatch", None),
        (None, None),
    ],
)
def test_the_run_folder_of_a_command(command: str | None, folder: str | None) -> None:
    assert queries.run_dir_of(command) == (Path(folder) if folder else None)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_where_slurm_is_not_it_says_what_to_do(nowhere: None, tmp_path: Path) -> None:
    with pytest.raises(
        queries.SlurmUnavailable, match=r"sbatch is not on this machine.*login node.*--dry-run"
    ):
        queries.submit(tmp_path / "launch.sbatch")
    with pytest.raises(queries.SlurmUnavailable, match="scontrol is not on this machine"):
        queries.job_info(1)


SCRIPT = """\
#!/bin/bash
#SBATCH --job-name="name JobState=X" --time=5 --output=%x.out
trap 'exit 75' USR1
printf '%s\\n' "$SECRET_OF_TEST" > secret
sleep 100 & wait
"""


@pytest.fixture
def here(slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    return slurm


def wait_for(job_id: int, state: str) -> queries.JobInfo:
    deadline = time.monotonic() + 20
    while (info := queries.job_info(job_id)) is None or info.state != state:
        assert time.monotonic() < deadline, info
        time.sleep(0.1)
    return info


def test_a_job_is_submitted_signalled_and_seen_to_its_end(
    here: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run dir"
    run_dir.mkdir()
    (run_dir / "launch.sbatch").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    job = queries.submit(
        Path("run dir/launch.sbatch"), arguments=["--nodes=2"], environment={"SECRET_OF_TEST": "hunter2 $x"}
    )
    info = wait_for(job, "RUNNING")
    assert (info.name, info.run_dir, info.time_limit, info.nodes) == (
        "name JobState=X", run_dir, 300, "n[1-2]",
    )  # fmt: skip
    assert queries.jobs_of(run_dir) == [job] and queries.jobs_of(tmp_path) == []
    deadline = time.monotonic() + 10
    while not (tmp_path / "secret").exists() or not (tmp_path / "secret").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (tmp_path / "secret").read_text() == "hunter2 $x\n"
    queries.signal_batch(job, "USR1")
    info = wait_for(job, "FAILED")
    assert (info.over, info.exit_code, info.reason) == (True, 75, "NonZeroExitCode")
    with pytest.raises(UserError, match=f"job {job}: .*Invalid job id"):
        queries.signal_batch(job, "USR1")
    queries.cancel_job(job)  # one that is over: nothing happens


def test_slurm_says_why_it_refuses(here: SlurmLab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Slurm refuses the job: .*Unable to open file"):
        queries.submit(tmp_path / "absent")
    (tmp_path / "launch.sbatch").write_text(SCRIPT)
    with pytest.raises(UserError, match=r"Slurm refuses the job: .*invalid partition"):
        queries.submit(tmp_path / "launch.sbatch", arguments=["--partition=nope"])


def test_jobs_that_wait_are_unknown_or_are_parts_of_others(here: SlurmLab, tmp_path: Path) -> None:
    assert queries.job_info(987654) is None
    (tmp_path / "launch.sbatch").write_text(SCRIPT)
    waits = queries.submit(tmp_path / "launch.sbatch", arguments=["--begin=now+1hour"])
    info = queries.job_info(waits)
    assert info is not None and info.pending and info.reason == "BeginTime"
    assert info.start_time is not None and 3000 < (info.start_time - datetime.now(UTC)).total_seconds() < 3700
    queries.cancel_job(waits)
    assert wait_for(waits, "CANCELLED").over
    array = queries.submit(tmp_path / "launch.sbatch", arguments=["--array=1-2", "--hold"])
    with pytest.raises(UserError, match="array"):
        queries.job_info(array)
    queries.cancel_job(array)


def test_the_environment_does_not_change_what_slurm_prints(
    here: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launch.sbatch").write_text(SCRIPT)
    job = queries.submit(tmp_path / "launch.sbatch", arguments=["--hold"])
    monkeypatch.setenv("SLURM_TIME_FORMAT", "%s")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    info = queries.job_info(job)
    assert info is not None and info.submit_time is not None
    assert queries.jobs_of(tmp_path) == [job]
    queries.cancel_job(job)


def test_a_controller_that_is_not_there(
    here: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (here.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(f"{text}\nSlurmctldPort=19\nMessageTimeout=2\n")  # nobody listens
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(
        queries.SlurmUnavailable, match=r"says nothing about job 1: .*contact slurm controller"
    ):
        queries.job_info(1)


def test_a_command_that_does_not_answer_is_given_up(
    here: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launch.sbatch").write_text(SCRIPT)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "absent.conf"))  # Slurm waits a minute for the file
    with pytest.raises(queries.SlurmUnavailable, match=r"not answer within 1 s.*may be there all the same"):
        queries.submit(tmp_path / "launch.sbatch", timeout_s=1)


def test_a_machine_that_belongs_to_no_cluster(here: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF")
    with pytest.raises(queries.SlurmUnavailable, match=r"job 1: scontrol: fatal: .*configuration source$"):
        queries.job_info(1)
