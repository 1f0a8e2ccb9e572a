"""Facts of machines that are not here, judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nemo_thinkprune.costs.disk import Disk
from nemo_thinkprune.doctor.facts import (
    File,
    Folder,
    FoundNemoRL,
    Gpu,
    Gpus,
    Host,
    Network,
    NodeFacts,
    Peer,
    Space,
)
from nemo_thinkprune.doctor.findings import Finding, Level
from nemo_thinkprune.doctor.judge_folders import RUN, judge_folders, judge_space
from nemo_thinkprune.doctor.judge_gpus import judge_gpus, visible_count, visible_devices
from nemo_thinkprune.doctor.judge_machine import judge_machine
from nemo_thinkprune.doctor.judge_network import judge_clocks, judge_network
from nemo_thinkprune.doctor.judge_software import judge_software
from nemo_thinkprune.doctor.needs import Needs

GB = 10**9
CLUSTER = Needs(engine="nemo-rl", is_cluster=True, nodes=2, gpus=2)
ON_CPU = Needs(engine="nemo-rl", gpus=0)
HOST = Host(
    hostname="n1", user="me", python="3.13.1", executable="/env/bin/python", package_hash="abc",
    package_folder="/shared/src",
    packages={"nemo-thinkprune": "0.1.0", "torch": "2.9.0", "ray": "2.55.1", "transformers": "5.5.0"},
    nemo_rl=FoundNemoRL("/opt/nemo-rl", "0.7.0"), variables=["TORCH_CUDA_ARCH_LIST"],
    open_files=(65536, 65536), memory_total=1000 * GB, memory_free=900 * GB,
    shm=Space("/dev/shm", 500 * GB, 490 * GB, 10**6), scratch=Space("/tmp", 900 * GB, 800 * GB, 10**6),
    py_spy="/usr/bin/py-spy",
)  # fmt: skip
H100 = Gpus([Gpu(number, "H100", 81559, 4, 0) for number in range(2)], "550.1", "12.4")


def node(name: str, **parts: object) -> NodeFacts:
    others = [one for one in ("n1", "n2") if one != name]
    network = Network(28100, ["10.0.0.9"], [], (32768, 60999), peers=[met(one) for one in others])
    base = NodeFacts(name, replace(HOST, hostname=name), H100, network=network)
    return replace(base, **parts)  # type: ignore[arg-type]


def met(name: str, offset: float = 0.0) -> Peer:
    return Peer(name, ["10.0.0.9"], "10.0.0.9", "", offset, 0.0002)


def bad(findings: Iterable[Finding]) -> list[tuple[Level, str, str]]:
    """Level, check and nodes of all that is not fine."""
    return [(one.level, one.check, one.place) for one in findings if one.level != Level.OK]


def of_host(**changed: object) -> list[Finding]:
    return list(judge_machine(node("n1", host=replace(HOST, **changed)), CLUSTER))  # type: ignore[arg-type]


def test_two_good_nodes_have_nothing_to_complain_about() -> None:
    nodes = [node("n1"), node("n2")]
    assert bad(judge_software(nodes, nodes[0], CLUSTER)) == []
    assert bad(judge_gpus(nodes, CLUSTER, is_login=False)) == []
    assert bad(judge_network(nodes, CLUSTER)) == []
    assert [one for node_ in nodes for one in bad(judge_machine(node_, CLUSTER))] == []


@pytest.mark.parametrize(
    ("changed", "check"),
    [
        ({"package_hash": "def"}, "thinkprune"),
        ({"python": "3.12.3"}, "Python"),
        ({"packages": {**HOST.packages, "torch": "2.10.0"}}, "torch"),
        ({"nemo_rl": FoundNemoRL("/opt/nemo-rl", "0.6.0")}, "NeMo-RL"),
    ],
)
def test_another_version_on_one_node_is_a_problem_that_names_both(
    changed: dict[str, object], check: str
) -> None:
    nodes = [node("n1"), node("n2", host=replace(HOST, **changed))]  # type: ignore[arg-type]
    (found,) = [one for one in judge_software(nodes, nodes[0], CLUSTER) if one.level == Level.PROBLEM]
    assert found.check == check and "n1 " in found.found and "n2 " in found.found and found.remedy


def test_software_of_each_node() -> None:
    old = node(
        "n1", host=replace(HOST, python="3.10.2", unmet=["torch>=2.9 (is 2.1)", "safetensors (missing)"])
    )
    assert bad(judge_software([old], old, replace(CLUSTER, engine="local"))) == [
        (Level.PROBLEM, "Python", "n1"), (Level.PROBLEM, "packages", "n1"),
    ]  # fmt: skip
    # NeMo-RL's Python need not have what only the local engine imports
    few = node("n1", host=replace(HOST, packages={"torch": "2.9.0"}, unmet=["megatron-core (missing)"]))
    (found,) = [one for one in judge_software([few], few, CLUSTER) if one.level == Level.PROBLEM]
    assert "ray (missing)" in found.found and "megatron" not in found.found


def test_nemo_rl_that_is_absent_or_of_another_release() -> None:
    absent = node("n1", host=replace(HOST, nemo_rl=FoundNemoRL(problem="NeMo-RL is not here")))
    assert bad(judge_software([absent], absent, CLUSTER)) == [(Level.PROBLEM, "NeMo-RL", "n1")]
    later = node("n1", host=replace(HOST, nemo_rl=FoundNemoRL("/x", "0.8.0")))
    assert bad(judge_software([later], later, CLUSTER)) == [(Level.NOTE, "NeMo-RL", "n1")]
    assert bad(judge_software([absent], absent, Needs(engine="local"))) == []


def test_nodes_with_another_program_than_the_one_that_asks() -> None:
    here = node("login", host=replace(HOST, package_hash="mine"))
    assert bad(judge_software([node("n1")], here, CLUSTER)) == [(Level.NOTE, "thinkprune", "")]


@pytest.mark.parametrize(
    ("changed", "level", "check"),
    [
        ({"open_files": (1024, 4096)}, Level.PROBLEM, "open files"),
        ({"open_files": (1024, 65536)}, Level.NOTE, "open files"),
        ({"open_files": (20000, 20000)}, Level.NOTE, "open files"),
        ({"locked_memory": 64 << 10}, Level.NOTE, "locked memory"),
        ({"shm": Space("/dev/shm", 64 << 20, 64 << 20, 99)}, Level.PROBLEM, "/dev/shm"),
        ({"shm": Space("/dev/shm", 500 * GB, 100 * GB, 99)}, Level.NOTE, "/dev/shm"),
        ({"shm": Space("/dev/shm", problem="No such file or directory")}, Level.PROBLEM, "/dev/shm"),
        ({"memory_free": 400 * GB, "shm": Space("/dev/shm", 500 * GB, 490 * GB)}, Level.NOTE, "memory"),
        ({"scratch_problem": "Permission denied"}, Level.PROBLEM, "scratch folder"),
        ({"scratch": Space("/tmp", 9 * GB, GB // 2)}, Level.PROBLEM, "scratch folder"),
        ({"scratch": Space("/tmp", 90 * GB, 9 * GB)}, Level.NOTE, "scratch folder"),
        ({"scratch": Space("/scratch/users/me", 900 * GB, 800 * GB)}, Level.PROBLEM, "scratch folder"),
        ({"ray_folder_owner": "bob"}, Level.NOTE, "/tmp/ray"),
        ({"variables": ["TORCH_CUDA_ARCH_LIST", "RAY_ADDRESS"]}, Level.NOTE, "RAY_ADDRESS"),
        ({"variables": []}, Level.PROBLEM, "TORCH_CUDA_ARCH_LIST"),
        ({"py_spy": ""}, Level.NOTE, "stacks"),
        ({"may_trace": False}, Level.NOTE, "stacks"),
    ],
)
def test_one_thing_wrong_with_a_machine(changed: dict[str, object], level: Level, check: str) -> None:
    found = of_host(**changed)
    assert bad(found) == [(level, check, "n1")]
    assert all(one.remedy for one in found if one.level != Level.OK)


def test_keys_and_tokens_are_missed_only_where_they_are_needed() -> None:
    needs = replace(CLUSTER, wandb=True, hub=("Qwen/QwQ-32B",))
    assert [check for _, check, _ in bad(judge_machine(node("n1"), needs))] == ["W&B", "hub"]
    known = replace(HOST, netrc=True, hub_token=True)
    assert bad(judge_machine(node("n1", host=known), needs)) == []


def test_a_machine_for_the_local_engine_needs_none_of_rays_things() -> None:
    poor = replace(HOST, open_files=(256, 256), py_spy="", variables=[], shm=Space(problem="none"))
    assert bad(judge_machine(node("n1", host=poor), Needs(engine="local"))) == []


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 2), ("0,1", 2), ("1", 1), ("", 0), ("-1", 0), ("0,7,1", 1), ("GPU-a,GPU-b", 2)],
)
def test_gpus_that_a_process_sees(visible: str | None, count: int) -> None:
    assert visible_count(replace(H100, visible=visible)) == count


def test_gpus_of_nodes() -> None:
    hidden = node("n1", gpus=replace(H100, visible="0"))
    (found,) = judge_gpus([hidden], CLUSTER, is_login=False)
    assert (
        found.level == Level.PROBLEM and "1 of 2" in found.found and "CUDA_VISIBLE_DEVICES='0'" in found.found
    )
    none = node("login", gpus=Gpus(problem="nvidia-smi is not there"))
    assert bad(judge_gpus([none], CLUSTER, is_login=True)) == [(Level.NOTE, "GPUs", "login")]
    assert bad(judge_gpus([none], CLUSTER, is_login=False)) == [(Level.PROBLEM, "GPUs", "login")]
    assert list(judge_gpus([none], ON_CPU, is_login=False)) == []
    used = node("n1", gpus=Gpus([Gpu(0, "H100", 81559, 60000, 0), Gpu(1, "H100", 81559, 4, 3)], "550.1"))
    told = [one.found for one in judge_gpus([used], CLUSTER, is_login=False) if one.level == Level.PROBLEM]
    assert len(told) == 2 and "GPU 0: 58.6 GiB are in use" in told[0] and "GPU 1: 3 memory errors" in told[1]
    more = node("n1", gpus=Gpus([Gpu(n, "H100") for n in range(8)], "550.1", "12.4"))
    assert bad(judge_gpus([more, node("n2", gpus=replace(H100, driver="560.2"))], CLUSTER, is_login=False)) == [
        (Level.NOTE, "GPUs", "n1"), (Level.NOTE, "GPUs", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        (None, [0, 1]),
        ("1", [1]),
        ("", []),
        ("-1", []),
        ("GPU-b", [1]),
        ("GPU-b7,GPU-a5", [0, 1]),
        ("MIG-a", []),
    ],
)
def test_gpus_that_are_looked_at_are_those_of_the_job(visible: str | None, indexes: list[int]) -> None:
    devices = [Gpu(0, "H100", uuid="GPU-a5c1"), Gpu(1, "H100", uuid="GPU-b7d2")]
    assert [gpu.index for gpu in visible_devices(Gpus(devices, visible=visible))] == indexes


def test_memory_that_another_job_may_use_is_no_problem() -> None:
    busy = Gpus([Gpu(0, "H100", 81559, 60000, 2), Gpu(1, "H100", 81559, 50000, 0)], "550.1", visible="1")
    one = replace(CLUSTER, gpus=1)
    (found,) = [item for item in judge_gpus([node("n1", gpus=busy)], one, is_login=False) if item.level]
    assert (
        found.level == Level.PROBLEM and "GPU 1: 48.8 GiB" in found.found
    )  # the first one is not this run's
    shared = node("n1", gpus=busy, host=replace(HOST, is_shared=True))
    (found,) = [item for item in judge_gpus([shared], one, is_login=False) if item.level]
    assert found.level == Level.NOTE and "another job" in found.found and "--exclusive" in found.remedy
    assert bad(judge_gpus([node("login", gpus=busy)], one, is_login=True)) == [(Level.NOTE, "GPUs", "login")]


@pytest.mark.parametrize(
    ("offset", "level"), [(0.2, None), (-0.9, None), (1.5, Level.NOTE), (-7.2, Level.PROBLEM)]
)
def test_clocks_against_the_first_node(offset: float, level: Level | None) -> None:
    first = node("n1", network=Network(1, ["10.0.0.1"], peers=[met("n2", offset)]))
    other = node("n2", network=Network(1, ["10.0.0.2"], peers=[met("n1", -offset)]))
    (found,) = judge_clocks([first, other])
    assert found.level == (level or Level.OK) and found.where == ("n2",)
    if level:
        assert ("behind" if offset < 0 else "ahead of") in found.found and f"{abs(offset)} s" in found.found
    blind = replace(first, network=replace(first.network, peers=[Peer("n2", problem="refused")]))
    assert [one.level for one in judge_clocks([blind, other])] == [level or Level.OK]  # the other way round


def test_networks_of_nodes() -> None:
    loop = node("n1", network=Network(1, ["127.0.1.1"], peers=[met("n2")]))
    assert (Level.PROBLEM, "network", "n1") in bad(judge_network([loop, node("n2")], CLUSTER))
    assert (
        bad(judge_network([replace(loop, network=Network(1, ["127.0.1.1"]))], replace(CLUSTER, nodes=1)))
        == []
    )
    login = [replace(loop, network=Network(1, ["127.0.1.1"]))]
    assert bad(judge_network(login, CLUSTER, is_login=True)) == []  # the run will be elsewhere
    apart = node("n1", network=Network(1, ["10.0.0.1"], peers=[Peer("n2", problem="refused")]))
    assert (Level.PROBLEM, "connections", "n1") in bad(judge_network([apart, node("n2")], CLUSTER))
    wrong = node("n1", network=Network(1, ["10.0.0.1"], peers=[Peer("n2", ["127.0.0.1"], "127.0.0.1")]))
    assert (Level.PROBLEM, "connections", "n1") in bad(judge_network([wrong, node("n2")], CLUSTER))


def test_ports_and_proxies() -> None:
    wide = Network(1, ["10.0.0.1"], [12000, 25001], (1024, 65535), ["http_proxy"], ["n2", "10.0.0.2"])
    one = node("n1", network=wide)
    found = [item for item in judge_network([one], CLUSTER) if item.level != Level.OK]
    assert [item.check for item in found] == ["ports", "ports", "proxy"]
    assert "12000, 25001" in found[1].found and "no_proxy=$no_proxy,n2,10.0.0.2" in found[2].remedy
    assert bad(judge_network([one], Needs(engine="local"))) == []


def folder(path: str, seen: list[str], **changed: object) -> Folder:
    space = Space(path, 10**13, 5 * 10**12, 10**6)
    return replace(Folder(RUN, path, "", "nfs4", seen, "", space), **changed)  # type: ignore[arg-type]


def sharing(**folders: Folder) -> tuple[list[NodeFacts], NodeFacts]:
    facts = [node(name, folders=[one]) for name, one in folders.items()]
    return facts[1:], facts[0]


def test_a_shared_folder_and_one_that_is_not() -> None:
    everyone = ["login", "n1", "n2"]
    nodes, here = sharing(**{name: folder("/shared/run", everyone) for name in everyone})
    assert bad(judge_folders(nodes, here, replace(CLUSTER, disk=Disk(10**9, 10)))) == []
    nodes, here = sharing(
        login=folder("/shared/run", ["login", "n1"]), n1=folder("/shared/run", ["login", "n1"]),
        n2=folder("/shared/run", ["n2"], file_system="ext4"),
    )  # fmt: skip
    (found,) = [one for one in judge_folders(nodes, here, CLUSTER) if one.level == Level.PROBLEM]
    assert "login,n1 | n2" in found.found and "ext4, nfs4" in found.found
    one_way = sharing(
        login=folder("/x", everyone), n1=folder("/x", everyone), n2=folder("/x", ["login", "n2"])
    )
    (found,) = [one for one in judge_folders(*one_way, CLUSTER) if one.level == Level.PROBLEM]
    assert "login,n1 | n2" in found.found


def test_locks_that_other_nodes_do_not_see() -> None:
    both = ["login", "n1"]
    nodes, here = sharing(login=folder("/x", both), n1=folder("/x", both, lock="local"))
    assert (Level.NOTE, RUN, "n1") in bad(judge_folders(nodes, here, CLUSTER))
    nodes, here = sharing(login=folder("/x", both), n1=folder("/x", both, lock="Function not implemented"))
    assert (Level.PROBLEM, RUN, "n1") in bad(judge_folders(nodes, here, CLUSTER))


def test_a_shared_folder_without_locks_is_shared_all_the_same() -> None:
    """Lustre without -o flock: nobody can lock, not even who asks."""
    both, error = ["login", "n1"], "Function not implemented"
    nodes, here = sharing(**{name: folder("/x", both, lock=error) for name in both})
    (found,) = [one for one in judge_folders(nodes, here, CLUSTER) if one.level == Level.PROBLEM]
    assert found.where == ("login", "n1") and "flock does not work: Function not implemented" in found.found
    assert "-o flock" in found.remedy and "not shared" not in found.found
    nodes, here = sharing(**{name: folder("/x", both, lock=error, label="HF_HOME") for name in both})
    assert bad(judge_folders(nodes, here, CLUSTER)) == []  # nothing locks there that a run needs


def test_files_of_a_recipe() -> None:
    key = "data.train.0.data_path"
    there, missing = (
        File(key, "/data/train.jsonl", size=10),
        File(key, "/data/train.jsonl", "No such file or directory"),
    )
    needs = CLUSTER
    nodes = [node("n1", files=[there]), node("n2", files=[missing])]
    (found,) = [one for one in judge_folders(nodes, nodes[0], needs) if one.level == Level.PROBLEM]
    assert found.check == key and found.place == "n2" and "thinkprune data prepare" in found.remedy
    nodes = [node("n1", files=[there]), node("n2", files=[replace(there, size=11)])]
    (found,) = [one for one in judge_folders(nodes, nodes[0], needs) if one.level == Level.PROBLEM]
    assert "n1 10 bytes" not in found.found or "n2 11 bytes" in found.found
    assert "not the same file" in found.found


@pytest.mark.parametrize(
    ("free", "disk", "level"),
    [
        (
            5000 * GB,
            Disk(459 * GB, 10, 1, "config.json"),
            Level.PROBLEM,
        ),  # ten and one being written: 5,049 GB
        (5050 * GB, Disk(459 * GB, 10, 1, "config.json"), Level.OK),
        (5050 * GB, Disk(459 * GB, 10, 3, "config.json"), Level.PROBLEM),
        (900 * GB, Disk(459 * GB, 0, 1, "its name"), Level.PROBLEM),  # not even two
        (930 * GB, Disk(459 * GB, 0, 1, "its name"), Level.NOTE),
        (930 * GB, Disk(), Level.NOTE),
    ],
)
def test_room_for_the_checkpoints(free: int, disk: Disk, level: Level) -> None:
    (found,) = judge_space(Space("/shared", 10**14, free, 10**6), disk)
    assert found.level == level and "/shared" in found.found
    assert "quota" in found.remedy + found.found or level == Level.PROBLEM


def test_files_that_a_file_system_has_no_room_for() -> None:
    found = list(judge_space(Space("/shared", 10**14, 10**13, 100), Disk(GB, 1)))
    assert (found[0].level, found[1].level) == (Level.PROBLEM, Level.OK) and "inodes" in found[0].found
    (found,) = judge_space(Space("/shared", 10**14, 10**13, -1), Disk(GB, 1))  # not counted
    assert found.level == Level.OK
