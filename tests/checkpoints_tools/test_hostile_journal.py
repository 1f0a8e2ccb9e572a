"""A journal that is not ours, or is whole and says what is not so: no folder is lost and no byte is missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.models import MODELS

from checkpoints_tools.convert import import_model
from checkpoints_tools.copying.jobs import Done
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_hf
from checkpoints_tools.plans import Plan
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.to_megatron import plan_import


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journals") / "hf"
    random_hf_init(MODELS["qwen3"], folder, seed=3, randomize_all=True)
    return folder


def interrupted(source: Path, out: Path, spoil: Callable[[Done], Done]) -> Plan:
    """All jobs are done and noted, as `spoil` makes of it; then the run ends."""
    plan = plan_import(open_hf(source), out)
    with PartialFolder(out, plan.identity(), sources=[source]) as partial:
        for name in plan.files:
            partial.path(name)
        run_jobs(plan.jobs, threads=2, digests=True, on_done=lambda done: partial.record(spoil(done)))
    return plan


SPOILS: dict[str, Callable[[Done], Done]] = {
    "no digests": lambda done: replace(done, digests={}),
    "no ranges": lambda done: replace(done, ranges=()),
    "a range less": lambda done: replace(done, ranges=done.ranges[1:]),
    "a range twice": lambda done: replace(done, ranges=(*done.ranges, *done.ranges)),
    "another's digests": lambda done: replace(done, digests={"lm_head.weight2": "0" * 64}),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_record_that_does_not_cover_its_job_counts_for_nothing(
    source: Path, tmp_path: Path, spoil: str
) -> None:
    interrupted(source, tmp_path / "out", SPOILS[spoil])
    assert import_model(source, tmp_path / "out").resumed == 0


def test_records_that_cover_their_jobs_are_gone_on_from(source: Path, tmp_path: Path) -> None:
    plan = interrupted(source, tmp_path / "out", lambda done: done)
    assert import_model(source, tmp_path / "out").resumed == sum(job.nbytes for job in plan.jobs)


@pytest.mark.parametrize("content", [b"my notes\n", b"", b"{}", b"00000000 {}\n"])
def test_a_file_of_the_journals_name_is_no_licence(source: Path, tmp_path: Path, content: bytes) -> None:
    mine = tmp_path / "out.partial/mine.txt"
    mine.parent.mkdir()
    mine.write_text("dear to me")
    (tmp_path / "out.partial.journal").write_bytes(content)
    with pytest.raises(CheckpointError, match="not the journal of an unfinished run"):
        import_model(source, tmp_path / "out")
    assert mine.read_text() == "dear to me"
    assert (tmp_path / "out.partial.journal").read_bytes() == content


def test_a_folder_whose_removal_was_cut_short_is_still_ours(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "out", lambda done: done)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            import_model(source, tmp_path / "out", chunk_tp=2)
    import_model(source, tmp_path / "out", chunk_tp=2)


def test_no_room_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(CheckpointError, match="are free") as raised:
        import_model(source, tmp_path / "out")
    assert "0.00" not in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_mount_point_is_no_output(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "out")
    with pytest.raises(CheckpointError, match="mount point"):
        import_model(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
