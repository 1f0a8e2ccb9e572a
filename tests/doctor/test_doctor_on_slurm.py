"""The doctor on a real Slurm of three nodes: what it finds there, and that it leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.slurm_lab import SlurmLab, slurm_lab

from nemo_thinkprune.doctor.hostlist import expand, fold

DOCTOR = """
import sys
from pathlib import Path
from nemo_thinkprune.doctor.commands import EngineChoice, Request, doctor
on_cpu = EngineChoice("nemo-rl", None, on_cpu=True)
request = Request(nodes={nodes}, engine=on_cpu, run_dir=Path(sys.argv[1]), startup_s=8, patience_s=2, wait_s={wait})
doctor(request)
"""

Ask = Callable[..., str]


@pytest.fixture
def ask(slurm: SlurmLab, tmp_path: Path) -> Ask:
    """Run the doctor on the login node; gives what it printed, one line a finding."""

    def run(folder: Path, *, nodes: int = 3, wait: int = 20, **environment: str) -> str:
        command = [sys.executable, "-c", DOCTOR.format(nodes=nodes, wait=wait), folder]
        text = slurm.run(command, timeout=90, cwd=tmp_path, environment=environment).stdout
        return text.replace("\n         ", " ")

    return run


@contextmanager
def mounted(slurm: SlurmLab, node: str, what: list[str | Path], where: Path | str) -> Iterator[None]:
    slurm.in_node(node, ["mount", *what, where])
    try:
        yield
    finally:
        slurm.in_node(node, ["umount", "-l", where])


def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def findings(text: str, level: str) -> list[str]:
    return [line.removeprefix(level).strip() for line in text.splitlines() if line.startswith(level)]


def test_healthy_nodes_have_no_problem_but_missing_nemo_rl_and_nothing_is_left(
    slurm: SlurmLab, ask: Ask, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path)
    before = {node: slurm.node_files(node) for node in slurm.nodes}
    text = ask(folder)
    assert {line.partition(" ")[0] for line in findings(text, "problem")} <= {"NeMo-RL", "packages"}, text
    fine = "\n".join(findings(text, "ok"))
    assert "Slurm: slurm-wlm" in fine and "3 idle" in fine
    assert "n[1-3]]: every node reaches every other (IPv4)" in fine
    assert "clock [n[2-3]]" in fine
    assert f"{folder}, seen by all" in fine and "(here),n[1-3]]" in fine
    assert list(folder.iterdir()) == []
    assert {node: slurm.node_files(node) for node in slurm.nodes} == before


def test_a_folder_that_is_another_on_one_node_is_named_with_the_sides(
    slurm: SlurmLab, ask: Ask, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path)
    with mounted(slurm, "n2", ["-t", "tmpfs", "private"], folder):
        text = ask(folder)
        left = slurm.in_node("n2", ["ls", "-A", folder]).stdout
    (found,) = [line for line in findings(text, "problem") if line.startswith("run folder")]
    assert "do not see each other's files" in found and "tmpfs" in found
    assert "(here),n[1,3] | n2" in found
    assert "-> name a folder" in found
    assert left == "" and list(folder.iterdir()) == []


def test_a_node_without_the_folder_is_named(slurm: SlurmLab, ask: Ask, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    with mounted(slurm, "n3", ["-t", "tmpfs", "private"], tmp_path):
        text = ask(folder)
    (found,) = [line for line in findings(text, "problem") if line.startswith("run folder")]
    assert found.startswith("run folder [n3]") and "no such folder (others have it" in found


def test_a_fault_of_each_node_is_told_with_its_node(slurm: SlurmLab, ask: Ask, tmp_path: Path) -> None:
    cache, hosts = tmp_path / "hf", tmp_path / "hosts"
    cache.mkdir()
    real = slurm.in_node("n2", ["cat", "/etc/hosts"]).stdout.splitlines()
    others = [line for line in real if not line.endswith(" n2")]
    hosts.write_text("\n".join([*others, "127.0.1.1 n2"]) + "\n")
    slurm.in_node("n3", ["sh", "-c", "mkdir /tmp/ray && chown daemon /tmp/ray"])
    try:
        with (
            mounted(slurm, "n1", ["-t", "tmpfs", "private"], cache),
            mounted(slurm, "n2", ["--bind", hosts], "/etc/hosts"),
        ):
            text = ask(run_folder(tmp_path), HF_HOME=str(cache))
    finally:
        slurm.in_node("n3", ["rmdir", "/tmp/ray"])
    problems, notes = findings(text, "problem"), findings(text, "note")
    (of_cache,) = [line for line in problems if line.startswith("HF_HOME")]
    assert "(here),n[2-3] | n1" in of_cache
    (of_name,) = [line for line in problems if line.startswith("network")]
    assert "[n2]" in of_name and "the host name n2 means 127.0.1.1" in of_name and "/etc/hosts" in of_name
    (of_ray,) = [line for line in notes if line.startswith("/tmp/ray")]
    assert "[n3]" in of_ray and "belongs to daemon" in of_ray and "RAY_TMPDIR" in of_ray


def test_a_read_only_folder_is_found(slurm: SlurmLab, ask: Ask, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    with mounted(slurm, "n2", ["--bind", "-o", "ro", folder], folder):
        text = ask(folder)
    (found,) = [line for line in findings(text, "problem") if line.startswith("run folder")]
    assert "[n2]" in found and "Read-only file system" in found


def test_a_silent_node_is_named_and_the_others_are_examined(
    slurm: SlurmLab, ask: Ask, tmp_path: Path
) -> None:
    """Nothing starts on n2, and n1 cannot reach n3."""
    routes = [["10.77.0.13/32"], ["-6", "fd77::13/128"]]
    for route in routes:
        slurm.in_node("n1", ["ip", *route[:-1], "route", "add", "unreachable", route[-1]])
    try:
        with mounted(slurm, "n2", ["--bind", "/dev/null"], Path(sys.executable).resolve()):
            text = ask(run_folder(tmp_path))
    finally:
        for route in routes:
            slurm.in_node("n1", ["ip", *route[:-1], "route", "del", "unreachable", route[-1]])
    problems = findings(text, "problem")
    (silent,) = [line for line in problems if line.startswith("nodes")]
    assert "[n2]" in silent and "no answer from n2" in silent
    apart = [line for line in problems if line.startswith("connections")]
    assert any(line.startswith("connections [n1]: does not reach n3: no connection to") for line in apart)
    assert not any("n2" in line for line in apart)
    assert "Python [n[1,3]]" in text


def test_more_nodes_than_there_are(slurm: SlurmLab, ask: Ask, tmp_path: Path) -> None:
    text = ask(run_folder(tmp_path), nodes=4)
    problems = findings(text, "problem")
    assert any("3 nodes that work" in line and "not 4" in line for line in problems)
    assert len(problems) == 1 and "they were not asked" in text


def test_what_a_site_demands_reaches_slurm(slurm: SlurmLab, tmp_path: Path) -> None:
    """Nodes in whole are given, though --output would take the answers away; a feature that no node has is refused."""
    command = [
        sys.executable,
        "-m",
        "nemo_thinkprune",
        "doctor",
        "--nodes",
        "2",
        "--run-dir",
        tmp_path,
        "--on-cpu",
    ]
    options = ["--sbatch=--exclusive", f"--sbatch=--output={tmp_path}/out", "--sbatch=--requeue"]
    text = slurm.run([*command, *options], timeout=90, cwd=tmp_path, check=False).stdout
    assert "every node reaches every other" in text and not (tmp_path / "out").exists()
    text = slurm.run([*command, "--sbatch=--constraint h100"], timeout=90, cwd=tmp_path, check=False).stdout
    assert "Slurm started nothing" in text and "Invalid feature specification" in text
    assert text.rstrip().endswith("'--sbatch=--constraint h100'")


def test_a_busy_cluster_is_not_waited_for_without_end(slurm: SlurmLab, ask: Ask, tmp_path: Path) -> None:
    job = slurm.submit("#!/bin/sh\nsleep 100\n", "-N3", "--exclusive")
    slurm.wait(job, ["RUNNING"])
    try:
        text = ask(run_folder(tmp_path), wait=1)
    finally:
        slurm.run(["scancel", str(job)])
    assert any("the job will wait" in line for line in findings(text, "note"))
    assert any("Slurm gave no nodes within 1 s" in line for line in findings(text, "problem"))
    assert slurm.run(["squeue", "-h", "-n", "thinkprune-doctor", "-t", "PENDING,RUNNING"]).stdout == ""


def test_inside_a_job_it_uses_the_jobs_own_nodes(slurm: SlurmLab, tmp_path: Path) -> None:
    folder, log = run_folder(tmp_path), tmp_path / "job.log"
    program = tmp_path / "ask.py"
    program.write_text(DOCTOR.format(nodes=2, wait=20))
    script = f"#!/bin/bash\necho a banner of some module\n{sys.executable} {program} {folder}\n"
    # nodes in whole: without --overlap a step of the doctor's would wait for ever
    job = slurm.submit(script, "-N2", "--exclusive", "-o", str(log))
    assert slurm.wait(job, timeout=90)["JobState"] == "COMPLETED", log.read_text()
    text = log.read_text().replace("\n         ", " ")
    assert f"{folder}, seen by all" in text, text
    assert "every node reaches every other" in text
    assert list(folder.iterdir()) == []


def test_lists_of_nodes_are_read_and_written_as_slurm_does(slurm: SlurmLab) -> None:
    for text in ("n[1-3]", "gpu[08-11,7]", "a1,b[2-3],c", "rack[1-2]node[01-02]"):
        names = slurm.run(["scontrol", "show", "hostnames", text]).stdout.split()
        assert expand(text) == names
        folded = slurm.run(["scontrol", "show", "hostnames", fold(names)]).stdout.split()
        assert sorted(folded) == sorted(names)


def test_nodes_with_ipv6_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("ipv6")
    with slurm_lab(base / "lab", shared=[base], nodes=2, addresses="ipv6") as lab:
        command = [sys.executable, "-c", DOCTOR.format(nodes=2, wait=20), base]
        text = lab.run(command, timeout=90, cwd=base).stdout
    assert "every node reaches every other (IPv6)" in text
