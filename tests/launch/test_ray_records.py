"""What is told of a job of a Ray cluster by the records in its run folder, and its submission to a young cluster."""

from __future__ import annotations

import json
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.launched_runs import job_records, train_folder
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.launch import ray_job
from nemo_thinkprune.launch.cancel import cancel
from nemo_thinkprune.launch.logs import logs
from nemo_thinkprune.launch.ray_job import RayJob, launch_ray, render, submit, write_script
from nemo_thinkprune.launch.status import status
from nemo_thinkprune.recipe.errors import UserError

ID = "a_run-20261121-204415-1f2e"
ADDRESS = "https://head.example:8443/ray"
ASKED = f"--address {ADDRESS} {ID}"
EVENTS = """
2026-11-21T10:00:00Z 1 start nodes=ray head=head
2026-11-21T10:00:31Z 1 ray_ready 30.5
2026-11-21T13:02:00Z 1 end driver_killed code=137
2026-11-21T13:02:01Z 1 requeue after driver_killed
2026-11-21T13:05:00Z 2 start nodes=ray head=head
"""
STOPPED = """
2026-11-21T14:00:00Z 2 signal TERM
2026-11-21T14:01:00Z 2 end saved code=75
2026-11-21T14:01:00Z 2 stopped as asked
"""
DRIVERS = {1: "12:59:01  train L=4000  step 2/200  reward 0.5\n", 2: "13:59:01  train L=4000  step 3/200\n"}
NOW = datetime(2026, 11, 21, 14, 5, tzinfo=UTC)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def launched(folder: Path) -> RayJob:
    return RayJob(recipe="quickstart", run_dir=folder, work_dir=Path("/"), address=ADDRESS, gpus=2)


@pytest.fixture
def run(tmp_path: Path, no_slurm: None) -> Path:
    """A run in the second attempt of its job of Ray, the script of which is kept where the job keeps it."""
    run = train_folder(tmp_path / "a run", steps=3, saved=2)
    script = write_script(launched(run), render(launched(run)))
    folder = job_records(run, ID, EVENTS, drivers=DRIVERS)
    (folder / "job.sh").write_text(script.read_text())
    return run


def test_a_job_of_ray_is_told_of_by_its_records(run: Path) -> None:
    found = status(str(run), now=NOW)
    lines = {line.split()[0]: line for line in found.text().splitlines() if line.strip()}
    assert lines["Job"] == f"Job       {ID}  of a Ray cluster"
    assert lines["State"] == "State     by its records: running"
    assert "squeue" not in found.text() and "Slurm" not in found.text()
    assert "the driver was killed (code 137); requeued (after driver_killed)" in lines["1"]
    assert lines["2"].split()[-3:] == ["3", "(L=4000)", "running"]
    assert lines["Step"] == "Step      3 of 200" and lines["Saved"].endswith("checkpoints/step_2")
    assert found.next == (
        f"thinkprune launch logs {shlex.quote(str(run))} --follow",
        f"ray job status {ASKED}   (is it still there?)",
        f"ray job stop {ASKED} --no-wait   (saves first)",
    )
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["job_id"], told["slurm"], told["slurm_silent"], told["over"]) == (ID, None, None, False)
    assert told["logs"]["job"] == f"{run}/logs/job_{ID}.log"


def test_a_job_of_ray_that_was_stopped_is_submitted_again_as_before(run: Path) -> None:
    job_records(run, "b-2", EVENTS.replace("2026", "2027") + STOPPED.replace("2026", "2027"))
    found = status(str(run), now=NOW)
    assert found.over and found.found.earlier == (ID,)
    assert "saved and stopped (code 75); not requeued (as asked)" in found.text()
    again = f"ray job submit --address {ADDRESS} --no-wait --runtime-env-json "
    assert found.next[1].startswith(again)
    assert shlex.split(found.next[1].partition("   ")[0])[-3:] == ["exec", "bash", str(run / "launch.sh")]
    assert "by its records" in found.text()


