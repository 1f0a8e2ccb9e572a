"""Conversions that are disturbed: what is published is whole, proved, and of one run; or nothing is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import small_config

from checkpoints_tools import convert
from checkpoints_tools.convert import Result, export_model, import_model, reshard
from checkpoints_tools.copying import partial as partial_folder
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.manifest import read_manifest
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.torch_dist.folders import find_checkpoint
from checkpoints_tools.torch_dist.record_write import object_record

MANIFEST = "thinkprune-manifest.json"
NORM = "model.norm.weight"
VERBS = ["import", "export", "reshard"]
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "hf"
    random_hf_init(small_config("Qwen2ForCausalLM", num_layers=1), folder, seed=3, randomize_all=True)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    return folder


@pytest.fixture(scope="module")
def megatron(hf: Path) -> Path:
    import_model(hf, hf.parent / "megatron")
    return hf.parent / "megatron"


@pytest.fixture
def sources(hf: Path, megatron: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may spoil, without the manifest, by the verb that reads them."""
    shutil.copytree(hf, tmp_path / "hf")
    shutil.copytree(megatron, tmp_path / "megatron", ignore=shutil.ignore_patterns(MANIFEST))
    return {verb: tmp_path / ("hf" if verb == "import" else "megatron") for verb in VERBS}


