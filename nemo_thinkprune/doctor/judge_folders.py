"""Folders and files: shared, readable, and large enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from checkpoints_tools.sizes import size
from nemo_thinkprune.costs.disk import Disk
from nemo_thinkprune.doctor.facts import Folder, NodeFacts, Space
from nemo_thinkprune.doctor.findings import Finding, note, ok, problem
from nemo_thinkprune.doctor.hostlist import fold
from nemo_thinkprune.doctor.needs import Needs

RUN = "run folder"
_FEW_INODES = 20_000
_LOCAL = ("tmpfs", "ramfs", "overlay", "ext4", "xfs", "btrfs")


def judge_folders(nodes: Sequence[NodeFacts], here: NodeFacts, needs: Needs) -> Iterator[Finding]:
    """Findings about folders that all share, files that all read, and room for the checkpoints.

    Args:
        nodes: who is to share them, perhaps `here` alone.
        here: who asks; it made the folder of the canary.
        needs: what the run reads and writes.
    """
    everyone = list({one.node: one for one in (here, *nodes)}.values())
    for label in dict.fromkeys(folder.label for one in everyone for folder in one.folders):
        told = {one.node: folder for one in everyone for folder in one.folders if folder.label == label}
        yield from _shared(label, told)
        yield from _locks(label, told)
    yield from _files(nodes, needs)
    for folder in here.folders:
        if folder.label == RUN:
            yield from judge_space(folder.space, needs.disk)


def judge_space(space: Space, disk: Disk) -> Iterator[Finding]:
    """Free space of the run folder against what the checkpoints will take."""
    if 0 <= space.inodes_free < _FEW_INODES:
        yield problem(
            "disk", f"{space.path} has {space.inodes_free} files (inodes) left", "remove files there"
        )
    free, quota = f"{space.path} has {size(space.free)} free", "a quota is not seen: ask for yours"
    room = "make room, set checkpointing.save_optimizer=false or a larger checkpointing.save_period"
    if space.free < 0:
        yield problem("disk", f"{space.path}: {space.problem}", "name a --run-dir that can be used")
        return
    if not disk.checkpoint:
        yield note("disk", f"{free}; {disk.source}", quota)
        return
    one = f"a checkpoint takes about {size(disk.checkpoint)} (by {disk.source})"
    if not disk.kept:
        told, needed = f"{one}; how many there will be is known once the data is there", 2 * disk.checkpoint
    else:
        rounds = f", {disk.kept * disk.rounds} in {disk.rounds} rounds" if disk.rounds > 1 else ""
        needed = disk.needed
        told = f"{one}, {disk.kept} are kept in a round{rounds}: {size(needed)}"
    if space.free < needed:
        yield problem("disk", f"{free}; {told}", room)
    elif not disk.kept:
        yield note("disk", f"{free}; {told}", quota)
    else:
        yield ok("disk", f"{free}; {told}; {quota}")


def _shared(label: str, told: dict[str, Folder]) -> Iterator[Finding]:
    wrong = {name: folder for name, folder in told.items() if folder.problem}
    elsewhere = " (others have it: it is not shared)" if len(wrong) < len(told) else ""
    for name, folder in wrong.items():
        yield problem(
            label,
            f"{folder.path}: {folder.problem}{elsewhere}",
            "name a folder that all nodes share and you may write",
            name,
        )
    usable = {name: folder for name, folder in told.items() if not folder.problem}
    apart = _sides(usable)
    path = next(iter(told.values())).path
    if len(apart) > 1:
        sides = " | ".join(fold(side) for side in apart)
        kinds = sorted({folder.file_system for folder in usable.values() if folder.file_system})
        kind = f" ({', '.join(kinds)})" if kinds else ""
        yield problem(
            label,
            f"{path}{kind} is not one folder: these do not see each other's files: {sides}",
            "name a folder of a file system that all nodes mount at the same path",
        )
    elif not wrong:
        what = "written" if len(usable) == 1 else "seen by all"
        yield ok(label, f"{path}, {what}", *usable)


def _sides(told: dict[str, Folder]) -> list[list[str]]:
    """Nodes grouped by who sees whom, both ways; one group when the folder is shared."""
    sides: list[list[str]] = []
    for name, folder in told.items():
        for side in sides:
            if all(other in folder.seen and name in told[other].seen for other in side):
                side.append(name)
                break
        else:
            sides.append([name])
    return sides


def _locks(label: str, told: dict[str, Folder]) -> Iterator[Finding]:
    local = [name for name, folder in told.items() if folder.lock == "local"]
    errors: dict[str, list[str]] = {}
    for name, folder in told.items():
        if folder.lock not in ("", "local", "unknown"):
            errors.setdefault(folder.lock, []).append(name)
    if local and label == RUN:
        yield note(
            label,
            "a lock (flock) of one node is not seen by others: two runs in one folder would not notice each other",
            "mount it with locks over nodes (Lustre: -o flock; NFS: without local_lock), or give each run its folder",
            *local,
        )
    for why, names in errors.items():
        if label == RUN:
            yield problem(
                label, f"flock does not work: {why}", "mount it with locks (Lustre: -o flock)", *names
            )


def _files(nodes: Sequence[NodeFacts], needs: Needs) -> Iterator[Finding]:
    fine = []
    for label in dict.fromkeys(file.label for one in nodes for file in one.files):
        told = {one.node: file for one in nodes for file in one.files if file.label == label}
        path = next(iter(told.values())).path
        good = True
        say, who = (note, "; only `prune` reads it") if label in needs.unread else (problem, "")
        for name, file in told.items():
            if file.problem:
                good = False
                yield say(label, f"{path}: {file.problem}{who}", _remedy(label), name)
        sizes: dict[int, list[str]] = {}
        for name, file in told.items():
            if not file.problem:
                sizes.setdefault(file.size, []).append(name)
        if len(sizes) > 1:
            good = False
            shown = "; ".join(f"{fold(names)} {number} bytes" for number, names in sizes.items())
            yield say(label, f"{path} is not the same file on all nodes: {shown}{who}", "use a shared folder")
        if good:
            fine.append(label)
    if fine:
        yield ok("files", f"{', '.join(fine)} can be read", *(one.node for one in nodes))


def _remedy(label: str) -> str:
    if label.startswith(("data.", "thinkprune.report_data")):
        return "thinkprune data prepare --out FOLDER in a shared folder, and give its path"
    if label == "policy.model_name":
        return "hf download NAME --local-dir FOLDER in a shared folder, and give its path"
    return "put it on a file system that all nodes share, and give its path"