def test_before_the_job_begins_its_submission_is_told(run: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    write_script(launched(fresh), render(launched(fresh)))
    found = status(str(fresh), now=NOW)
    assert "no attempt has begun" in found.text() and "squeue" not in found.text()
    assert found.next[0].startswith("ray job submit ") and found.next[0].endswith("   (submit it)")


def test_the_newest_job_of_a_folder_may_be_slurm_s(run: Path) -> None:
    job_records(run, 7, "2026-11-21T09:00:00Z 1 start nodes=n1")
    assert status(str(run)).found.job_id == ID
    job_records(run, 3, "2026-11-21T15:00:00Z 1 start nodes=n1")
    found = status(str(run))
    assert (found.found.job_id, found.found.earlier) == ("3", ("7", ID))
    assert "squeue is not on this machine" in found.text()


def shown(run: Path, *options: str) -> str:
    done = CliRunner().invoke(cli.app, ["launch", "logs", str(run), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_logs_of_a_job_of_ray(run: Path) -> None:
    folder = run / "logs" / f"job_{ID}"
    assert shown(run) == f"==> {folder}/attempt_2/driver.log <==\n{DRIVERS[2]}"
    assert shown(run, "--which", "job") == f"==> {folder}.log <==\nfrom the script\n"
    (folder / "attempt_1" / "ray_ready.log").write_text("Ray ready: 1 node\n")
    assert shown(run, "--which", "ray-ready", "--attempt", "1").endswith("Ray ready: 1 node\n")


def test_a_job_of_ray_is_followed_to_its_end_without_slurm(run: Path) -> None:
    folder = run / "logs" / f"job_{ID}"
    parts: list[str] = []

    def write(text: str) -> None:
        parts.append(text)
        if "step 3" in text:  # now it ends
            lines = [line.split(" ", 3) for line in STOPPED.strip().splitlines()]
            with open(folder / "events.tsv", "a") as stream:
                stream.writelines("\t".join(line) + "\n" for line in lines)

    logs(str(run), follow=True, write=write)
    assert "".join(parts).endswith("step 3/200\n")


@pytest.mark.parametrize("save", [False, True])
def test_cancelling_a_job_of_ray_is_ray_s(run: Path, save: bool) -> None:
    with pytest.raises(UserError) as caught:
        cancel(str(run), save=save, say=print)
    assert str(caught.value) == (
        f"nothing was cancelled: {ID} is a job of Ray, which saves and ends by: ray job stop {ASKED} --no-wait"
    )


def test_a_job_of_ray_that_is_over_needs_no_cancelling(run: Path) -> None:
    job_records(run, "z", EVENTS.replace("2026", "2027") + STOPPED.replace("2026", "2027"))
    with pytest.raises(UserError, match="job z of Ray is over by its records"):
        cancel(str(run), say=print)


def test_without_its_script_the_address_is_to_be_filled_in(tmp_path: Path, no_slurm: None) -> None:
    job_records(tmp_path, ID, EVENTS)
    assert f"ray job status --address http://HEAD:8265 {ID}" in status(str(tmp_path)).text()
    (tmp_path / "launch.sh").write_bytes(b"\xff\n# ray job submit --address 'a\n")
    assert f"ray job status --address http://HEAD:8265 {ID}" in status(str(tmp_path)).text()


NO_AGENT = "RuntimeError: status code 500: No available agent to submit job, please try again later."


@pytest.fixture
def young_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program `ray` of a cluster that has no agents for as many tries as the file says."""
    left, program = tmp_path / "left", tmp_path / "ray"
    text = f'echo "$*" >> {left}.said; n=$(cat {left}); [ "$n" = 0 ] && exit; echo $((n - 1)) > {left}'
    program.write_text(f"#!/bin/bash\n{text}; echo {shlex.quote(NO_AGENT)} >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(ray_job, "_ray_program", lambda name: str(program))
    return left


def test_a_cluster_that_has_no_agents_yet_is_asked_again(tmp_path: Path, young_cluster: Path) -> None:
    young_cluster.write_text("2")
    said: list[str] = []
    submission = submit(launched(tmp_path), say=said.append, retry_s=0.01)
    assert said == [f"Ray at {ADDRESS} has no agent that runs jobs yet; asked again in 0.01 s"] * 2
    tries = Path(f"{young_cluster}.said").read_text().splitlines()
    assert len(tries) == 3 and all(f"--submission-id {submission} " in line for line in tries)


@pytest.mark.parametrize(
    ("given", "tries"), [({"retry_s": 0.01}, 8), ({"retry_s": 5.0, "deadline_s": 4.0}, 1)]
)
def test_a_cluster_that_never_has_agents(
    tmp_path: Path, young_cluster: Path, given: dict[str, float], tries: int
) -> None:
    young_cluster.write_text("1000")
    with pytest.raises(UserError, match="has no agent that runs jobs: see"):
        submit(launched(tmp_path), say=lambda text: None, **given)
    assert len(Path(f"{young_cluster}.said").read_text().splitlines()) == tries


def test_options_reach_the_script_and_the_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RayJob] = []
    monkeypatch.setattr(ray_job, "launch_ray", lambda job, **_: seen.append(job))
    words = [
        "launch",
        "ray",
        "quickstart",
        "--address",
        ADDRESS,
        "--on-cpu",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    for given in ([], ["--save-time", "7", "--scratch", "/local"]):
        assert CliRunner().invoke(cli.app, [*words, *given]).exit_code == 0
    assert [(job.save_s, job.scratch) for job in seen] == [(1800, "/dev/shm"), (7, "/local")]
    printed: list[str] = []
    launch_ray(seen[1], dry_run=True, say=printed.append, environment={})
    assert "\nscratch=/local " in printed[0] and '"RAY_JOB_STOP_WAIT_TIME_S": "7"' in printed[0]
