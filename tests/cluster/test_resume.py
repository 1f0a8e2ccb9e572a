"""A damaged newest checkpoint of NeMo-RL is found before NeMo-RL dies of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from nemo_loop import WEIGHTS, save

from nemo_thinkprune.cluster.resume import prepare


def resumed(run: Path) -> tuple[int, list[str]]:
    """The step to go on after, and what the user is told."""
    notes: list[str] = []
    return prepare(run, run / "checkpoints", limit=12, group_size=4, note=notes.append), notes


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The last of two checkpoints."""
    for step in (2, 4):
        save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints" / "step_4"


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


WEIGHT_FILES = [f"{WEIGHTS}/{name}" for name in ("common.pt", "__0_0.distcp", ".metadata", "metadata.json")]
FILES = ["train_dataloader.pt", "training_info.json", *WEIGHT_FILES]
DAMAGES = [
    (name, damage)
    for name in FILES
    for damage in (halved, emptied, zeroed, Path.unlink)
    if (Path(name).suffix, damage) != (".distcp", zeroed)  # NeMo-RL keeps no digests
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_sets_its_checkpoint_aside(
    newest: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(newest / name)
    step, (note,) = resumed(tmp_path)
    assert step == 2 and "step_4 is not whole and is now damaged_step_4" in note and Path(name).name in note
    assert not newest.exists() and newest.with_name("damaged_step_4").is_dir()
    assert resumed(tmp_path) == (2, [])


def test_a_byte_of_a_small_archive_is_found(newest: Path, tmp_path: Path) -> None:
    path = newest / "train_dataloader.pt"
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    content = bytearray(path.read_bytes())
    content[content.index(pickled)] ^= 1
    path.write_bytes(content)
    assert resumed(tmp_path)[0] == 2


def test_the_replay_buffer_of_an_asynchronous_run_counts_where_it_is(newest: Path, tmp_path: Path) -> None:
    whole = (newest / "train_dataloader.pt").read_bytes()
    (newest / "replay_buffer.pt").write_bytes(whole)
    assert resumed(tmp_path) == (4, [])
    halved(newest / "replay_buffer.pt")
    assert resumed(tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("info", "step"),
    [
        ({"total_steps": 4}, 4),
        ({"total_steps": 3, "current_step": 4}, 2),
        ({"total_steps": 0, "current_step": 4}, 4),  # the asynchronous trainer's
        ({"total_steps": 0, "current_step": 3}, 2),
        ({"total_steps": "4"}, 2),
    ],
)
def test_a_checkpoint_must_be_of_its_step(newest: Path, tmp_path: Path, info: object, step: int) -> None:
    (newest / "training_info.json").write_text(json.dumps(info))
    assert resumed(tmp_path)[0] == step


def test_what_is_only_unusual_is_left_to_nemo_rl(newest: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(newest / WEIGHTS / "common.pt", "w") as archive:
        archive.writestr("common/data.pkl", b"cunheard.of\nSettings\n.")
    assert resumed(tmp_path) == (4, [])


def test_a_file_called_like_a_checkpoint_is_set_aside(newest: Path, tmp_path: Path) -> None:
    file, link = newest.with_name("step_99"), newest.with_name("step_100")
    file.touch()
    link.symlink_to("nowhere")
    step, notes = resumed(tmp_path)
    assert step == 4 and [note.split()[0] for note in notes] == ["step_100", "step_99"]
    assert {path.name for path in newest.parent.iterdir()} == {
        "step_2", "step_4", "damaged_step_99", "damaged_step_100",
    }  # fmt: skip
