"""Ray that a job brings up on real nodes: over all of them, for itself alone, and gone when the job ends.

The script is rendered, given another program in the trainer's place by its owner, and handed to sbatch.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.argv_sampler import ArgvSampler, sampled_argv
from support.own_jobs import ProgramJob, digest, render_own, submit_own
from support.slurm_here import require_slurm
from support.slurm_jobs import PROGRAMS
from support.slurm_lab import SlurmLab, slurm_lab

from nemo_thinkprune.launch.slurm_job import gcs_port

FOREIGNER = 12345
TEST_NODES = {"pair": ("n1", "n2"), "crash": ("n3", "n4", "n5"), "broken": ("n6", "n7")}
SLURM_LATE_S = 120
"""Seconds until Slurm gives a node up: later than Ray does, as in Slurm's own settings (300 s)."""
READY_S = 60
# On a node with such a `ray` nothing comes up: it fails at the first attempt and says nothing at the second.
BROKEN_RAY = """#!/bin/sh
[ -n "$SLURM_RESTART_COUNT" ] && exec sleep 1000
echo 'no ray today' >&2
exit 3
"""
LISTENER = "import socket,time; s=socket.socket(); s.bind(('', {port})); s.listen(); time.sleep(10000)"


@dataclass(frozen=True, slots=True)
class Planted:
    """Values that nobody may see, and one that everybody does, to know that looking works."""

    key: str
    token: str
    canary: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """The lab with two jobs on the same two nodes, while both of their programs run."""

    lab: SlurmLab
    pair: tuple[ProgramJob, ProgramJob]
    crashing: ProgramJob
    lost: str
    broken: ProgramJob
    planted: Planted
    argv: ArgvSampler
    before: dict[str, Any]
    foreign: dict[str, Any]


def on(name: str) -> tuple[str, ...]:
    """The options that keep a job on nodes of its own test."""
    others = [node for key, nodes in TEST_NODES.items() if key != name for node in nodes]
    return (f"--sbatch=--exclude={','.join(others)}",)


def plant_foreign_ray(lab: SlurmLab, node: str) -> None:
    """The folder of another user's Ray, as it stands on shared machines, where Ray looks by itself."""
    script = (
        "mkdir -p /tmp/ray/session_old/logs && echo 10.9.9.9:6379 > /tmp/ray/ray_current_cluster"
        " && ln -s session_old /tmp/ray/session_latest && echo mine > /tmp/ray/session_old/logs/x"
        f" && chown -hR {FOREIGNER}:{FOREIGNER} /tmp/ray && chmod 700 /tmp/ray"
    )
    lab.in_node(node, ["sh", "-c", script])


def files_of(lab: SlurmLab, node: str, below: str) -> dict[str, Any]:
    """What is below a folder of a node, with what a change of it would change."""
    found = {}
    for path in lab.node_files(node, below):
        state = os.lstat(lab.node_path(node, path))
        found[path] = (state.st_mode, state.st_uid, state.st_size, state.st_mtime_ns)
    return found


