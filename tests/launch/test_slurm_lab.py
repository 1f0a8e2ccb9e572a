"""The lab itself: real nodes that fail as machines do, and nothing left of them."""

from __future__ import annotations

from pathlib import Path

from support.slurm_lab import SlurmLab


def test_nodes_are_idle_and_have_their_own_host_name(slurm: SlurmLab) -> None:
    assert [slurm.node_state(node) for node in slurm.nodes] == ["idle", "idle", "idle"]
    assert sorted(slurm.run(["srun", "-N2", "hostname"]).stdout.split()) == ["n1", "n2"]


def test_a_job_runs_and_writes_to_the_shared_folder(slurm: SlurmLab, tmp_path: Path) -> None:
    job = slurm.submit("#!/bin/sh\nsrun hostname\n", "-N2", "-o", str(tmp_path / "out.log"))
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert sorted((tmp_path / "out.log").read_text().split()) == ["n1", "n2"]
