"""A job on a real Ray cluster with a dashboard: NeMo-RL's loop on CPU workers, crashed, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from support.nemo_rl import require_nemo_rl
from support.tiny_runs import make_root

from nemo_thinkprune.launch.ray_job import RayJob, launch_ray

GPUS = 2
TOKEN = "hf_AbCdEf0123456789"
JOIN = """
from nemo_thinkprune.cluster.ray_cluster import ray_cluster
from nemo_thinkprune.recipe.errors import UserError
try:
    with ray_cluster(on_cpu=True, ranks=3):
        pass
except UserError as error:
    print("refused:", error)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def until(condition: Callable[[], Any], *, seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.2)
    return found


class Ray:
    """A head with two logical GPUs, all of it under `folder`."""

    def __init__(self, folder: Path) -> None:
        from ray.util import get_node_ip_address

        self.programs = Path(sys.executable).parent
        port, dashboard, *others = free_ports(7)
        self.gcs, self.address = f"{get_node_ip_address()}:{port}", f"http://127.0.0.1:{dashboard}"
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        given = [f"--{name}-port={number}" for name, number in zip(names, others, strict=False)]
        given += [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={others[4]}"]
        given += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-host=127.0.0.1"]
        given += ["--include-dashboard=true", f"--temp-dir={folder / 'ray'}"]
        given += [f"--num-gpus={GPUS}", "--num-cpus=8", "--object-store-memory=200000000"]
        environment = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": "240",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        environment.pop("RAY_ADDRESS", None)
        self.log = folder / "head.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [self.programs / "ray", "start", "--head", "--block", "--disable-usage-stats", *given],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a head that fails to start ends its whole process group
            )

    def answers(self) -> bool:
        """Whether all of it is up: the dashboard alone answers early."""
        if "Ray runtime started" not in self.log.read_text():
            return False
        try:
            with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=5):
                return True
        except OSError:
            return False

    def status(self, submission: str) -> str:
        with urllib.request.urlopen(f"{self.address}/api/jobs/{submission}", timeout=30) as answer:
            return str(json.load(answer)["status"])

    def end(self) -> None:
        processes = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for one in processes:
            if psutil.pid_exists(one.pid):
                one.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a model."""
    require_nemo_rl()
    pytest.importorskip("ray.dashboard.optional_deps", reason="needs ray[default]")
    folder = tmp_path_factory.mktemp("root")
    make_root(folder)
    return folder


@pytest.fixture(scope="module")
def ray(root: Path) -> Iterator[Ray]:
    """A head, started when the model is made: on few cores it needs them for itself."""
    with TemporaryDirectory(prefix="tp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = started(Path(folder))
        try:
            yield cluster
        finally:
            cluster.end()


def started(folder: Path) -> Ray:
    """Ray gives a head 30 s to start, which a busy machine may not manage: up to three are tried."""
    for number in range(3):
        (folder / str(number)).mkdir()
        cluster = Ray(folder / str(number))
        while cluster.process.poll() is None:
            if cluster.answers():
                return cluster
            time.sleep(0.2)
    raise AssertionError(cluster.log.read_text()[-2000:])


@pytest.fixture(scope="module")
def job(ray: Ray, root: Path) -> RayJob:
    secrets = root / "secrets"
    secrets.write_text(f"HF_TOKEN={TOKEN}\n")
    secrets.chmod(0o600)
    found = require_nemo_rl()
    overrides = (
        f"policy.model_name={root}/warmup/model",
        f"data.train=[{{data_path: {root}/data/train.jsonl}}]",
        "data.validation=null",
        "thinkprune.limits=[60]",
        "thinkprune.long_limit=60",
        "grpo.num_prompts_per_step=6",
        "grpo.num_generations_per_prompt=8",
        "grpo.max_num_steps=60",
        "checkpointing.save_period=2",
        f"cluster.gpus_per_node={GPUS}",
        f"policy.megatron_cfg.tensor_model_parallel_size={GPUS}",
    )
    return RayJob(
        recipe="quickstart",
        run_dir=root / "run",
        work_dir=root,
        address=ray.address,
        overrides=overrides,
        on_cpu=True,
        nemo_rl_root=None if found.importable else found.root,
        python=ray.programs,
        save_s=300,
        retry_wait_s=0,
        scratch=str(root),
        secrets_file=secrets,
    )


def submit(job: RayJob) -> tuple[str, Path]:
    """Its id and the folder of its logs."""
    submission = launch_ray(job, dry_run=False, say=lambda _: None)
    assert submission is not None
    return submission, job.run_dir / "logs" / f"job_{submission}"


def events(logs: Path) -> list[str]:
    return [" ".join(line.split("\t")[2:]).strip() for line in (logs / "events.tsv").read_text().splitlines()]


def steps(job: RayJob) -> list[int]:
    file = job.run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def test_a_job_is_crashed_stopped_and_submitted_again(ray: Ray, job: RayJob) -> None:
    submission, logs = submit(job)
    until((job.run_dir / "checkpoints" / "step_2").exists)
    os.kill(int((logs / "attempt_1" / "trainer.pid").read_text()), signal.SIGKILL)
    until(lambda: any(event.startswith("start") for event in events(logs)[3:]))
    before = len(steps(job))
    until(lambda: len(steps(job)) > before + 1)
    subprocess.run(
        [ray.programs / "ray", "job", "stop", "--address", ray.address, "--no-wait", submission],
        check=True,
        capture_output=True,
        timeout=120,
    )
    until(lambda: ray.status(submission) == "STOPPED")
    told = [event for event in events(logs) if not event.startswith("ray_ready")]
    assert told[0] == f"start nodes=ray head={os.uname().nodename}"
    assert told[1:3] == ["end driver_killed code=137", "requeue after driver_killed"]
    assert told[4:] == ["signal TERM", "end saved code=75", "stopped as asked"]
    saved = max(int(path.name[5:]) for path in (job.run_dir / "checkpoints").iterdir())
    assert steps(job) == list(range(1, saved + 1)) and saved < 60

    submission, logs = submit(job)
    until(lambda: len(steps(job)) > saved)
    assert steps(job)[: saved + 1] == list(range(1, saved + 2))
    os.kill(int((logs / "attempt_1" / "trainer.pid").read_text()), signal.SIGTERM)  # it saves by itself
    until(lambda: "requeue after saved" in events(logs))
    urllib.request.urlopen(
        urllib.request.Request(f"{ray.address}/api/jobs/{submission}/stop", method="POST"), timeout=30
    ).close()
    until(lambda: ray.status(submission) == "STOPPED")
    everything = b"".join(path.read_bytes() for path in (job.run_dir / "logs").rglob("*") if path.is_file())
    everything += b"".join(path.read_bytes() for path in ray.log.parent.rglob("*.log") if path.is_file())
    assert TOKEN.encode() not in everything and b"HF_TOKEN_PATH" in everything


def test_what_the_user_must_mend_is_not_tried_again(ray: Ray, job: RayJob, tmp_path: Path) -> None:
    overrides = (*job.overrides, f"data.train=[{{data_path: {tmp_path}/none.jsonl}}]")
    submission, logs = submit(replace(job, run_dir=tmp_path / "run", overrides=overrides))
    until(lambda: ray.status(submission) == "FAILED")
    assert events(logs)[2] == "end user_error code=2"


def test_a_cluster_that_is_too_small_is_refused_in_words(ray: Ray) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**os.environ, "RAY_ADDRESS": ray.gcs, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "refused: --on-cpu with 3 ranks needs 3 GPU by Ray's count" in ended.stdout, ended.stderr[-2000:]
    assert f"the cluster at {ray.gcs} has 2 GPU, 8 CPU" in ended.stdout
