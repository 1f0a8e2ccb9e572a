"""What a job's script wrote down is read, whatever else is in the file."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable
from support.launched_runs import job_records

from nemo_thinkprune.launch.events import JobFolder, attempts, in_order, is_last, job_ids, read_events

TWO_ATTEMPTS = """\
2026-11-21T10:00:00Z\t1\tstart\tnodes=n[1-2] head=n1
2026-11-21T10:00:31Z\t1\tray_ready\tRay ready: 2 nodes, 16 GPUs, 30.5 s
2026-11-21T11:00:00Z\t1\tend\tnode_lost code=1 no answer from n2
2026-11-21T11:00:01Z\t1\trequeue\tafter node_lost
2026-11-21T11:02:00Z\t2\tstart\tnodes=n1 head=n1
2026-11-21T12:00:00Z\t2\tsignal\tUSR1
2026-11-21T12:00:40Z\t2\tend\tsaved code=75 stopped as asked
2026-11-21T12:00:40Z\t2\tstopped\tas asked
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "events.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_attempts_are_put_together(tmp_path: Path) -> None:
    events = read_events(written(tmp_path, TWO_ATTEMPTS))
    first, second = attempts(events)
    assert first.start == datetime(2026, 11, 21, 10, tzinfo=UTC)
    assert (first.nodes, first.head, first.ray_ready_s) == ("n[1-2]", "n1", 30.5)
    assert (first.reason, first.code, first.text) == ("node_lost", 1, "no answer from n2")
    assert (first.then, first.then_why) == ("requeue", "after node_lost")
    assert (second.nodes, second.signals) == ("n1", ["USR1"])
    assert (second.reason, second.code, second.text, second.then) == (
        "saved",
        75,
        "stopped as asked",
        "stopped",
    )
    assert is_last(events) and not is_last(events[:-1]) and not is_last([])


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("ray_failed code=- ray_head ended", ("ray_failed", None, "ray_head ended")),
        ("finished code=0 ", ("finished", 0, "")),
        ("finished code=0", ("finished", 0, "")),
        ("stalled", ("stalled", None, "")),
        ("failed code=x1 y", ("failed", None, "code=x1 y")),
        ("", ("", None, "")),
    ],
)
def test_details_of_an_end(tmp_path: Path, detail: str, told: tuple[str, int | None, str]) -> None:
    (attempt,) = attempts(read_events(written(tmp_path, f"2026-11-21T10:00:00Z\t1\tend\t{detail}\n")))
    assert (attempt.reason, attempt.code, attempt.text) == told


def test_the_next_attempt_tells_of_a_lost_node(tmp_path: Path) -> None:
    text = (
        "2026-11-21T10:00:00Z\t1\tstart\tnodes=n1 head=n1\n"
        "2026-11-21T10:20:00Z\t1\tend\tbatch_node_lost code=- it left no word\n"
        "2026-11-21T10:20:00Z\t2\tstart\tnodes=n2 head=n2\n"
    )
    first, second = attempts(read_events(written(tmp_path, text)))
    assert (first.reason, first.then, second.end) == ("batch_node_lost", None, None)


def test_damage_is_passed_over(tmp_path: Path) -> None:
    damaged = (
        b"\x00\xff\xfe garbage\n\n\t\t\t\nno time\t1\tstart\t\n2026-11-21T10:00:00Z\tone\tstart\t\n"
        b"2026-11-21T10:00:00Z\t1\n2026-11-21T10:00:00Z\t1\tstart\tnodes=\xff head=n1\r\n"
        b"2026-11-21T10:00:05\t1\tend\tfailed code=1 a\tb\n"
        b"2026-11-21T10:00:06Z\t1\tfinis"
    )
    (attempt,) = attempts(read_events(written(tmp_path, damaged)))
    assert (attempt.head, attempt.reason, attempt.text, attempt.then) == ("n1", "failed", "a\tb", None)
    assert attempt.end == datetime(2026, 11, 21, 10, 0, 5, tzinfo=UTC)


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.tsv") == [] and read_events(tmp_path) == []


CELLS = ["2026-11-21T10:00:00Z", "1", "2", "start", "end", "requeue", "ray_ready", "nodes=x", "code=1",
    "failed code=99999999999999999999 x", "", "\r", "é", "-1"]  # fmt: skip


@repeatable(200)
@given(lines=st.lists(st.lists(st.sampled_from(CELLS), max_size=5)))
def test_no_file_makes_reading_fail(tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tsv"
    path.write_text("\n".join("\t".join(line) for line in lines), encoding="utf-8")
    for attempt in attempts(read_events(path)):
        assert attempt.number in (1, 2)


def test_jobs_and_attempts_are_found_by_their_folders(tmp_path: Path) -> None:
    for name in ("job_12/attempt_10", "job_12/attempt_2", "job_12/attempt_x", "job_9", "job_x", "attempt_3"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    os.utime(tmp_path / "logs" / "job_9", (0, 0))
    (tmp_path / "logs" / "job_13.log").write_text("")
    assert job_ids(tmp_path) == ["9", "12"] and job_ids(tmp_path / "absent") == []
    assert JobFolder(tmp_path, "12").attempt_numbers() == [2, 10]
    assert JobFolder(tmp_path, "9").attempt_numbers() == []


def test_jobs_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for job, hour in {"7": 11, "run-a.b_1": 12, "8": 10}.items():
        job_records(tmp_path, job, f"2026-11-21T{hour}:00:00Z 1 start nodes=x\n2026-11-21T23:00:00Z 1 end x")
    assert job_ids(tmp_path) == ["8", "7", "run-a.b_1"]
    assert in_order(tmp_path, ["10", "7", "9", "8"]) == ["8", "7", "9", "10"]  # two wait in the queue
