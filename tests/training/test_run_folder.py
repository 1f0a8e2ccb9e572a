from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.disk import DiskFull, append_durably, check_disk_space, disk_errors
from nemo_thinkprune.training.run_folder import RunFolder, truncate_rows


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: how a disk fills up, for one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(folder: RunFolder, step: int, *, validation: bool = False) -> None:
    folder.write_step(
        step,
        row={"loss": step / 3, "timing": {"step_s": 1.5}},
        rollouts=[{"response": "a\u2028b\r", "sample": n} for n in range(3)],
        ledger_row={"epoch": 0, "problem_ids": [f"p{step}"]},
        validation={"accuracy": 0.5} if validation else None,
    )


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_rows_are_written_as_the_readers_expect_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, write=True)
    folder.write_validation(0, {"accuracy": 0.25})
    write(folder, 1, validation=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 0, "validation": {"accuracy": 0.25}},
        {"step": 1, "loss": 1 / 3, "timing": {"step_s": 1.5}},
        {"step": 1, "validation": {"accuracy": 0.5}},
    ]
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert ledger == [{"step": 1, "epoch": 0, "problem_ids": ["p1"]}]
    responses = (tmp_path / "rollouts" / "step_1.jsonl").read_text().split("\n")
    assert [json.loads(line)["sample"] for line in responses if line] == [0, 1, 2]


def test_a_resumed_run_leaves_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = RunFolder(tmp_path / "whole", write=True), RunFolder(tmp_path / "cut", write=True)
    for folder in (whole, cut):
        folder.run_dir.mkdir()
        folder.write_validation(0, {"accuracy": 0.25})
        for step in range(1, 8):
            write(folder, step, validation=step % 2 == 0)
    expected = snapshot(tmp_path / "whole")
    with open(tmp_path / "cut" / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 8, "lo')
    (tmp_path / "cut" / "rollouts" / ".step_8.jsonl.x1.tmp").write_text("half")
    cut.truncate_after(4)
    for step in range(5, 8):
        write(cut, step, validation=step % 2 == 0)
    assert snapshot(tmp_path / "cut") == expected


def test_without_a_checkpoint_everything_goes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, write=True)
    folder.write_validation(0, {"accuracy": 0.25})
    write(folder, 1)
    folder.truncate_after(0)
    assert snapshot(tmp_path) == {"metrics.jsonl": b"", "ledger.jsonl": b""}


def test_ranks_that_do_not_write_change_nothing(tmp_path: Path) -> None:
    write(RunFolder(tmp_path, write=True), 1)
    before = snapshot(tmp_path)
    other = RunFolder(tmp_path, write=False)
    write(other, 2)
    other.write_validation(0, {})
    other.truncate_after(0)
    assert snapshot(tmp_path) == before


steps = st.lists(st.integers(1, 6), max_size=8).map(sorted)
texts = st.text(max_size=12)


@settings(max_examples=150, deadline=None)
@given(steps=steps, text=texts, tail=st.binary(max_size=20), step=st.integers(0, 7))
def test_what_is_kept_is_the_longest_whole_prefix_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], text: str, tail: bytes, step: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    lines = [
        json.dumps({"step": s, "text": text}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        for s in steps
    ]
    torn = tail.replace(b"\n", b"")
    path.write_bytes(b"".join(lines) + torn)
    truncate_rows(path, step)
    assert path.read_bytes() == b"".join(line for s, line in zip(steps, lines, strict=True) if s <= step)
    truncate_rows(path, step)
    assert path.read_bytes() == b"".join(line for s, line in zip(steps, lines, strict=True) if s <= step)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 200))
def test_a_power_cut_at_any_byte_loses_at_most_the_last_row(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    lines = [json.dumps({"step": s, "x": "y" * s}).encode() + b"\n" for s in range(1, 7)]
    whole = b"".join(lines)
    path.write_bytes(whole[:size])
    truncate_rows(path, 6)
    kept = path.read_bytes()
    assert whole.startswith(kept) and (kept == b"" or kept.endswith(b"\n"))
    assert len(kept) > min(size, len(whole)) - max(map(len, lines))


def test_damage_before_a_row_that_counts_is_not_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st#p": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged"):
        truncate_rows(path, 3)
    truncate_rows(path, 1)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_full_disk_leaves_earlier_rows_and_names_the_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, write=True)
    write(folder, 1)
    before = snapshot(tmp_path)
    with largest_file(len(before["metrics.jsonl"]) + 10), pytest.raises(DiskFull, match=r"metrics\.jsonl"):
        folder.write_validation(1, {"text": "x" * 5000})
    assert snapshot(tmp_path) == before
    with largest_file(100), pytest.raises(DiskFull, match=r"step_2\.jsonl"):
        write(folder, 2)
    assert snapshot(tmp_path) == before
    write(folder, 2)


def test_no_space_left_on_device_is_told_as_such() -> None:
    with pytest.raises(DiskFull, match=r"/dev/full: No space left on device; make room"):
        append_durably(Path("/dev/full"), b"x")


def test_a_checkpoint_that_cannot_fit_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    check_disk_space(tmp_path, needed=1)
    with pytest.raises(DiskFull, match="make room"):
        check_disk_space(tmp_path, needed=1 << 60)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        append_durably(tmp_path, b"x")


def test_a_disk_that_may_not_be_written_is_named() -> None:
    with pytest.raises(UserError, match=r"cannot write runs/a: Read-only"), disk_errors(Path("runs/a")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
