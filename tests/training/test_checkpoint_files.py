from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_thinkprune.training import checkpoint_files
from nemo_thinkprune.training.checkpoint_files import (
    complete_checkpoints,
    newest_valid,
    prune_checkpoints,
    publish,
    remove_stale,
    verify_checkpoint,
)

FILES = {
    "training_info.json": b'{"step": 1}',
    "config.yaml": b"grpo: {}\n",
    "policy/tokenizer/tokenizer.json": b"{}",
    "policy/weights/iter_0000000/.metadata": b"\x80\x04.",
    "policy/weights/iter_0000000/__0_0.distcp": bytes(range(256)) * 3,
    "policy/weights/iter_0000000/common.pt": b"",
    "policy/weights/iter_0000000/metadata.json": b"{}",
}


def save(folder: Path, step: int, **info: float) -> Path:
    aside = folder / f"tmp_step_{step}"
    for name, data in FILES.items():
        path = aside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (aside / "training_info.json").write_text(json.dumps({"step": step, **info}))
    final = folder / f"step_{step}"
    publish(aside, final)
    return final


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(folder: Path) -> list[int]:
    return [item.step for item in complete_checkpoints(folder)]


def no_refusals(path: Path, problems: list[str]) -> None:
    raise AssertionError(f"{path} refused: {problems}")


def test_a_published_checkpoint_verifies_and_is_found_newest_first(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert names(tmp_path) == {"step_2", "step_9", "step_10"}
    assert steps(tmp_path) == [10, 9, 2]
    assert verify_checkpoint(tmp_path / "step_9") == []
    assert newest_valid(tmp_path, on_refused=no_refusals) == tmp_path / "step_10"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path / "absent") == []
    assert newest_valid(tmp_path / "absent", on_refused=no_refusals) is None
    assert newest_valid(tmp_path, on_refused=no_refusals) is None


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = (damage_missing, damage_truncated, damage_one_bit)
NAMES = (*FILES, "manifest.json")
# An empty file can only go missing.
DAMAGED = [(name, damage) for name in NAMES for damage in (DAMAGES if FILES.get(name, b"x") else DAMAGES[:1])]


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
def test_each_kind_of_damage_to_each_file_is_refused_by_name(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / name)
    refused: list[tuple[Path, list[str]]] = []
    found = newest_valid(tmp_path, on_refused=lambda path, problems: refused.append((path, problems)))
    assert found == tmp_path / "step_1"
    [(path, [problem])] = refused
    assert path == newest and name in problem


def test_every_single_changed_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = folder / "manifest.json"
    original = manifest.read_bytes()
    for position in range(0, len(original), 3):
        data = bytearray(original)
        data[position] ^= 1
        manifest.write_bytes(data)
        assert verify_checkpoint(folder), f"byte {position}"
    manifest.write_bytes(original)
    assert verify_checkpoint(folder) == []


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    manifest = folder / "manifest.json"
    for name in ("../outside", "/etc/hostname", "a\0b"):
        content = json.loads(manifest.read_text())
        content["files"][name] = {"size": 0, "sha256": ""}
        manifest.write_text(json.dumps(content, indent=1) + "\n")
        assert "manifest.json is damaged" in verify_checkpoint(folder)[0]
        del content["files"][name]
        manifest.write_text(json.dumps(content, indent=1) + "\n")


def test_all_damaged_files_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "config.yaml").unlink()
    damage_one_bit(folder / "policy/weights/iter_0000000/__0_0.distcp")
    assert len(verify_checkpoint(folder)) == 2


def test_a_folder_without_manifest_counts_only_where_that_is_allowed(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, total_steps=3)
    (folder / "manifest.json").unlink()
    assert steps(tmp_path) == []
    refused: list[Path] = []
    assert newest_valid(tmp_path, on_refused=lambda path, problems: refused.append(path)) is None
    assert refused == [folder]
    assert newest_valid(tmp_path, on_refused=no_refusals, require_manifest=False) == folder
    assert [c.step for c in complete_checkpoints(tmp_path, require_manifest=False)] == [3]
    (folder / "policy/weights/iter_0000000/metadata.json").unlink()
    (folder / "policy/weights/iter_0000000/.metadata").write_bytes(b"")
    found = verify_checkpoint(folder, require_manifest=False)
    assert len(found) == 2 and "metadata.json is missing" in found[0] and ".metadata is empty" in found[1]


