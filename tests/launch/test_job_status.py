"""The state of a job: from its records alone, and from Slurm."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.launched_runs import job_records, prune_folder, row, train_folder
from support.slurm_lab import SlurmLab

from nemo_thinkprune.launch import slurm as queries
from nemo_thinkprune.launch.progress import newest_checkpoint, read_progress, seconds_a_step, step_in_log
from nemo_thinkprune.launch.status import status
from nemo_thinkprune.launch.status_text import duration
from nemo_thinkprune.recipe.errors import UserError

EVENTS = """
2026-11-21T10:00:00Z 1 start nodes=n[1-4] head=n1
2026-11-21T10:00:31Z 1 ray_ready Ray ready: 4 nodes, 32 GPUs, 30.5 s
2026-11-21T13:02:00Z 1 end node_lost code=1 no answer from n3
2026-11-21T13:02:01Z 1 requeue after node_lost
2026-11-21T13:05:00Z 2 start nodes=n[1-3] head=n1
"""
DRIVERS = {
    1: "12:59:01  train L=3000  step 39/180  reward 0.5\n13:01:01  train L=3000  step 40/180  reward 0.5\n",
    2: "13:59:01  train L=3000  step 41/180  reward 0.5\n",
}
NOW = datetime(2026, 11, 21, 14, 5, tzinfo=UTC)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def pruning(tmp_path: Path, events: str = EVENTS) -> Path:
    run = prune_folder(tmp_path / "run", decided=1, steps=41, saved=40)
    job_records(run, 7, events, drivers=DRIVERS)
    (run / "launch.sbatch").write_text("#!/bin/bash\n")
    four_minutes_ago = time.time() - 240
    os.utime(run / "round_2_L3000" / "metrics.jsonl", (four_minutes_ago,) * 2)
    return run


def test_a_run_folder_tells_all_without_slurm(no_slurm: None, tmp_path: Path) -> None:
    run = pruning(tmp_path)
    text = status(str(run), now=NOW).text()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["Job"] == "Job       7"
    assert lines["State"] == "State     by its records: running"
    assert "squeue is not on this machine" in text
    assert re.split(" {2,}", lines["1"]) == [
        "1", "2026-11-21 10:00", "3 h 2 min", "n[1-4]", "40 (L=3000)",
        "a node was lost (code 1): no answer from n3; requeued (after node_lost)",
    ]  # fmt: skip
    assert lines["2"].split()[-1] == "running" and " 1 h " in lines["2"] and "41 (L=3000)" in lines["2"]
    assert lines["Round"] == "Round     2 of 3, at most 3000 tokens"
    assert lines["Step"] == "Step      41 of 180"
    assert lines["Metrics"] == (
        "Metrics   reward 0.531  accuracy 0.612  tokens 2310.4  cut 12.1%  70.0 s   written 4 min ago"
    )
    assert lines["Saved"] == f"Saved     step 40, {run}/round_2_L3000/checkpoints/step_40"
    assert lines["Left"] == "Left      about 2 h 42 min of this round, at 70 s a step"
    assert lines["Next"] == f"Next      thinkprune launch logs {run} --follow"
    assert lines["Logs"] == f"Logs      {run}/logs/job_7/attempt_2/driver.log"


def test_a_dictionary_for_scripts(no_slurm: None, tmp_path: Path) -> None:
    run = pruning(tmp_path)
    told = json.loads(json.dumps(status(str(run), now=NOW).to_dict()))
    assert (told["job_id"], told["run_dir"], told["slurm"], told["over"]) == ("7", str(run), None, False)
    first, second = told["attempts"]
    assert (first["reason"], first["code"], first["step"], first["then"]) == ("node_lost", 1, 40, "requeue")
    assert first["start"] == "2026-11-21T10:00:00+00:00" and first["ray_ready_s"] == 30.5
    assert (second["end"], second["step"], second["limit"]) == (None, 41, 3000)
    progress = told["progress"]
    assert (progress["round"], progress["rounds"], progress["step"], progress["steps"]) == (2, 3, 41, 180)
    assert progress["left_s"] == 139 * 70 and progress["checkpoint"]["step"] == 40
    assert 230 < progress["age_s"] < 300


@pytest.mark.parametrize(
    ("ending", "state", "next_command"),
    [
        (
            "end finished code=0 \n2026-11-21T14:00:00Z 2 finished ",
            "by its records: finished",
            "thinkprune report",
        ),
        (
            "end user_error code=2 no such key\n2026-11-21T14:00:00Z 2 gave_up it would end the same way again",
            "by its records: refused: something to correct (code 2): no such key; "
            "given up (it would end the same way again)",
            "thinkprune launch logs",
        ),
        (
            "end saved code=75 with step 41 saved\n2026-11-21T14:00:00Z 2 stopped as asked",
            "by its records: saved and stopped (code 75): with step 41 saved; not requeued (as asked)",
            "thinkprune launch logs",
        ),
    ],
    ids=["finished", "gave up", "stopped"],
)
def test_how_a_job_ended(no_slurm: None, tmp_path: Path, ending: str, state: str, next_command: str) -> None:
    found = status(str(pruning(tmp_path, EVENTS + f"2026-11-21T14:00:00Z 2 {ending}\n")), now=NOW)
    assert found.over and found.next[0].startswith(next_command)
    assert f"State     {state}\n" in found.text() and "\nLeft" not in found.text()
    if next_command != "thinkprune report":
        assert found.next[1].startswith(f"sbatch {tmp_path}/run/launch.sbatch")


def test_an_attempt_that_left_no_word_is_not_called_running(no_slurm: None, tmp_path: Path) -> None:
    events = EVENTS.replace("2026-11-21T13:02:00Z 1 end node_lost code=1 no answer from n3\n", "").replace(
        "2026-11-21T13:02:01Z 1 requeue after node_lost\n", ""
    )
    (line,) = [
        x for x in status(str(pruning(tmp_path, events)), now=NOW).text().splitlines() if x[:2] == "1 "
    ]
    assert line.endswith("it ended without a word") and "  ?  " in line


def test_nothing_is_there_yet(no_slurm: None, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "launch.sbatch").write_text("")
    text = status(str(tmp_path), now=NOW).text()
    assert "no attempt has begun" in text and "Step      none is recorded yet" in text
    assert f"sbatch {tmp_path}/launch.sbatch" in text


def test_garbage_in_every_file_of_the_run(no_slurm: None, tmp_path: Path) -> None:
    run = pruning(tmp_path)
    noise = bytes(range(256)) * 20 + b"\n"
    for path in [*run.rglob("*.jsonl"), *run.rglob("*.tsv"), *run.rglob("*.log"), *run.rglob("*.yaml")]:
        path.write_bytes(noise + path.read_bytes() + noise + b'{"step": 42, "rew')
    found = status(str(run), now=NOW)
    assert [a.number for a in found.attempts] == [1, 2]
    assert found.progress is not None and found.progress.step == 41
    json.dumps(found.to_dict())
    for path in [*run.rglob("*.jsonl"), *run.rglob("*.tsv"), *run.rglob("*.json"), *run.rglob("*.log")]:
        path.write_bytes(noise)
    assert "none is recorded yet" in status(str(run), now=NOW).text()


def test_what_is_no_run_is_refused(no_slurm: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a job's id nor a run folder"):
        status(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="holds no run"):
        status(str(tmp_path))
    with pytest.raises(queries.SlurmUnavailable, match=r"login node.*; or give the run folder"):
        status("4711")


def test_steps_that_are_planned(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    train_folder(tmp_path / "set", steps=3)
    assert read_progress(tmp_path / "set").steps == 200
    train_folder(tmp_path / "free", steps=3, config="grpo: {max_num_steps: 1000000}\n")
    assert (read_progress(tmp_path / "free").steps, read_progress(tmp_path / "free").left_s) == (None, None)
    log.write_text("10:00:00  train L=128  step 3/17  reward 0.1\n")
    assert read_progress(tmp_path / "free", driver_logs=[tmp_path / "absent.log", log]).steps == 17
    run = prune_folder(tmp_path / "prune", decided=1, steps=3)
    assert read_progress(run, driver_logs=[log]).steps == 200  # that line is about another round


def test_time_a_step_is_the_median_with_what_is_done_beside() -> None:
    rows = [row(1, step_s=500.0), row(2, step_s=10.0), row(3, step_s=12.0, save_s=9.0), row(4, step_s=11.0)]
    assert seconds_a_step(rows) == pytest.approx(11.5 + 9.0 / 4)
    assert seconds_a_step([]) is None and seconds_a_step([{"step": 1}]) is None


def test_the_step_an_attempt_came_to(tmp_path: Path) -> None:
    log = tmp_path / "driver.log"
    assert step_in_log(log) is None
    log.write_text(
        "train L=128  step 3/17  reward 1\nstopped as asked with step 5 saved; the same command goes on\n"
    )
    found = step_in_log(log)
    assert found is not None and (found.step, found.limit) == (5, 128)


def test_the_newest_checkpoint_may_be_of_the_round_before(tmp_path: Path) -> None:
    run = prune_folder(tmp_path / "run", decided=1, steps=5)
    found = newest_checkpoint(run)
    assert found is not None and found.path == run / "round_1_L4000" / "checkpoints" / "step_200"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "1 h"),
        (3 * 3600 + 720, "3 h 12 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def here(slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environment[name])
    return slurm


SCRIPT = "#!/bin/bash\n#SBATCH --job-name=tp-test --time=5 --output=%x.out\nsleep 100\n"


def wait_for(job: int, state: str) -> None:
    deadline = time.monotonic() + 20
    while (info := queries.job_info(job)) is None or info.state != state:
        assert time.monotonic() < deadline, info
        time.sleep(0.1)


def test_a_job_from_the_queue_to_its_end(
    here: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_folder(tmp_path / "run", steps=3, saved=2)
    (run / "launch.sbatch").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    begin = ["--nodes=2", "--begin=now+1hour"]
    job = queries.submit(run / "launch.sbatch", arguments=begin)
    for name in (str(job), str(run)):  # it has left nothing in its folder yet
        text = status(name).text()
        assert f"Job       {job}  tp-test" in text and "PENDING (BeginTime); expected to start at" in text
        assert f"thinkprune launch cancel {job}" in text and "Step      3 of 200" in text
    here.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    wait_for(job, "RUNNING")
    start = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job_records(run, job, f"{start} 1 start nodes=n[1-2] head=n1\n", drivers={1: ""})
    found = status(str(job))
    assert "RUNNING for" in found.text() and "on n[1-2], 5 min left of 5 min" in found.text()
    assert found.next == (f"thinkprune launch logs {job} --follow",) and not found.over
    assert [line.split()[-1] for line in found.text().splitlines() if line.startswith("1 ")] == ["running"]
    queries.cancel_job(job)
    wait_for(job, "CANCELLED")
    found = status(str(run))
    assert found.over and "State     CANCELLED at" in found.text() and found.found.silence is None
    assert "it ended without a word" in found.text() and f"sbatch {run}/launch.sbatch" in found.text()
    told = found.to_dict()["slurm"]
    assert (told["state"], told["nodes"], told["time_limit_s"]) == ("CANCELLED", "n[1-2]", 300)


def test_jobs_that_slurm_does_not_know_or_that_are_others(here: SlurmLab, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not know job 987654 .*give its run folder"):
        status("987654")
    (tmp_path / "other.sh").write_text(SCRIPT)
    other = queries.submit(tmp_path / "other.sh", arguments=["--hold"])
    assert "not a job of `thinkprune launch`" in status(str(other)).text()
    queries.cancel_job(other)
    run = pruning(tmp_path, EVENTS.replace("2 start", "3 start"))
    (run / "logs" / "job_7").rename(run / "logs" / "job_987654")
    found = status(str(run))
    assert "Slurm does not know job 987654 any more" in found.text() and len(found.attempts) == 2
    assert found.over and "it ended without a word" in found.text() and "sbatch" in found.next[1]
