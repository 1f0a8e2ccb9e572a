"""GPUs: as many as the recipe asks for, free and healthy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemo_thinkprune.doctor.facts import Gpu, Gpus, NodeFacts
from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.doctor.hostlist import fold
from nemo_thinkprune.doctor.needs import Needs

_IDLE_MIB = 1024  # a context or two of a monitor
_ASK = "thinkprune doctor RECIPE --nodes N asks the nodes themselves"


def judge_gpus(nodes: Sequence[NodeFacts], needs: Needs, *, is_login: bool) -> Iterator[Finding]:
    """Findings about the GPUs of all nodes; `is_login`: this may well be a machine that has none."""
    if needs.gpus == 0:
        return
    for one in nodes:
        yield from _of_node(one.gpus, one.node, needs.gpus, is_login=is_login)
        yield from _health(one.gpus, one.node, is_ours=not (is_login or one.host.is_shared))
    for what, value in (("driver", lambda g: g.driver), ("CUDA of the driver", lambda g: g.cuda),
                        ("GPU", lambda g: ", ".join(sorted({d.name for d in g.devices})))):  # fmt: skip
        groups: dict[str, list[str]] = {}
        for one in nodes:
            if one.gpus.devices:
                groups.setdefault(value(one.gpus), []).append(one.node)
        if len(groups) > 1:
            told = "; ".join(f"{fold(names)} {text}" for text, names in groups.items())
            yield note(
                "GPUs",
                f"not the same {what} on all nodes: {told}",
                "ask for nodes of one kind (--constraint)",
            )


def _of_node(gpus: Gpus, node: str, wanted: int | None, *, is_login: bool) -> Iterator[Finding]:
    count = visible_count(gpus)
    if wanted is None:
        yield ok("GPUs", f"{_what(gpus, count)}" if count else "none; enough for a run on CPUs", node)
    elif count < wanted:
        found = f"{count} of {wanted}: " + (gpus.problem or _hidden(gpus) or "nvidia-smi shows no more")
        if is_login:
            yield note("GPUs", found, _ASK, node)
        else:
            remedy = f"ask Slurm for them (--gres=gpu:{wanted}) or set cluster.gpus_per_node={count or 1}"
            yield problem("GPUs", found, remedy, node)
    elif count > wanted:
        yield note(
            "GPUs", f"{_what(gpus, count)}, of which cluster.gpus_per_node = {wanted} are used", "", node
        )
    else:
        yield ok("GPUs", _what(gpus, count), node)


def _health(gpus: Gpus, node: str, *, is_ours: bool) -> Iterator[Finding]:
    """Of the GPUs that a run would use here; `is_ours`: nobody else is to use any of them."""
    for gpu in visible_devices(gpus):
        used = f"GPU {gpu.index}: {gpu.memory_used / 1024:.1f} GiB are in use"
        if gpu.memory_used > _IDLE_MIB and is_ours:
            remedy = "look who uses it (nvidia-smi), end it, or leave the node out (--exclude)"
            yield problem("GPUs", f"{used} before the run", remedy, node)
        elif gpu.memory_used > _IDLE_MIB:
            yield note(
                "GPUs",
                f"{used}, perhaps by another job: this node is shared",
                "look who uses it (nvidia-smi); with --sbatch=--exclusive the nodes asked are nobody else's",
                node,
            )
        if gpu.ecc_errors > 0:
            yield problem(
                "GPUs",
                f"GPU {gpu.index}: {gpu.ecc_errors} memory errors that could not be corrected",
                f"leave the node out (--exclude={node}) and tell its administrators",
                node,
            )


def visible_count(gpus: Gpus) -> int:
    """GPUs that a process sees: CUDA stops at the first entry of CUDA_VISIBLE_DEVICES that it does not know."""
    if gpus.visible is None:
        return len(gpus.devices)
    count = 0
    for entry in gpus.visible.split(","):
        entry = entry.strip()
        if not entry or entry == "-1" or (entry.isdecimal() and int(entry) >= len(gpus.devices)):
            break
        count += 1
    return min(count, len(gpus.devices))


def visible_devices(gpus: Gpus) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by their numbers or identifiers; parts of one (MIG) are none."""
    if gpus.visible is None:
        return gpus.devices
    names = [name.strip() for name in gpus.visible.split(",")]
    return [
        gpu
        for gpu in gpus.devices
        if any(
            name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
            for name in names
        )
    ]


def _what(gpus: Gpus, count: int) -> str:
    names = ", ".join(sorted({device.name for device in gpus.devices}))
    return f"{count} x {names}, driver {gpus.driver}" + (f", CUDA {gpus.cuda}" if gpus.cuda else "")


def _hidden(gpus: Gpus) -> str:
    if gpus.visible is None:
        return ""
    return f"nvidia-smi shows {len(gpus.devices)}, CUDA_VISIBLE_DEVICES={gpus.visible!r} hides some"
