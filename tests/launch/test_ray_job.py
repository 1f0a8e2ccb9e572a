"""The script of a Ray job, run as it is with a stand-in for the trainer and for Ray, and its submission."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nemo_thinkprune.launch import ray_job
from nemo_thinkprune.launch.ray_job import RayJob, check_job, launch_ray, render, submit, write_script
from nemo_thinkprune.launch.ray_nodes import wait_for_gpus
from nemo_thinkprune.launch.ray_ready import NotAnswering, RayNode
from nemo_thinkprune.recipe.errors import UserError

KEY, TOKEN = "a1" * 20, "hf_AbCdEf0123456789"
# The `python` of the job: $PLAN/train_N is what the N-th attempt does; Ray has one node, this one.
PYTHON = r"""#!/bin/bash
module=$2
shift 2
case $module in
  nemo_thinkprune)
    echo "$*" >> "$PLAN/commands"
    n=$(wc -l < "$PLAN/commands")
    exec bash "$PLAN/train_$n" ;;
  *.watchdog)
    n=$(wc -l < "$PLAN/commands" 2> /dev/null || echo 0)
    echo watching
    if [ -e "$PLAN/stall" ]; then sleep 1; rm "$PLAN/stall"; echo "stalled: nothing moved"; exit 76; fi
    exec sleep 1000 ;;
  *.stacks)
    while [ "$1" != --into ]; do shift; done
    mkdir -p "$2" && echo stack > "$2/node.txt" ;;
  *.ray_nodes)
    if [ "$1" = wait ]; then
      [ ! -e "$PLAN/not_ready" ] || { echo "Ray not ready after 1 s"; exit 1; }
      echo "Ray ready: 1 node, 2 of 2 GPUs, 0.4 s"
    else
      shift
      [ "$1" != --deadline-s ] || shift 2
      "$@"
    fi ;;