def run(verb: str, source: Path, out: Path, **options: Any) -> Result:
    options |= {"threads": 1}
    if verb == "import":
        return import_model(source, out, **options)
    if verb == "export":
        return export_model(source, out, **options)
    return reshard(source, out, chunk_tp=2, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def elements(model: Path, name: str = NORM) -> tuple[Path, int, bytes]:
    """File, position and bytes of a tensor that lies in one piece."""
    (extent,) = open_model(model).tensors[name].extents
    nbytes = open_model(model).tensors[name].nbytes
    return extent.file, extent.offset, extent.file.read_bytes()[extent.offset : extent.offset + nbytes]


def flip(model: Path) -> None:
    file, offset, data = elements(model)
    with open(file, "r+b") as stream:
        stream.seek(offset + 5)
        stream.write(bytes([data[5] ^ 1]))


def flip_on_the_way(monkeypatch: pytest.MonkeyPatch, wanted: bytes) -> None:
    """Spoil the first write of these bytes; checksums were taken of what should have been written."""
    real, left = os.pwrite, [wanted]

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if left and bytes(data) == left[0]:
            spoilt = left.pop()
            data = spoilt[:-1] + bytes([spoilt[-1] ^ 16])
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def stop_at(monkeypatch: pytest.MonkeyPatch, method: str = "publish") -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise CheckpointError("stop")

    monkeypatch.setattr(PartialFolder, method, stop)


def interrupted(verb: str, source: Path, out: Path, **options: Any) -> None:
    """Run until everything is copied, and no further."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="stop"):
        stop_at(patch)
        run(verb, source, out, **options)
    assert not out.exists() and out.with_name("out.partial").is_dir()


@pytest.mark.parametrize("verb", VERBS)
def test_a_byte_that_changed_on_its_way_is_found(sources: dict[str, Path], tmp_path: Path, verb: str) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        flip_on_the_way(patch, elements(sources[verb])[2])
        with pytest.raises(CheckpointError, match=f"{NORM} came back from the disk different"):
            run(verb, sources[verb], out)
    assert not list(tmp_path.glob("out*"))  # nothing of the damaged run is trusted
    run(verb, sources[verb], out)
    run(verb, sources[verb], tmp_path / "undisturbed")
    assert content(out) == content(tmp_path / "undisturbed")


def test_a_record_beside_the_model_is_proved_too(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        flip_on_the_way(patch, object_record([None]))
        with pytest.raises(CheckpointError, match=r"_extra_state.* came back from the disk different"):
            run("reshard", sources["reshard"], out)
    assert not out.exists()
    run("reshard", sources["reshard"], out)
    run("reshard", sources["reshard"], tmp_path / "undisturbed")
    assert content(out) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_read_back_is_not_what_the_system_remembers(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    events: list[str] = []

    def note(word: str, real: Call) -> Call:
        def call(descriptor: int, *rest: int) -> Any:
            assert not rest or rest == (0, 0, os.POSIX_FADV_DONTNEED)
            events.append(f"{word} {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
            return real(descriptor, *rest)

        return call

    def digest(*arguments: Any, **options: Any) -> Any:
        events.append("read")
        return convert_digest(*arguments, **options)

    convert_digest = convert.digest_model
    monkeypatch.setattr(os, "fsync", note("sync", os.fsync))
    monkeypatch.setattr(os, "posix_fadvise", note("drop", os.posix_fadvise))
    monkeypatch.setattr(convert, "digest_model", digest)
    files = {Path(name).name for name in run(verb, sources[verb], tmp_path / "out").plan.files}
    before = events[: events.index("read")]
    for file in files:  # pages that are not yet on the disk would stay
        assert before[-1 - before[::-1].index(f"drop {file}") - 1] == f"sync {file}"
    events.clear()
    run(verb, sources[verb], tmp_path / "unproved", verify=False)
    assert not [event for event in events if event == "read" or event.startswith("drop")]


@pytest.mark.parametrize("verb", VERBS)
def test_a_source_that_changed_is_read_anew(sources: dict[str, Path], tmp_path: Path, verb: str) -> None:
    source, out = sources[verb], tmp_path / "out"
    interrupted(verb, source, out)
    assert run(verb, source, out).resumed > 0  # the same source: it goes on
    shutil.rmtree(out)
    interrupted(verb, source, out)
    flip(source)
    assert run(verb, source, out).resumed == 0
    assert elements(out)[2] == elements(source)[2]


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_without_proof_is_not_gone_on_with(sources: dict[str, Path], tmp_path: Path, verb: str) -> None:
    out = tmp_path / "out"
    interrupted(verb, sources[verb], out, verify=False)
    assert run(verb, sources[verb], out).manifest is not None
    assert (out / MANIFEST).is_file()


def test_nothing_of_a_run_that_was_given_up_is_published(
    hf: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    source, out = sources["export"], tmp_path / "out"
    for base, name in (("a", "vocab.json"), ("b", "merges.txt")):
        shutil.copytree(hf, tmp_path / base)
        (tmp_path / base / name).write_text("{}")
    interrupted("export", source, out, base=tmp_path / "a", extra_files=lambda *_: {"README.md": b"a"})
    assert run("export", source, out, base=tmp_path / "b").resumed > 0
    wanted = {"config.json", "tokenizer.json", "merges.txt", "model.safetensors", MANIFEST}
    assert set(content(out)) == wanted


def test_an_import_is_marked_complete_when_all_else_is_safe(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = tmp_path / "out.partial" / "iter_0000000"
    synced: list[str] = []
    real = partial_folder.sync_file

    def sync(path: Path) -> None:
        if path == folder / "metadata.json":
            raise CheckpointError("the power went")
        assert not (folder / "metadata.json").exists()
        synced.append(path.name)
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(partial_folder, "sync_file", sync)
        with pytest.raises(CheckpointError, match="the power went"):
            run("import", sources["import"], out)
    files = {path.name for path in folder.parent.rglob("*") if path.is_file()}
    assert files == {*synced, "metadata.json"} and MANIFEST in files and "config.json" in files
    assert run("import", sources["import"], out).plan.last == (
        "iter_0000000/metadata.json",
        "latest_checkpointed_iteration.txt",
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fills_at_any_write_is_explained(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    out, real, calls = tmp_path / "out", os.pwrite, [0]

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        calls[0] -= 1
        if calls[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    attempt = 0
    while not out.exists():  # a reshard starts a process that reads the checkpoint, so not quite at any
        attempt = calls[0] = attempt + (5 if verb == "reshard" else 1)
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
        (tmp_path / "out.partial.journal").unlink(missing_ok=True)
        try:
            run(verb, sources[verb], out, verify=False)
        except CheckpointError as error:
            assert "full" in str(error) and "again" in str(error) and not out.exists()
    assert attempt > len(open_model(out).tensors)  # tensors, and the headers and frames around them


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_takes_a_little_at_a_time_gets_all(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    run(verb, sources[verb], tmp_path / "out")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: 1 + len(data) // 2], at))
    run(verb, sources[verb], tmp_path / "short")
    assert content(tmp_path / "short") == content(tmp_path / "out")


def test_a_small_disk_of_any_size_is_explained(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this system lets us mount no small disk")
    source, refusals, forewarned = sources["import"], 0, 0
    try:
        for kib in range(20, 600, 28):
            subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
            out = disk / "out"
            with monkeypatch.context() as patch:
                try:
                    run("import", source, out)
                except CheckpointError as error:
                    forewarned += "are to be written" in str(error)
                # As if another program took the room after that: every write may be the one that fails.
                patch.setattr(convert, "require_space", lambda *_: None)
                try:
                    if not out.exists():
                        run("import", source, out)
                except CheckpointError as error:
                    assert "full" in str(error) and not out.exists()
                    refusals += 1
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert refusals > 3 and forewarned >= refusals
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("verb", VERBS)
def test_a_source_that_is_not_what_its_manifest_says_is_refused(
    megatron: Path, sources: dict[str, Path], tmp_path: Path, verb: str
) -> None:
    source, out = sources[verb], tmp_path / "out"
    shutil.copy(megatron / MANIFEST, source)
    run(verb, source, tmp_path / "sound")
    flip(source)
    with pytest.raises(
        CheckpointError, match=rf"is not what .*{MANIFEST} says: {NORM} \(bytes\); restore it"
    ):
        run(verb, source, out)
    assert not out.exists()
    run(
        verb, source, tmp_path / "converted", **({} if verb == "reshard" else {"dtype": "fp32"}), verify=False
    )
    (source / MANIFEST).unlink()
    assert run(verb, source, out).resumed > 0


def test_a_manifest_of_another_model_or_none_at_all_is_refused_at_once(
    hf: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    random_hf_init(small_config("Qwen2ForCausalLM", num_layers=2), tmp_path / "two", seed=3)
    import_model(tmp_path / "two", tmp_path / "other")
    for verb in VERBS:
        source = sources[verb]
        shutil.copy(tmp_path / "other" / MANIFEST, source)
        with pytest.raises(
            CheckpointError, match=r"model\.layers\.1\.\S+ \(missing\).* and \d+ more; restore"
        ):
            run(verb, source, tmp_path / "out")
        (source / MANIFEST).write_text("{}")
        with pytest.raises(CheckpointError, match=rf"{MANIFEST}: .*; remove it to convert"):
            run(verb, source, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))
        run(verb, source, tmp_path / f"{verb} unproved", verify=False)


def test_a_manifest_beside_several_iterations_speaks_of_none(
    megatron: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    source = sources["export"]
    shutil.copy(megatron / MANIFEST, source)
    shutil.copytree(source / "iter_0000000", source / "iter_0000007")
    flip(source / "iter_0000000")
    done = run("export", source / "iter_0000000", tmp_path / "out")
    assert done.manifest.digest != read_manifest(megatron).digest


@pytest.mark.parametrize("verb", ["export", "reshard"])
def test_the_output_does_not_lie_in_the_checkpoint(
    sources: dict[str, Path], tmp_path: Path, verb: str
) -> None:
    step = tmp_path / "step_3"
    shutil.copytree(sources[verb], step / "policy" / "weights")
    for source, root in (
        (sources[verb], sources[verb]),
        (sources[verb] / "iter_0000000", sources[verb]),
        (step, step),
        (step / "policy/weights/iter_0000000", step),
    ):
        with pytest.raises(CheckpointError, match="inside the source"):
            run(verb, source, root / "out")
        assert not list(root.glob("out*"))


@pytest.mark.parametrize("verb", VERBS)
def test_bytes_are_those_that_lie_there(sources: dict[str, Path], tmp_path: Path, verb: str) -> None:
    for options in ({}, {"verify": False}):
        out = tmp_path / f"out{len(options)}"
        done = run(verb, sources[verb], out, **options)
        assert done.nbytes == sum(map(len, content(out).values()))
        planned = convert.output_sizes(done.plan, dtype="keep")
        assert {n: s for n, s in planned.items() if options == {} or n != MANIFEST} == {
            name: len(data) for name, data in content(out).items()
        }
    assert verb == "export" or find_checkpoint(out).root == out
