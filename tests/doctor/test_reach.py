"""How answers come back through srun, and who is missing; srun itself is in test_doctor_on_slurm.py."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest

from nemo_thinkprune.doctor.facts import Gpu, Gpus, Host, Network, NodeFacts, Peer, Question
from nemo_thinkprune.doctor.node import heard, spoken
from nemo_thinkprune.doctor.reach import Placement, answers, ask_nodes, queued_job, read_answers, srun_command
from nemo_thinkprune.recipe.errors import UserError

FACTS = NodeFacts(
    "n1",
    Host(hostname="n1", variables=[f"NAME_{random.Random(i).random()}" for i in range(200)]),
    Gpus([Gpu(0, "H100", 81559, 3)], "550.1", "12.4"),
    network=Network(28100, ["10.0.0.1"], peers=[Peer("n2", ["10.0.0.2"], offset_s=0.1)]),
)


def test_facts_survive_the_way_among_banners_and_lines_of_other_nodes() -> None:
    other = replace(FACTS, node="n2")
    mine, theirs = spoken(FACTS, "tok"), spoken(other, "tok")
    assert len(mine) > 2 and max(map(len, mine)) < 1000
    mixed = ["Loading module cuda/12.4", "\x1b[31mwarning\x1b[0m", *theirs, *mine, *spoken(FACTS, "older")]
    random.Random(0).shuffle(mixed)
    labelled = [f"{number % 2}: (base) {line}\r" for number, line in enumerate(mixed)]
    assert read_answers(heard(labelled, "tok")) == [FACTS, other]


def test_an_answer_with_a_hole_or_damage_is_none() -> None:
    lines = spoken(FACTS, "tok")
    assert heard(lines[1:], "tok") == {}
    assert heard(lines[:-1], "tok") == {}
    swapped = [lines[1].replace(" 2/", " 1/"), lines[0].replace(" 1/", " 2/"), *lines[2:]]
    assert heard(swapped, "tok") == {}


def test_an_answer_of_another_version_is_understood_as_far_as_it_goes() -> None:
    data = asdict(FACTS)
    data["host"]["invented_later"] = 1
    del data["gpus"]
    (read,) = read_answers({"n1": json.dumps(data).encode(), "n2": b"[]", "n3": b"{"})
    assert read.host.hostname == "n1" and read.gpus == Gpus()


def test_who_is_missing_is_named_by_those_who_answered_or_by_the_job() -> None:
    assert answers([FACTS], 2, {}, []).silent == ("n2",)
    none = answers([], 2, {"SLURM_JOB_NODELIST": "n[1-2]"}, ["srun: error: " + str(i) for i in range(9)])
    assert (none.silent, none.missing, len(none.said)) == (("n1", "n2"), 2, 5)
    unknown = answers([], 3, {}, [])
    assert (unknown.silent, unknown.missing) == ((), 3)


def test_inside_a_job_the_doctor_shares_what_the_job_has() -> None:
    question = Question("tok", {"run folder": "/shared"})
    inside = srun_command(question, Placement(2, partition="p", gpus_per_node=8), inside=True)
    assert "--overlap" in inside and not [word for word in inside if "partition" in word or "gpus" in word]
    outside = srun_command(question, Placement(2, partition="p", gpus_per_node=8), inside=False)
    assert {"--partition=p", "--gres=gpu:8", "--nodes=2", "--ntasks-per-node=1"} <= set(outside)
    for command in (inside, outside):
        assert {"--mpi=none", "--export=ALL"} <= set(command)
    assert json.loads(outside[-1])["folders"] == {"run folder": "/shared"}


def test_it_asks_for_the_nodes_that_the_job_will_have() -> None:
    options = (
        "--qos=high",
        "--constraint h100",
        "--comment='two words'",
        "--output=/x",
        "--requeue",
        "--comment=it's",
    )
    placement = Placement(2, sbatch=options)
    outside = srun_command(Question("tok"), placement, inside=False)
    own = srun_command(Question("tok"), Placement(2), inside=False)
    added = [word for word in outside if word not in own]
    assert added == ["--qos=high", "--constraint", "h100", "--comment=two words", "--comment=it's"]
    inside = srun_command(Question("tok"), placement, inside=True)
    assert not set(added) & set(inside)  # the job has its nodes


def test_a_container_has_its_own_python_and_finds_this_program() -> None:
    placement = Placement(1, container="image.sqsh", mounts=("/a:/a", "/b:/c"))
    command = srun_command(Question("tok"), placement, inside=False)
    assert "--container-image=image.sqsh" in command and "--container-mounts=/a:/a,/b:/c" in command
    start = command[command.index("env") :]
    assert start[1].startswith("PYTHONPATH=") and start[2:4] == ["python", "-m"]


def test_a_queue_is_told_from_what_srun_says() -> None:
    waits = ["srun: job 17 queued and waiting for resources"]
    assert queued_job(waits) == "17"
    assert queued_job([*waits, "srun: job 17 has been allocated resources"]) == ""
    assert queued_job(["srun: error: something"]) == ""


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="srun is not here"):
        ask_nodes(Question("tok"), Placement(2), environment={})
