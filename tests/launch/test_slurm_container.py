"""A job in containers: what each of its steps asks pyxis for, and that no container outlives it.

Pyxis is a stand-in that writes down its options, and Ray's and the trainer's programs are too: those of an image.
Pyxis's own behaviour (README, args.c and pyxis_slurmstepd.c of 0.24): the first task with a name makes the container
of that name on its node from the image, later ones find it; a name outlives its job unless the plugin is set to
``container_scope=job``, which also puts the job's id into the name; a variable of the image wins over one of the
job's unless ``--container-env`` names it; a mount whose source is absent fails the step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import pytest
from support.container_flags import BATCH_STEP, ContainerTask
from support.own_jobs import submit_own, with_trainer
from support.slurm_here import require_slurm
from support.slurm_jobs import LaunchedJob, thinkprune
from support.slurm_lab import SlurmLab, slurm_lab

IMAGE = "nvcr.io#nvidia/nemo-rl:v0.7.0"
PROGRAMS = {
    # Listens as a head, or tells that a worker is there.
    "ray": """#!/bin/bash
for word; do case $word in --port=*) port=${word#*=} ;; esac; done
[ -z "${port:-}" ] || exec PYTHON -c "import socket, time; s = socket.create_server(('', $port)); time.sleep(900)"
touch FOLDER/worker
exec sleep 900
""",
    "python": """#!/bin/bash
case $2 in
  *.ray_ready)
    echo '1 of 2 nodes: waiting for n2'
    until [ -e FOLDER/worker ]; do sleep 0.1; done
    echo 'Ray ready: 2 nodes, 0.1 s'
    ;;
  *.watchdog) exec sleep 900 ;;
  *) exit 9 ;;
esac
""",
    "enroot": """#!/bin/bash
echo "$(hostname) $*" >> FOLDER/enroot
""",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    require_slurm(containers=True)
    folder = tmp_path_factory.mktemp("pyxis") / "lab"
    with slurm_lab(folder, shared=[tmp_path_factory.getbasetemp()], nodes=2, containers=True) as lab:
        yield lab


def write_programs(folder: Path, programs: Mapping[str, str]) -> Path:
    """Programs that are found before others; returns their folder."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        program = folder / "bin" / name
        program.write_text(text.replace("FOLDER", str(folder)).replace("PYTHON", sys.executable))
        program.chmod(0o755)
    return folder / "bin"


def launch_in_container(
    lab: SlurmLab, folder: Path, programs: Mapping[str, str], *options: str
) -> LaunchedJob:
    """A job of two nodes whose trainer is `hostname`."""
    path = write_programs(folder, programs)
    command = [
        *("launch", "slurm", "quickstart", "--on-cpu", "--dry-run", "--nodes", "2", "--gpus-per-node", "1"),
        *(
            "--run-dir",
            folder / "run",
            "--container",
            IMAGE,
            "--setup",
            f"export PATH={path}:$PATH",
            "--time",
            "5",
        ),
        *("--max-failures", "1", *options),
    ]
    done = thinkprune(lab, *command, cwd=folder, environment={"HF_HOME": "/models", "HF_TOKEN": "hf_x"})
    script = with_trainer(done.stdout, "hostname")
    return submit_own(lab, script, run_dir=folder / "run", environment={"HF_TOKEN": "hf_x"})


@pytest.fixture(scope="module")
def finished(lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> LaunchedJob:
    """A job that has run to its end in containers."""
    folder = tmp_path_factory.mktemp("finished")
    job = launch_in_container(
        lab, folder, PROGRAMS, "--mounts", f"{folder}:{folder}", "--mounts", "/opt:/data:ro"
    )
    assert job.wait_over() == "COMPLETED", job.told()
    return job


def steps_of(job: LaunchedJob) -> list[list[ContainerTask]]:
    """The tasks of each step that ran in containers."""
    tasks = sorted(
        (task for task in job.lab.containers() if task.job_id == job.job_id), key=lambda task: task.step
    )
    return [list(found) for _, found in groupby(tasks, key=lambda task: task.step)]


def test_the_first_step_makes_the_container_on_every_node(finished: LaunchedJob) -> None:
    first = steps_of(finished)[0]
    assert sorted(task.node for task in first) == ["n1", "n2"]
    assert {task.options["container-image"] for task in first} == {IMAGE}


def test_all_other_steps_use_the_one_that_is_there(finished: LaunchedJob) -> None:
    first, *others = steps_of(finished)
    assert sorted([task.node for task in step] for step in others) == [["n1"]] * 4 + [["n2"]]
    for task in (task for step in others for task in step):
        assert task.options == {
            name: value for name, value in first[0].options.items() if name != "container-image"
        }


def test_every_step_has_the_name_the_folders_and_the_variables(finished: LaunchedJob) -> None:
    folder, name = finished.run_dir.parent, f"thinkprune-{finished.job_id}-1"
    for task in (task for step in steps_of(finished) for task in step):
        given = dict(task.options)
        mounts = given.pop("container-mounts").split(",")
        variables = given.pop("container-env").split(",")
        given.pop("container-image", None)
        assert given == {
            "container-name": name, "container-workdir": str(folder), "no-container-mount-home": ""
        }  # fmt: skip
        assert mounts[:2] == [f"{folder}:{folder}", "/opt:/data:ro"]
        assert mounts[-1] == f"/tmp/{name}:/tmp/{name}"
        assert {"HF_HOME", "HF_TOKEN_PATH", "PYTHONPATH", "TMPDIR"} <= set(variables)


def test_the_script_itself_and_the_private_folder_are_outside(finished: LaunchedJob) -> None:
    steps = [step[0].step for step in steps_of(finished)]
    assert BATCH_STEP not in steps
    assert min(steps) >= 3, "the folder, its keeper and the secrets come before the container"


def test_containers_are_removed_under_either_name_that_pyxis_gives(finished: LaunchedJob) -> None:
    finished.wait_gone()
    job, removed = finished.job_id, (finished.run_dir.parent / "enroot").read_text().splitlines()
    names = (f"pyxis_thinkprune-{job}-1", f"pyxis_{job}_thinkprune-{job}-1")
    assert sorted(removed) == sorted(f"{node} remove -f {name}" for node in ("n1", "n2") for name in names)


def test_a_container_that_cannot_be_made_is_the_end_of_the_attempt(lab: SlurmLab, tmp_path: Path) -> None:
    programs = {**PROGRAMS, "true": "#!/bin/sh\necho 'no such image' >&2\nexit 4\n"}
    job = launch_in_container(lab, tmp_path, programs)
    assert job.wait_over() == "FAILED"
    assert job.ends() == [("failed", "gave_up")]
    assert job.attempts()[0].text.startswith("no container: n")
    assert "Exited with exit code 4" in job.attempts()[0].text
    assert "no such image" in job.log("container.log")
    job.wait_gone()
