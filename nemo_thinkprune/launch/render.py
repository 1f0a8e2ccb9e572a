"""The sbatch script of a job."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from nemo_thinkprune.launch.slurm import SCRIPT_NAME
from nemo_thinkprune.launch.slurm_job import GCS_PORTS, GCS_STRIDE, SlurmJob, own_folders
from nemo_thinkprune.launch.templates import render_template

TEMPLATE = "slurm/job.sbatch.jinja"
_CPU_OBJECT_STORE_BYTES = 256 << 20
# What the script itself exports, for the container in the place of what its image says.
_OWN_VARIABLES = (
    "PYTHONPATH", "TMPDIR", "HF_TOKEN_PATH", "NETRC", "RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED",
)  # fmt: skip


def render(job: SlurmJob) -> str:
    """The script that `sbatch` is given."""
    return render_template(
        TEMPLATE,
        job=job,
        title=_title(job),
        script=job.run_dir / SCRIPT_NAME,
        log_root=job.run_dir / "logs",
        sbatch_lines=list(_sbatch_lines(job)),
        setup_lines=list(_setup_lines(job)),
        trainer=list(_trainer(job)),
        ray=job.ray,
        ray_cpus=_ray_cpus(job),
        ray_memory=f" --object-store-memory={_CPU_OBJECT_STORE_BYTES}" if job.on_cpu else "",
        ports=GCS_PORTS,
        stride=GCS_STRIDE,
        mounts=",".join(_mounts(job)),
        container_variables=",".join([*(name for name, _ in job.variables), *_OWN_VARIABLES]),
    )


def _title(job: SlurmJob) -> str:
    machines = f"{job.nodes} node{'s' if job.nodes > 1 else ''}"
    gpus = f" of {job.gpus_per_node} GPUs" if job.gpus_per_node and not job.without_gpus else ""
    return f"thinkprune {job.verb} {shlex.quote(job.recipe)} on {machines}{gpus}, engine {job.engine}."


def _sbatch_lines(job: SlurmJob) -> Iterator[str]:
    yield f"--job-name={job.name}"
    yield f"--nodes={job.nodes}"
    yield "--ntasks-per-node=1"
    if job.gpus_per_node and not job.without_gpus:
        yield f"--gres=gpu:{job.gpus_per_node}"
    if job.cpus_per_node is None:
        yield from ("--exclusive", "--mem=0")
    else:
        yield f"--cpus-per-task={job.cpus_per_node}"
    yield f"--time={job.time}"
    if job.partition:
        yield f"--partition={job.partition}"
    if job.account:
        yield f"--account={job.account}"
    yield f"--signal=B:USR1@{job.save_ahead_s}"
    yield "--requeue"
    yield "--open-mode=append"
    yield f"--output={job.run_dir}/logs/job_%j.log"
    yield from job.sbatch


def _setup_lines(job: SlurmJob) -> Iterator[str]:
    yield from (f"export {name}={shlex.quote(value)}" for name, value in job.variables)
    if job.python is not None:
        yield f"export PATH={shlex.quote(str(job.python))}:$PATH"
    if job.source is not None:
        yield f"export PYTHONPATH={shlex.quote(str(job.source))}${{PYTHONPATH:+:$PYTHONPATH}}"
    if job.secrets_file is not None:
        yield f"secrets_file={shlex.quote(str(job.secrets_file))}"
    yield from job.setup


def _mounts(job: SlurmJob) -> Iterator[str]:
    """The user's, and the folders that the job itself needs, each in its own place, where those have it not."""
    yield from job.mounts
    pairs = (mount.split(":") for mount in job.mounts)
    there = [Path(source) for source, inside, *_ in pairs if Path(source) == Path(inside)]
    for folder in own_folders(job):
        if not any(folder.is_relative_to(mounted) for mounted in there):
            there.append(folder)
            yield f"{folder}:{folder}"


def _trainer(job: SlurmJob) -> Iterator[list[str]]:
    """The command of the head node, as lines of words."""
    yield ["python", "-m", "nemo_thinkprune", job.verb, job.recipe]
    options = ["--engine", job.engine]
    if job.on_cpu:
        options.append("--on-cpu")
    if job.nemo_rl_root is not None:
        options += ["--nemo-rl-root", str(job.nemo_rl_root)]
    yield [*options, "--run-dir", str(job.run_dir)]
    for override in job.overrides:
        yield [override]


def _ray_cpus(job: SlurmJob) -> str:
    """What Ray admits actors by: the node's own processors; on a CPU a number that lets all of them in."""
    return str(4 * job.gpus_per_node + 8) if job.on_cpu else '"$SLURM_CPUS_ON_NODE"'