esac
"""
SAVE = 'mkdir -p "$RUN/checkpoints/step_1" && touch "$RUN/checkpoints/step_1"\n'


class Cluster:
    """A folder in which a job runs; `attempts` are the scripts of its trainers."""

    def __init__(self, folder: Path, *attempts: str, **fields: Any) -> None:
        self.folder, self.run, self.plan = folder, folder / "a run", folder / "plan"
        for path in (self.plan, folder / "bin", folder / "shm"):
            path.mkdir()
        for number, text in enumerate(attempts, start=1):
            (self.plan / f"train_{number}").write_text(text)
        (folder / "bin" / "python").write_text(PYTHON)
        (folder / "bin" / "python").chmod(0o755)
        made: dict[str, Any] = {
            "recipe": "quickstart",
            "run_dir": self.run,
            "work_dir": folder,
            "address": "http://head:8265",
            "scratch": str(folder / "shm"),
            "python": folder / "bin",
            "retry_wait_s": 0,
            "gpus": 2,
        }
        self.job = RayJob(**(made | fields))
        write_script(self.job, render(self.job))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        base = {
            "PATH": os.environ["PATH"],
            "PLAN": str(self.plan),
            "RUN": str(self.run),
            "RAY_ADDRESS": "10.0.0.1:6379",
            "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {}, "metadata": {"job_submission_id": "job-7"}}',
            "HOSTNAME": "head",
        }
        return subprocess.Popen(
            ["bash", str(self.job.script)],
            env=base | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    @property
    def logs(self) -> Path:
        return self.run / "logs" / "job_job-7"

    def events(self) -> list[tuple[str, ...]]:
        """(attempt, event, detail) without the time."""
        lines = (self.logs / "events.tsv").read_text().splitlines()
        return [tuple(line.split("\t")[1:]) for line in lines]

    def trainers(self) -> list[int]:
        return [int(file.read_text()) for file in self.logs.glob("attempt_*/trainer.pid")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    made: list[Cluster] = []

    def make(*attempts: str, **fields: Any) -> Cluster:
        made.append(Cluster(tmp_path, *attempts, **fields))
        return made[-1]

    yield make
    for one in made:
        for pid in one.trainers():
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def until(condition: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_run_that_ends_well_is_done(cluster: Any) -> None:
    job = cluster("echo trained", overrides=("data.train=[{data_path: /a b}]",), on_cpu=True, verb="prune")
    code, said = job.end()
    assert code == 0 and "trained" in said
    assert job.events() == [
        ("1", "start", "nodes=ray head=head"),
        ("1", "ray_ready", "0.4"),
        ("1", "end", "finished code=0 "),
        ("1", "finished", ""),
    ]
    given = (job.plan / "commands").read_text().strip()
    assert given.startswith("prune quickstart --engine nemo-rl --on-cpu")
    assert given.endswith(f"--run-dir {job.run} data.train=[{{data_path: /a b}}]")
    assert (job.logs / "attempt_1" / "driver.log").read_text() == "trained\n"
    assert "trained" in (job.run / "logs" / "job_job-7.log").read_text()
    assert (job.logs / "job.sh").read_text() == job.job.script.read_text()
    assert not list((job.folder / "shm").iterdir())


def test_failures_in_a_row_without_a_checkpoint_are_counted(cluster: Any) -> None:
    job = cluster("exit 1", f"{SAVE} kill -KILL $$", "exit 1", "exit 137", max_failures=2)
    code, _ = job.end()
    assert code == 1
    ends = [detail for _, name, detail in job.events() if name == "end"]
    assert ends == ["failed code=1 ", "driver_killed code=137 ", "failed code=1 ", "driver_killed code=137 "]
    assert job.events()[-1] == ("4", "gave_up", "2 attempts in a row ended without a new checkpoint")


def test_what_the_user_must_mend_is_not_tried_again(cluster: Any) -> None:
    job = cluster("echo 'error: no such file' >&2; exit 2")
    code, said = job.end()
    assert code == 2 and "error: no such file" in said
    assert [name for _, name, _ in job.events()] == ["start", "ray_ready", "end", "gave_up"]


def test_a_run_that_saved_and_left_by_itself_goes_on(cluster: Any) -> None:
    job = cluster(f"{SAVE} exit 75", "exit 0", max_failures=1)
    assert job.end()[0] == 0
    assert ("1", "requeue", "after saved") in job.events()


def test_ray_job_stop_saves_and_spares_the_trainer_s_helpers(cluster: Any) -> None:
    helper = '(trap "touch $PLAN/helper_hit" TERM; while :; do sleep 0.1; done) & helper=$!\n'
    asked = "trap 'touch $PLAN/asked; kill -KILL $helper; exit 75' TERM\n"
    trainer = f"{helper}{asked}touch $PLAN/up; while :; do sleep 0.1; done"
    job = cluster(trainer)
    process = job.start()
    until((job.plan / "up").exists)
    script = psutil.Process(process.pid)
    for one in [script, *script.children(recursive=True)]:  # as Ray does
        one.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert (job.plan / "asked").exists() and not (job.plan / "helper_hit").exists()
    assert [tuple(event[1:]) for event in job.events()[2:]] == [
        ("signal", "TERM"),
        ("end", "saved code=75 "),
        ("stopped", "as asked"),
    ]


def test_a_trainer_does_not_outlive_its_job(cluster: Any) -> None:
    job = cluster("touch $PLAN/up; exec sleep 1000")
    process = job.start()
    until((job.plan / "up").exists)
    process.kill()
    process.wait()
    [trainer] = job.trainers()
    until(lambda: gone(trainer))


def test_a_run_that_stands_still_is_ended_with_stacks_and_tried_again(cluster: Any) -> None:
    job = cluster("trap '' TERM; exec sleep 1000", "exit 0")
    (job.plan / "stall").touch()
    assert job.end()[0] == 0
    folder = job.logs / "attempt_1" / "stacks"
    detail = f"stalled code=76 stalled: nothing moved; stacks: {folder}"
    assert ("1", "end", detail) in job.events() and ("1", "requeue", "after stalled") in job.events()
    assert (folder / "node.txt").read_text() == "stack\n"


def test_a_cluster_without_enough_gpus_is_waited_for_and_then_given_up(cluster: Any) -> None:
    job = cluster("exit 0", max_failures=2)
    (job.plan / "not_ready").touch()
    assert job.end()[0] == 1
    ends = [detail for _, name, detail in job.events() if name == "end"]
    assert ends == ["ray_not_ready code=- Ray not ready after 1 s"] * 2


def test_secrets_are_files_for_the_trainer_and_nothing_else(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "my secrets"
    file.write_text(f"HF_TOKEN={TOKEN}\n")
    file.chmod(0o600)
    trainer = 'env > "$PLAN/env_$N"; cat "$NETRC" "$HF_TOKEN_PATH" > "$PLAN/read_$N"; ls -l "$NETRC" > "$PLAN/mode"\n'
    job = cluster(f"N=1; {trainer} exit 1", f"N=2; {trainer} exit 0", secrets_file=file)
    code, said = job.end(WANDB_API_KEY=KEY)
    assert code == 0, said
    for number in (1, 2):
        read = (job.plan / f"read_{number}").read_text()
        assert read == f"machine api.wandb.ai\n  login user\n  password {KEY}\n{TOKEN}"
        environment = (job.plan / f"env_{number}").read_text()
        assert KEY not in environment and TOKEN not in environment
    assert (job.plan / "mode").read_text().startswith("-rw-------")
    everything = said + "".join(p.read_text() for p in job.run.rglob("*") if p.is_file())
    assert KEY not in everything and TOKEN not in everything
    assert not list((tmp_path / "shm").iterdir())


def test_a_file_of_secrets_that_others_can_read_ends_the_job(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(f"HF_TOKEN={TOKEN}\n")
    file.chmod(0o644)
    job = cluster("exit 0", secrets_file=file)
    assert job.end()[0] == 2
    assert [name for _, name, _ in job.events()] == ["end", "gave_up"]
    assert not (job.plan / "commands").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("secrets", [None, Path("/a b/secrets")])
def test_the_script_passes_shellcheck(cluster: Any, secrets: Path | None) -> None:
    job = cluster(secrets_file=secrets, variables=(("HF_HOME", "/a b"),), setup=("set -x",))
    subprocess.run(["shellcheck", str(job.job.script)], check=True)


def plain(**fields: Any) -> RayJob:
    usual = {"recipe": "quickstart", "run_dir": Path("run"), "work_dir": Path(), "address": "http://h:1"}
    return RayJob(**(usual | fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"address": "head:8265"}, "--address 'head:8265'"),
        ({"address": "ray://head:10001"}, "http://head:8265"),
        ({"address": "https://me:word@head"}, "--address"),
        ({"max_failures": 0}, "--max-failures 0: at least 1"),
        ({"scratch": "tmp"}, "--scratch 'tmp'"),
        ({"overrides": ("a=b\nc",)}, "one line"),
    ],
)
def test_what_would_fail_on_the_cluster_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        check_job(plain(**fields))
    assert says in str(caught.value)


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    overrides = ("cluster.gpus_per_node=2", "policy.megatron_cfg.tensor_model_parallel_size=2")
    job = plain(on_cpu=True, overrides=overrides)
    assert launch_ray(job, dry_run=True, say=printed.append, environment={}) is None
    [text] = printed
    assert f"run_dir={tmp_path / 'run'}\n" in text and "wait --gpus 2 " in text
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_the_recipe_s_keys_is_refused() -> None:
    job = plain(on_cpu=True, overrides=(f"logger.wandb.name={KEY}",))
    with pytest.raises(UserError, match="the value of WANDB_API_KEY stands in the job"):
        launch_ray(job, dry_run=True, say=print, environment={"WANDB_API_KEY": KEY})


def ray_that(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = folder / "ray"
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(ray_job, "_ray_program", lambda name: str(program))


def test_a_job_is_handed_to_ray_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_that(
        tmp_path,
        monkeypatch,
        f'printf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "given"))}; env >> "$0.env"',
    )
    file = tmp_path / "secrets"
    file.write_text(f"HF_TOKEN={TOKEN}\n")
    file.chmod(0o600)
    printed: list[str] = []
    job = plain(on_cpu=True, secrets_file=file, run_dir=tmp_path / "run")
    submission = launch_ray(job, dry_run=False, say=printed.append, environment={})
    given = (tmp_path / "given").read_text().splitlines()
    assert given[:4] == ["job", "submit", "--address", "http://h:1"]
    assert given[given.index("--submission-id") + 1] == submission
    assert given[-4:] == ["--", "exec", "bash", str(tmp_path / "run" / "launch.sh")]
    assert '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "1800"}}' in given
    script = (tmp_path / "run" / "launch.sh").read_text()
    assert TOKEN not in "".join([*given, *printed, script]) and f"secrets_file={file}\n" in script
    assert f"ray job stop --address http://h:1 {submission}" in "\n".join(printed)


def test_a_key_of_this_shell_alone_is_said_to_stay_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_that(tmp_path, monkeypatch, "exit 0")
    printed: list[str] = []
    job = plain(on_cpu=True, run_dir=tmp_path / "run")
    launch_ray(job, dry_run=False, say=printed.append, environment={"HF_TOKEN": TOKEN})
    assert printed[0].startswith("note: HF_TOKEN of this shell does not reach the cluster")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("RuntimeError: the Ray jobs CLI & SDK require the ray[default] installation", "pip install 'ray"),
        ("ConnectionError: Failed to connect to Ray at address: http://h:1.", "no Ray dashboard answers"),
        ("Token authentication is enabled but no token was found", "RAY_AUTH_MODE=token"),
        ("ValueError: Job with submission_id x already exists", "already exists"),
    ],
)
def test_why_ray_did_not_take_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, told: str
) -> None:
    ray_that(tmp_path, monkeypatch, f"echo {shlex.quote(says)} >&2; exit 1")
    with pytest.raises(UserError) as caught:
        submit(plain(), say=print)
    assert told in str(caught.value)


def test_a_dashboard_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_that(tmp_path, monkeypatch, "exec sleep 1000")
    with pytest.raises(UserError, match="did not take the job within"):
        submit(plain(), say=print, deadline_s=0.2)


def test_waiting_for_gpus_says_what_is_there_and_ends() -> None:
    answers: list[Any] = [NotAnswering("connection refused"), [2.0], [2.0], [2.0, 2.0]]
    now = [0.0]

    def ask(_: float) -> list[RayNode]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, NotAnswering):
            raise answer
        return [RayNode(frozenset({str(number)}), gpus) for number, gpus in enumerate(answer)]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    said: list[str] = []
    given: dict[str, Any] = {"say": said.append, "clock": lambda: now[0], "sleep": sleep}
    assert wait_for_gpus(ask, gpus=4, deadline_s=100, **given)
    assert said == [
        "Ray does not answer: connection refused",
        "1 node, 2 of 4 GPUs",
        "Ray ready: 2 nodes, 4 of 4 GPUs, 6.0 s",
    ]
    assert not wait_for_gpus(ask, gpus=8, deadline_s=10, **given)
    assert said[-1] == "Ray not ready after 10 s: 2 nodes, 4 of 8 GPUs"