def test_only_nemo_rl_may_leave_out_the_manifest(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "manifest.json").unlink()
    assert verify_checkpoint(folder, require_manifest=False) == ["manifest.json is missing"]
    (folder / "training_info.json").write_text("{")
    assert verify_checkpoint(folder, require_manifest=False) == ["training_info.json is damaged"]


def test_replacing_a_checkpoint_leaves_the_new_one_alone(tmp_path: Path) -> None:
    save(tmp_path, 4, value=1)
    save(tmp_path, 4, value=2)
    assert names(tmp_path) == {"step_4"}
    assert json.loads((tmp_path / "step_4" / "training_info.json").read_text())["value"] == 2
    assert verify_checkpoint(tmp_path / "step_4") == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def kill_at_call(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int) -> None:
    original, calls = getattr(module, name), [0]

    def wrapped(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)


@pytest.mark.parametrize(
    ("name", "number", "value"),
    [
        ("seal", 1, 1),  # before anything
        ("rename", 1, 1),  # sealed, not yet renamed
        ("rename", 2, 1),  # the old one moved aside, the new one not yet in its place
        ("fsync_dir", 1, 2),  # both renamed
        ("rmtree", 2, 2),  # the old one not yet deleted
    ],
)
def test_a_kill_at_any_point_of_replacing_leaves_one_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, value: int
) -> None:
    save(tmp_path, 4, value=1)
    module = {"rename": os, "rmtree": shutil}.get(name, checkpoint_files)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, module, name, number)
        save(tmp_path, 4, value=2)
    remove_stale(tmp_path)
    assert names(tmp_path) == {"step_4"}
    assert verify_checkpoint(tmp_path / "step_4") == []
    assert json.loads((tmp_path / "step_4" / "training_info.json").read_text())["value"] == value


def test_stale_folders_go_and_others_stay(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in ("tmp_step_2", "gone_step_3", "old_step_1", "step_x", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    remove_stale(tmp_path)
    assert names(tmp_path) == {"step_1", "step_x", "notes"}


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, accuracy in enumerate([0.1, 0.9, 0.8, float("nan"), 0.2], start=1):
        save(tmp_path, step, **{"val:accuracy": accuracy})
    assert prune_checkpoints(tmp_path, keep_top_k=None) == []
    assert prune_checkpoints(tmp_path, keep_top_k=2, metric_name="val:accuracy", keep_steps=[1]) == [4]
    assert steps(tmp_path) == [5, 3, 2, 1]
    assert prune_checkpoints(tmp_path, keep_top_k=1, metric_name="val:accuracy", higher_is_better=False) == [
        3,
        2,
    ]
    assert names(tmp_path) == {"step_5", "step_1"}
    assert prune_checkpoints(tmp_path, keep_top_k=1) == [1]


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_training_info_of_an_old_checkpoint_ranks_last_and_ends_nothing(
    tmp_path: Path, content: bytes
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, **{"val:accuracy": 0.5})
    info = tmp_path / "step_2" / "training_info.json"
    info.write_bytes(content.ljust(info.stat().st_size, b" "))
    assert prune_checkpoints(tmp_path, keep_top_k=2, metric_name="val:accuracy") == [2]
    assert steps(tmp_path) == [3, 1]


def test_hashing_gives_signs_of_life(tmp_path: Path) -> None:
    pulses: list[int] = []
    aside = tmp_path / "tmp_step_1"
    aside.mkdir()
    (aside / "large").write_bytes(bytes(3 << 20))
    publish(aside, tmp_path / "step_1", pulse=lambda: pulses.append(1))
    assert len(pulses) == 3
    assert verify_checkpoint(tmp_path / "step_1", pulse=lambda: pulses.append(2)) == []
    assert newest_valid(tmp_path, on_refused=no_refusals, pulse=lambda: pulses.append(3)) is not None
    assert pulses == [1] * 3 + [2] * 3 + [3] * 3


def test_a_damaged_checkpoint_takes_no_place_and_the_only_whole_one_stays(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage_truncated(newest / "config.yaml")
    assert prune_checkpoints(tmp_path, keep_top_k=1) == []
    assert names(tmp_path) == {"step_1", "step_2"}


def test_a_kill_while_deleting_never_leaves_half_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, shutil, "rmtree", 2)
        prune_checkpoints(tmp_path, keep_top_k=1)
    assert steps(tmp_path) == [3, 1]
    assert all(not verify_checkpoint(item.path) for item in complete_checkpoints(tmp_path))
    remove_stale(tmp_path)
    assert names(tmp_path) == {"step_3", "step_1"}