def residents(lab: SlurmLab, node: str) -> dict[str, Any]:
    """The processes and files of a node."""
    return {
        "processes": sorted((process.pid, process.argv) for process in lab.processes(node)),
        "files": [path for place in ("/tmp", "/dev/shm") for path in lab.node_files(node, place)],
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """Nodes for all of the jobs, which run at the same time."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[dev]'")
    require_slurm()
    folder = tmp_path_factory.mktemp("ray") / "lab"
    shared = [tmp_path_factory.getbasetemp()]
    with slurm_lab(folder, shared=shared, nodes=7, cpus=4, slurmd_timeout=SLURM_LATE_S) as lab:
        yield lab


@pytest.fixture(scope="module")
def cluster(lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two jobs, one with secrets of the environment, one with those of a file and `set -x` in its script."""
    folder = tmp_path_factory.mktemp("pair")
    planted = Planted(secrets.token_hex(20), f"hf_{secrets.token_hex(17)}", secrets.token_hex(20))
    file = folder / "secrets"
    file.touch(mode=0o600)
    file.write_text(f"WANDB_API_KEY={planted.key}\nHF_TOKEN={planted.token}\n")
    for node in TEST_NODES["pair"]:
        plant_foreign_ray(lab, node)
    listen = f'setsid {PROGRAMS}/python -c "{LISTENER.format(port=gcs_port(2))}" > /dev/null 2>&1 &'
    lab.in_node("n1", ["sh", "-c", listen])
    ends = time.monotonic() + 30  # until then it is the shell or setsid that will become it
    while not any(p.argv[:2] == (f"{PROGRAMS}/python", "-c") for p in lab.processes("n1")):
        assert time.monotonic() < ends, lab.processes("n1")
        time.sleep(0.1)
    before = {node: residents(lab, node) for node in TEST_NODES["pair"]}
    foreign = {node: files_of(lab, node, "/tmp/ray") for node in TEST_NODES["pair"]}
    with sampled_argv(planted.key, planted.token, planted.canary) as argv:
        pair = submit_pair(lab, folder, planted, file)
        crashing = submit_own(
            lab, render_own(lab, *on("crash"), run_dir=folder / "crash"), run_dir=folder / "crash"
        )
        lost = crashing.answer()["nodes"][1]
        lab.crash(lost)
        for job in pair:
            job.answer()
        broken = submit_broken(lab, tmp_path_factory.mktemp("broken"))
        yield Cluster(lab, pair, crashing, lost, broken, planted, argv, before, foreign)
    assert argv.rounds > 10


def submit_pair(lab: SlurmLab, folder: Path, planted: Planted, file: Path) -> tuple[ProgramJob, ProgramJob]:
    environment = {"WANDB_API_KEY": planted.key, "HF_TOKEN": planted.token, "CANARY": planted.canary}
    where = "--sbatch=--nodelist=" + ",".join(TEST_NODES["pair"])
    a, b = folder / "a", folder / "b"
    script = render_own(lab, where, run_dir=a, environment=environment)
    one = submit_own(lab, script, run_dir=a, environment=environment)
    script = render_own(lab, where, "--secrets", file, run_dir=b)
    traced = script.replace("set -euo pipefail\n", "set -euxo pipefail\n", 1)
    assert traced != script
    return one, submit_own(lab, traced, run_dir=b)


@pytest.fixture(scope="module")
def ipv6(lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProgramJob]:
    """A job on nodes that have no IPv4 address."""
    folder = tmp_path_factory.mktemp("ipv6")
    with slurm_lab(folder / "lab", shared=[folder], nodes=2, addresses="ipv6") as lab:
        yield submit_own(lab, render_own(lab, run_dir=folder / "run"), run_dir=folder / "run")


def submit_broken(lab: SlurmLab, folder: Path) -> ProgramJob:
    """A job with two attempts on nodes of which the second has a broken Ray."""
    stub = folder / "ray"
    stub.write_text(BROKEN_RAY)
    stub.chmod(0o755)
    lab.in_node("n7", ["mount", "--bind", stub, PROGRAMS / "ray"])
    script = render_own(lab, *on("broken"), "--max-failures", "2", run_dir=folder / "run")
    hasty = script.replace("--deadline-s 900.0 ", f"--deadline-s {READY_S} ")
    assert hasty != script
    return submit_own(lab, hasty, run_dir=folder / "run")


# ---- Two jobs on the same nodes, at work ----


def test_a_job_has_ray_on_both_nodes_and_actors_that_reach_each_other(cluster: Cluster) -> None:
    for job in cluster.pair:
        answer = job.answer()
        assert answer["nodes"] == ["n1", "n2"]
        assert sorted(member["host"] for member in answer["members"]) == ["n1", "n2"]
        assert answer["sums"] == [11, 11]


def test_two_jobs_at_the_same_time_on_the_same_nodes_do_not_meet(cluster: Cluster) -> None:
    one, other = (job.answer() for job in cluster.pair)
    for job, answer in zip(cluster.pair, (one, other), strict=True):
        assert {member["job"] for member in answer["members"]} == {str(job.job_id)}
        assert job.lab.job(job.job_id)["JobState"] == "RUNNING"
    assert one["gcs"] != other["gcs"]
    assert one["ray_token"] != other["ray_token"]


def test_the_port_is_the_jobs_own_or_the_next_one_that_is_free(cluster: Cluster) -> None:
    ports = [int(job.answer()["gcs"].rpartition(":")[2]) for job in cluster.pair]
    assert [job.job_id for job in cluster.pair] == [1, 2], "somebody listens where the second job would"
    assert ports == [gcs_port(1), gcs_port(2) + 2], "ports are taken in pairs"


def test_the_program_finds_its_secrets_on_every_node(cluster: Cluster) -> None:
    expected = {"token": digest(cluster.planted.token), "key": digest(cluster.planted.key)}
    for job in cluster.pair:
        for member in job.answer()["members"]:
            assert {name: member[name] for name in expected} == expected
            assert member["modes"] == ["0o600", "0o600"]
            assert not {"WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & set(member["variables"])


def test_secrets_are_in_no_command_line(cluster: Cluster) -> None:
    seen = cluster.argv.seen
    assert seen[cluster.planted.canary], "other variables of the job are: Ray's workers are started with them"
    assert not seen[cluster.planted.key]
    assert not seen[cluster.planted.token]


def test_secrets_are_in_no_file_that_the_job_writes(cluster: Cluster) -> None:
    looked_at = 0
    for job in cluster.pair:
        texts = [path for path in job.run_dir.rglob("*") if path.is_file()]
        looked_at += len(texts)
        assert holding(cluster.planted, texts) == []
        for node in TEST_NODES["pair"]:
            private = f"/tmp/thinkprune-{job.job_id}-1"
            inside = [cluster.lab.node_path(node, path) for path in cluster.lab.node_files(node, private)]
            logs = [path for path in inside if path.is_file() and not path.is_symlink()]
            assert any(path.match("ray/session_*/logs/*") for path in logs)
            assert sorted(path.name for path in holding(cluster.planted, logs)) == ["hf_token", "netrc"]
            looked_at += len(logs)
    assert looked_at > 50


def test_secrets_are_in_no_file_of_slurm_that_users_can_read(cluster: Cluster) -> None:
    spools = [cluster.lab.node_path(node, "/run/slurmd") for node in TEST_NODES["pair"]]
    for root in (cluster.lab.folder, *spools):
        files = [path for path in root.rglob("*") if path.is_file() and readable(path, root)]
        assert holding(cluster.planted, files) == []


def holding(planted: Planted, files: list[Path]) -> list[Path]:
    """Those of `files` in which a secret stands."""
    wanted = (planted.key.encode(), planted.token.encode())
    found = []
    for path in files:
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # Ray rotates its logs
            continue
        if any(value in data for value in wanted):
            found.append(path)
    return found


def readable(path: Path, root: Path) -> bool:
    """Whether others than root may read a file below `root`."""
    folders = [folder for folder in path.parents if folder.is_relative_to(root)]
    return bool(path.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in folders)


# ---- Nodes that have IPv6 only ----


def test_ray_comes_up_where_nodes_have_ipv6_only(ipv6: ProgramJob) -> None:
    answer = ipv6.answer()
    ipv6.let_go()
    assert answer["gcs"] == f"[{ipv6.lab.settings.address('n1')}]:{gcs_port(ipv6.job_id)}"
    assert (answer["nodes"], answer["sums"]) == (["n1", "n2"], [11, 11])
    assert ipv6.wait_over() == "COMPLETED"


# ---- What ends an attempt ----


def test_a_lost_node_is_named_and_the_job_goes_on_without_it(cluster: Cluster) -> None:
    job, lost = cluster.crashing, cluster.lost
    job.wait_event("end", attempt=1)
    answer = job.answer(attempt=2)
    job.let_go()
    assert job.wait_over() == "COMPLETED"
    assert answer["nodes"] == sorted(set(TEST_NODES["crash"]) - {lost})
    assert job.ends() == [("node_lost", "requeue"), ("finished", "finished")]
    assert lost in job.attempts()[0].text.split()
    assert re.search(r"Actor\w*Error", job.log("driver.log"))
    job.wait_gone()


def test_a_node_on_which_ray_does_not_come_up_is_named(cluster: Cluster) -> None:
    broken = cluster.broken
    assert broken.wait_over() == "FAILED"
    assert broken.ends() == [("ray_failed", "requeue"), ("ray_not_ready", "gave_up")]
    failed, silent = broken.attempts()
    assert failed.text == "ray_workers ended: n7: task 0: Exited with exit code 3: 0: no ray today"
    assert re.search(r"waiting for .* nodes: (n6, )?n7;", silent.text)
    assert silent.code == 1
    broken.wait_gone()


def test_secrets_that_others_may_read_by_now_end_the_job_and_leave_nothing(
    lab: SlurmLab, tmp_path: Path
) -> None:
    file = tmp_path / "secrets"
    file.touch(mode=0o600)
    file.write_text("HF_TOKEN=hf_seen\n")
    script = render_own(lab, *on("broken"), "--secrets", file, run_dir=tmp_path / "run")
    file.chmod(0o644)
    job = submit_own(lab, script, run_dir=tmp_path / "run")
    assert job.wait_over() == "FAILED"
    assert job.ends() == [("user_error", "gave_up")]
    assert "chmod 600" in job.output and "hf_seen" not in job.output
    job.wait_gone()


# ---- What is left (comes last: it ends the two jobs) ----


def test_nothing_is_left_of_the_jobs_and_nothing_else_is_touched(cluster: Cluster) -> None:
    for job in cluster.pair:
        job.let_go()
    for job in cluster.pair:
        assert job.wait_over() == "COMPLETED"
        assert job.ends() == [("finished", "finished")]
        job.wait_gone()
    for node in TEST_NODES["pair"]:
        ends = time.monotonic() + 60  # Slurm's own processes for steps go a little after the job
        while residents(cluster.lab, node) != cluster.before[node] and time.monotonic() < ends:
            time.sleep(0.5)
        assert residents(cluster.lab, node) == cluster.before[node]
        assert files_of(cluster.lab, node, "/tmp/ray") == cluster.foreign[node]
