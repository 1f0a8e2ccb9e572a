"""Limits, memory and places of each node, and what its environment says."""

from __future__ import annotations

from collections.abc import Iterator

from checkpoints_tools.sizes import size
from nemo_thinkprune.doctor.facts import Host, NodeFacts
from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.doctor.needs import Needs
from nemo_thinkprune.launch.slurm_job import SCRATCH_ROOM, SOCKET_BYTES

_OPEN_FILES, _FEWEST_FILES = 65_536, 8_192
_SHARE_OF_STORE = 0.3  # of the memory: Ray's object store
_LEAST_SHM, _LEAST_SCRATCH, _GOOD_SCRATCH = 2e9, 1e9, 20e9


def judge_machine(one: NodeFacts, needs: Needs) -> Iterator[Finding]:
    """Findings about one node."""
    host, node = one.host, one.node
    yield from _scratch(host, node, needs)
    if needs.engine != "nemo-rl":
        return
    yield from _limits(host, node, needs)
    yield from _memory(host, node)
    yield from _ray(host, node)
    yield from _stacks(host, node)
    yield from _environment(host, node, needs)


def _scratch(host: Host, node: str, needs: Needs) -> Iterator[Finding]:
    space, name = host.scratch, "scratch folder"
    over = len(space.path.encode()) - SCRATCH_ROOM
    other = "give --scratch another folder, which each node has for itself"
    if host.scratch_problem:
        yield problem(name, f"{space.path}: {host.scratch_problem}", other, node)
    elif needs.engine == "nemo-rl" and over > 0:
        yield problem(
            name,
            f"{space.path} is too long by {over} characters: Ray's sockets in it would pass the "
            f"{SOCKET_BYTES} bytes of a Unix socket's path",
            "give --scratch a shorter name, such as /tmp",
            node,
        )
    elif 0 <= space.free < _LEAST_SCRATCH:
        yield problem(name, f"{space.path} has {size(space.free)} free", f"make room there, or {other}", node)
    elif 0 <= space.free < _GOOD_SCRATCH and needs.is_cluster:
        yield note(
            name,
            f"{space.path} has less than {size(_GOOD_SCRATCH)} free; Ray spills objects there",
            other,
            node,
        )
    else:
        yield ok(name, f"{space.path}, room enough", node)


def _limits(host: Host, node: str, needs: Needs) -> Iterator[Finding]:
    soft, hard = host.open_files
    most = _OPEN_FILES if hard == -1 else hard
    raise_it = f"ulimit -n {_OPEN_FILES} before the job, or LimitNOFILE={_OPEN_FILES} in slurmd's unit"
    if most < _FEWEST_FILES and needs.is_cluster:
        yield problem("open files", f"at most {hard} (ulimit -Hn); Ray needs {_OPEN_FILES}", raise_it, node)
    elif most < _OPEN_FILES or (soft != -1 and soft < _FEWEST_FILES):
        yield note(
            "open files", f"ulimit -n is {soft}, at most {hard}; Ray asks for {_OPEN_FILES}", raise_it, node
        )
    else:
        yield ok("open files", "as many as Ray asks for", node)
    if needs.is_cluster and host.locked_memory != -1:
        yield note(
            "locked memory",
            f"ulimit -l is {size(host.locked_memory)}: NCCL over InfiniBand needs it unlimited",
            "LimitMEMLOCK=infinity in slurmd's unit, --ulimit memlock=-1 for a container",
            node,
        )


def _memory(host: Host, node: str) -> Iterator[Finding]:
    shm, name = host.shm, "/dev/shm"
    if shm.problem:
        yield problem(name, shm.problem, "mount a tmpfs there", node)
    elif 0 <= shm.total < _LEAST_SHM:
        yield problem(
            name, f"{size(shm.total)} in all; Ray's object store and NCCL live there",
            "--shm-size=64g for a container, or mount -o remount,size=64g /dev/shm", node,
        )  # fmt: skip
    elif 0 <= shm.free < _SHARE_OF_STORE * host.memory_free:
        yield note(
            name,
            "less than a third of the memory is free there: Ray puts its object store on disk, which is slow",
            "enlarge it (mount -o remount,size=50% /dev/shm), or remove what others left",
            node,
        )
    else:
        yield ok(name, "room for Ray's object store", node)
    if 0 <= host.memory_free < host.memory_total / 2:
        yield note(
            "memory",
            f"{size(host.memory_free)} of {size(host.memory_total)} are free",
            "ask for whole nodes (--exclusive), or look who uses them: ps aux --sort -rss",
            node,
        )


def _ray(host: Host, node: str) -> Iterator[Finding]:
    if host.ray_folder_owner:
        yield note(
            "/tmp/ray",
            f"belongs to {host.ray_folder_owner}: harmless for a job of `thinkprune launch slurm`, which has a folder "
            "of its own; a `ray start` by hand fails",
            "by hand: export RAY_TMPDIR=/tmp/$USER and ray start --temp-dir=/tmp/$USER/ray",
            node,
        )
    if "RAY_ADDRESS" in host.variables:
        yield note(
            "RAY_ADDRESS",
            "is set: without a job of its own a run joins that cluster",
            "unset RAY_ADDRESS, if you do not mean it",
            node,
        )


def _stacks(host: Host, node: str) -> Iterator[Finding]:
    name = "stacks"
    if not host.py_spy:
        yield note(name, "py-spy is not there: stacks of a stalled run say less", "pip install py-spy", node)
    elif not host.may_trace:
        yield note(
            name,
            "kernel.yama.ptrace_scope does not let py-spy look into other processes",
            "sysctl -w kernel.yama.ptrace_scope=0 on the nodes, or accept stacks without those of workers",
            node,
        )
    else:
        yield ok(name, "py-spy can read them", node)


def _environment(host: Host, node: str, needs: Needs) -> Iterator[Finding]:
    if needs.is_cluster and "TORCH_CUDA_ARCH_LIST" not in host.variables:
        yield problem(
            "TORCH_CUDA_ARCH_LIST",
            "is not set, which NeMo-RL needs for Megatron",
            "export TORCH_CUDA_ARCH_LIST=9.0 for H100, 10.0 for B200 (NeMo-RL's container sets it)",
            node,
        )
    if needs.wandb and not host.netrc and not {"WANDB_API_KEY", "WANDB_MODE"} & set(host.variables):
        yield note(
            "W&B",
            "logger.wandb_enabled, but there is no key here: runs stay offline, or the start fails",
            "export WANDB_API_KEY before you submit, or give --secrets FILE; or WANDB_MODE=offline",
            node,
        )
    if needs.hub and not host.hub_token and "HF_TOKEN" not in host.variables:
        yield note(
            "hub",
            f"{', '.join(needs.hub)} would come from the hub, without a token",
            "hf download NAME --local-dir SHARED/FOLDER once, and give the folder in the recipe",
            node,
        )
