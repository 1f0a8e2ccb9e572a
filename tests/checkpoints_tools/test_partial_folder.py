"""A folder that appears whole or not at all, and what an unfinished one is worth."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.copies import load, simple_jobs

from checkpoints_tools.copying.jobs import Done, Job, Range
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.copying.run import run_jobs
from checkpoints_tools.errors import CheckpointError


def jobs_in(tmp_path: Path, count: int = 6) -> list[Job]:
    return simple_jobs(tmp_path / "source", tmp_path / "out.partial", jobs=count)


def copy(tmp_path: Path, plan: str = "plan", *, stop_after: int | None = None) -> list[str]:
    """Copy into tmp_path/out, raising an error after some jobs; which jobs were begun anew."""
    jobs, ran = jobs_in(tmp_path), []
    with PartialFolder(tmp_path / "out", plan, sources=[tmp_path / "source"]) as partial:

        def record(done: Done) -> None:
            if len(ran) == stop_after:
                raise CheckpointError("stop")
            partial.record(done)
            ran.append(done.name)

        todo = [job for job in jobs if job.name not in partial.done]
        run_jobs(todo, threads=1, digests=True, on_done=record)
        assert sorted(partial.done) == sorted(job.name for job in jobs)
        partial.write_file("deep/metadata.json", b"{}")
        partial.publish(last=["deep/metadata.json"])
    return ran


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    copy(folder)
    return content(folder / "out")


def test_a_finished_folder_holds_its_files_and_nothing_of_ours(
    tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    assert len(copy(tmp_path)) == 6
    assert content(tmp_path / "out") == wanted
    assert sorted(wanted) == ["deep/metadata.json", "file_0"]
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    assert not (tmp_path / "out").exists()
    assert copy(tmp_path) == ["t4", "t5"]
    assert content(tmp_path / "out") == wanted


def test_bytes_that_a_power_loss_took_are_copied_again(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    jobs = jobs_in(tmp_path)
    target = jobs[2].pairs[0].destination
    assert target is not None
    with open(target.extents[0].file, "r+b") as stream:
        stream.seek(target.extents[0].offset + 4096)
        stream.write(bytes(4096))
    assert copy(tmp_path) == ["t2", "t4", "t5"]
    assert content(tmp_path / "out") == wanted


def test_a_file_that_a_power_loss_shortened_is_copied_again(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    os.truncate(tmp_path / "out.partial" / "file_0", 70_000)
    assert copy(tmp_path) == ["t1", "t2", "t3", "t4", "t5"]
    assert content(tmp_path / "out") == wanted


@pytest.mark.parametrize("damage", ["torn", "flipped", "zeros"])
def test_a_damaged_line_of_the_journal_costs_its_job_only(
    damage: str, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=3)
    journal = tmp_path / "out.partial.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = {
        "torn": lines[-1][:-20],
        "flipped": lines[-1].replace(b"t2", b"t5"),
        "zeros": bytes(len(lines[-1])),
    }[damage]
    journal.write_bytes(b"".join([*lines[:-1], last]))
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=1)  # its line must not be glued to the torn one
    assert copy(tmp_path) == ["t3", "t4", "t5"]
    assert content(tmp_path / "out") == wanted


def test_another_plan_starts_over_and_keeps_nothing(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, "old", stop_after=4)
    (tmp_path / "out.partial" / "left.over").write_bytes(b"old")
    assert len(copy(tmp_path, "new")) == 6
    assert content(tmp_path / "out") == wanted


def test_a_journal_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    with PartialFolder(tmp_path / "out", "plan") as partial:
        crafted = Done("t0", (Range(partial.folder / ".." / "outside", 0, 1, 0x8CDC1683),), {})
        partial.record(crafted)
    with PartialFolder(tmp_path / "out", "plan") as partial:
        assert partial.done == {}


def test_two_runs_do_not_collide(tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out", "plan") as first:
        for plan in ("plan", "other"):
            with (
                pytest.raises(CheckpointError, match="another process is writing"),
                PartialFolder(tmp_path / "out", plan),
            ):
                pass
        first.write_file("a", b"1")
        first.publish()
    assert content(tmp_path / "out") == {"a": b"1"}


def test_an_output_that_is_there_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="exists and is not empty"), PartialFolder(out, "plan"):
        pass
    file = tmp_path / "file"
    file.write_bytes(b"1")
    with pytest.raises(CheckpointError, match="is not a folder"), PartialFolder(file, "plan"):
        pass
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a folder"), PartialFolder(link, "plan"):
        pass
    with pytest.raises(CheckpointError, match="cannot be written"), PartialFolder(file / "out", "plan"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "out"]


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    foreign = tmp_path / "out.partial"
    foreign.mkdir()
    (foreign / "thesis").write_bytes(b"1")
    with (
        pytest.raises(CheckpointError, match="not of an unfinished run"),
        PartialFolder(tmp_path / "out", "plan"),
    ):
        pass
    assert content(foreign) == {"thesis": b"1"}


def test_output_and_source_must_not_contain_each_other(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_bytes(b"{}")
    for out in (source / "out", source / "deep" / "out"):
        with pytest.raises(CheckpointError, match="inside the source"):
            PartialFolder(out, "plan", sources=[source]).__enter__()
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(CheckpointError, match="inside the source"):
        PartialFolder(tmp_path / "link" / "out", "plan", sources=[source]).__enter__()
    inside = tmp_path / "out.partial" / "model"
    inside.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="lies inside"):
        PartialFolder(tmp_path / "out", "plan", sources=[inside]).__enter__()
    assert content(source) == {"config.json": b"{}"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a\0b"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out", "plan") as partial:
        with pytest.raises(CheckpointError, match="no name of a file inside"):
            partial.write_file(name, b"x")
        with pytest.raises(CheckpointError, match="no name of a file inside"):
            partial.copy_file(tmp_path / "out.partial.journal", name)


def test_files_are_copied_byte_for_byte_through_links(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(3 << 20))
    (tmp_path / "tokenizer.json").symlink_to(blob)
    os.mkfifo(tmp_path / "pipe")
    with PartialFolder(tmp_path / "out", "plan") as partial:
        partial.copy_file(tmp_path / "tokenizer.json", "tokenizer/tokenizer.json")
        with pytest.raises(CheckpointError, match="not a regular file"):
            partial.copy_file(tmp_path / "pipe", "pipe")
        with pytest.raises(CheckpointError, match="is missing"):
            partial.copy_file(tmp_path / "none", "none")
        partial.publish()
    assert content(tmp_path / "out") == {"tokenizer/tokenizer.json": blob.read_bytes()}


def test_marks_of_completeness_are_synced_after_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        assert (
            "metadata.json" in synced
            or not (tmp_path / "out.partial" / "metadata.json").exists()
            or (synced[-1] == "metadata.json")
        )
        real(descriptor)

    with PartialFolder(tmp_path / "out", "plan") as partial:
        for name in ("metadata.json", "latest.txt", "deep/a", "b"):
            partial.write_file(name, name.encode())
        monkeypatch.setattr(os, "fsync", fsync)
        partial.publish(last=["metadata.json", "latest.txt"])
    assert sorted(synced[:2]) == ["a", "b"]
    assert synced[2:] == ["metadata.json", "latest.txt", "deep", "out.partial", tmp_path.name]


def test_a_full_disk_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets us mount no small disk")
    try:
        jobs_of_disk = simple_jobs(tmp_path / "source", disk / "out.partial", jobs=8)

        def attempt() -> int:
            with PartialFolder(disk / "out", "plan") as partial:
                todo = [job for job in jobs_of_disk if job.name not in partial.done]
                run_jobs(todo, threads=2, digests=False, on_done=partial.record)
                partial.publish()
            return len(todo)

        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"full.*free some room and run the same command again"):
                attempt()
            assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        assert 0 < attempt() < 8
        for job in jobs_of_disk:
            source, target = job.pairs[0].source, job.pairs[0].destination
            assert target is not None
            offset, nbytes = target.extents[0].offset, target.nbytes
            data = (disk / "out" / "file_0").read_bytes()[offset : offset + nbytes]
            assert data == load(source).tobytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_files_of_a_run_that_was_given_up_are_not_published(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    folder = tmp_path / "out.partial"
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_bytes(b"{}")
    (folder / "README.md").write_bytes(b"old")
    (folder / "link").symlink_to(tmp_path / "source")
    copy(tmp_path)
    assert content(tmp_path / "out") == wanted
    assert sorted(os.listdir(tmp_path / "out")) == ["deep", "file_0"]
    assert (tmp_path / "source" / "file_0").is_file()


def test_what_is_forgotten_is_copied_again(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    with PartialFolder(tmp_path / "out", "plan") as partial:
        assert len(partial.done) == 4
        partial.forget()
    assert sorted(os.listdir(tmp_path)) == ["source"]
    assert len(copy(tmp_path)) == 6
    assert content(tmp_path / "out") == wanted


def test_a_journal_that_outlived_its_folder_is_cleared_away(tmp_path: Path) -> None:
    journal = tmp_path / "out.partial.journal"
    with pytest.raises(CheckpointError, match="stop"):
        copy(tmp_path, stop_after=4)
    stray = journal.read_bytes()
    copy(tmp_path)
    for text, stays in ((stray, False), (b"a file of mine\n", True)):
        journal.write_bytes(text)
        with pytest.raises(CheckpointError, match="exists and is not empty"):
            copy(tmp_path)
        assert journal.exists() is stays
    journal.write_bytes(stray)
    (tmp_path / "out").rename(tmp_path / "moved")  # and the name is used for something else
    assert len(copy(tmp_path, "new")) == 6
    assert content(tmp_path / "out") == content(tmp_path / "moved")
    assert not journal.exists()
