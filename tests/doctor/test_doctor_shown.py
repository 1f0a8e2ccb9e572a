"""How findings are shown, and what Slurm's answers mean."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from nemo_thinkprune.doctor.findings import Finding, Level, merged, note, ok, problem
from nemo_thinkprune.doctor.slurm import SlurmFacts, judge_slurm, judge_version
from nemo_thinkprune.doctor.table import show

FOUND = [
    problem("disk", "[bold]full[/bold]", "rm -r old"),
    ok("Python", "3.11", "n1"),
    ok("Python", "3.11", "n2"),
    note("ports", "some are in use", "ss -ltnp", "n2"),
    problem("recipe", "two things:\n  one\n  two", "thinkprune check r"),
]
SLURM = SlurmFacts(
    "slurm 23.11", True, "gpu", {"State": "UP", "MaxTime": "2-00:00:00", "MaxNodes": "8", "PreemptMode": "OFF"},
    {"idle": 3, "mixed": 2, "down*": 4, "drained": 1}, ("gpu", "cpu"),
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_same_finding_of_several_nodes_is_one() -> None:
    assert [one.where for one in merged(FOUND)] == [(), ("n1", "n2"), ("n2",), ()]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_problems_come_last_and_then_the_next_command(stream: io.StringIO) -> None:
    show(merged(FOUND), closing="Next: thinkprune doctor", stream=stream)
    text = stream.getvalue()
    places = [text.index(word) for word in ("Python", "ports", "disk", "recipe", "Next: thinkprune doctor")]
    assert places == sorted(places)
    assert "n[1-2]" in text and "[bold]full[/bold]" in text  # nothing that is told is taken for markup


def test_a_remedy_can_be_copied_from_a_log_however_long_it_is() -> None:
    command = "thinkprune " + " ".join(f"--option-{number} value" for number in range(40))
    stream = io.StringIO()
    show([problem("x", "word " * 100, command)], closing="", stream=stream)
    lines = stream.getvalue().splitlines()
    assert any(line.endswith(command) for line in lines)
    assert max(len(line) for line in lines if command not in line) <= 110


def levels(facts: SlurmFacts, nodes: int | None = None, time: str | None = None) -> list[tuple[Level, str]]:
    return [(one.level, one.check) for one in judge_slurm(facts, nodes=nodes, time=time)]


def found(facts: SlurmFacts, nodes: int | None = None, time: str | None = None) -> Finding:
    (one,) = judge_slurm(facts, nodes=nodes, time=time)
    return one


def test_what_slurm_says_of_a_job() -> None:
    assert levels(SLURM, 3, "24:00:00") == [(Level.OK, "Slurm")]
    assert found(SLURM, 5).level == Level.NOTE and "will wait" in found(SLURM, 5).found
    assert found(SLURM, 6).level == Level.PROBLEM and "5 nodes that work" in found(SLURM, 6).found
    assert levels(SLURM, 9) == [(Level.PROBLEM, "Slurm"), (Level.PROBLEM, "Slurm")]  # beyond MaxNodes, too
    assert found(SLURM, 1, "3-00").level == Level.PROBLEM and "2-00:00:00" in found(SLURM, 1, "3-00").remedy
    assert found(SLURM, 1, "soon").level == Level.PROBLEM
    unlimited = replace(SLURM, settings={"State": "UP", "MaxTime": "UNLIMITED", "MaxNodes": "UNLIMITED"})
    assert found(unlimited, 3, "30-00").level == Level.OK


def test_what_slurm_does_to_jobs() -> None:
    assert found(replace(SLURM, requeue=False), 1).level == Level.NOTE
    preempted = replace(SLURM, settings={**SLURM.settings, "PreemptMode": "REQUEUE"})
    assert "PreemptMode=REQUEUE" in found(preempted, 1).found
    closed = replace(SLURM, settings={**SLURM.settings, "State": "DRAIN"})
    assert found(closed, 1).level == Level.PROBLEM
    assert "gpu, cpu" in found(replace(SLURM, partition="gpus"), 1).found
    assert "scontrol ping" in found(replace(SLURM, problem="Unable to contact slurm controller")).remedy


def test_a_slurm_whose_steps_do_not_share_is_a_problem() -> None:
    (one,) = judge_version(replace(SLURM, version="slurm-wlm 21.08.8-2"))
    assert one.level == Level.PROBLEM and "Slurm 21.08 is too old" in one.found and "since 22.05" in one.found
    for version in ("slurm-wlm 22.05.8", "slurm 24.11.0", "a fork", ""):
        assert list(judge_version(replace(SLURM, version=version))) == []
