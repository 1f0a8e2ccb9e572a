"""What goes with the weights when a checkpoint is cut anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.models import small_config

from checkpoints_tools import report, to_megatron
from checkpoints_tools.bridge_files import read_run_config, train_state_pt
from checkpoints_tools.convert import import_model, reshard
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_checkpoint
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.torch_dist.folders import find_checkpoint

CONFIG = small_config("Qwen2ForCausalLM", num_layers=1)
NAME = "iter_0000000"
BRIDGE = {"latest_train_state.pt", f"{NAME}/run_config.yaml", f"{NAME}/train_state.pt"}
ALWAYS = {
    "thinkprune-manifest.json",
    "latest_checkpointed_iteration.txt",
    f"{NAME}/.metadata",
    f"{NAME}/metadata.json",
    f"{NAME}/common.pt",
    f"{NAME}/__0_0.distcp",
    f"{NAME}/tokenizer/config.json",
    f"{NAME}/tokenizer/tokenizer.json",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reshard")
    random_hf_init(CONFIG, root / "hf", seed=3)
    (root / "hf" / "tokenizer.json").write_text('{"version": "1.0"}\n')
    import_model(root / "hf", root / "megatron")
    return root


@pytest.fixture
def megatron(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "megatron", tmp_path / "megatron")
    return tmp_path / "megatron"


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")


def content(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def test_all_beside_the_weights_is_carried(megatron: Path, tmp_path: Path) -> None:
    beside = ("latest_wandb.txt", "LICENSE", f"{NAME}/notes.txt", f"{NAME}/modelopt/state.json")
    write(megatron, *beside, f"{NAME}/tokenizer/special.bin", "logs/run.txt", f"{NAME}/run_config.yaml")
    write(megatron, f"{NAME}/train_state.pt", "latest_train_state.pt")
    (megatron / NAME / "run_config.yaml").write_text("model: {}")
    reshard(megatron, tmp_path / "out", chunk_tp=2)
    before, after = content(megatron), content(tmp_path / "out")
    assert set(after) == ALWAYS | BRIDGE | {*beside, f"{NAME}/tokenizer/special.bin"}
    anew = {f"{NAME}/.metadata", f"{NAME}/__0_0.distcp", "thinkprune-manifest.json"}
    own = before[f"{NAME}/train_state.pt"]
    assert {**after, **dict.fromkeys(anew)} == {
        name: None if name in anew else own if name == "latest_train_state.pt" else before[name]
        for name in after
    }


def test_what_bridge_needs_is_written_where_it_is_absent(megatron: Path, tmp_path: Path) -> None:
    for name in BRIDGE:
        (megatron / name).unlink()
    shutil.move(megatron / NAME, megatron / "iter_0000012")
    (megatron / "latest_checkpointed_iteration.txt").write_text("12\n")
    reshard(megatron, tmp_path / "out", chunk_tp=2)
    folder = tmp_path / "out" / "iter_0000012"
    assert find_checkpoint(tmp_path / "out").iteration == folder
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "12"
    stated = read_run_config(folder)
    assert stated is not None and stated["model"]["hidden_size"] == CONFIG.hidden_size
    state = train_state_pt(12)
    assert (folder / "train_state.pt").read_bytes() == state
    assert (tmp_path / "out" / "latest_train_state.pt").read_bytes() == state


def test_an_earlier_iteration_is_not_told_of_later_ones(megatron: Path, tmp_path: Path) -> None:
    shutil.copytree(megatron / NAME, megatron / "iter_0000005")
    (megatron / "latest_checkpointed_iteration.txt").write_text("5")
    (megatron / "latest_train_state.pt").write_bytes(train_state_pt(5))
    write(megatron, "latest_wandb.txt", "notes.txt")
    reshard(megatron / NAME, tmp_path / "out", chunk_tp=2)
    assert find_checkpoint(tmp_path / "out").iteration.name == NAME
    assert set(content(tmp_path / "out")) == ALWAYS | BRIDGE | {"notes.txt"}
    assert (tmp_path / "out" / "latest_train_state.pt").read_bytes() == train_state_pt(0)


def test_files_around_a_lone_folder_are_not_its_own(megatron: Path, tmp_path: Path) -> None:
    (megatron / "latest_checkpointed_iteration.txt").unlink()
    write(megatron, "notes.txt")
    (megatron / NAME).rename(megatron / "weights_of_mine")
    reshard(megatron / "weights_of_mine", tmp_path / "out", chunk_tp=2)
    assert set(content(tmp_path / "out")) == ALWAYS | BRIDGE
    assert find_checkpoint(tmp_path / "out").iteration.name == NAME


@pytest.mark.parametrize("place", [f"{NAME}/tokenizer", "tokenizer", ".", NAME])
def test_the_model_is_the_bases_where_one_is_given(
    made: Path, megatron: Path, tmp_path: Path, place: str
) -> None:
    tokenizer = shutil.move(megatron / NAME / "tokenizer", tmp_path / "tokenizer")
    shutil.copytree(tokenizer, megatron / place, dirs_exist_ok=True)
    write(megatron / place, "vocab.json")
    shutil.copytree(made / "hf", tmp_path / "base")
    write(tmp_path / "base", "tokenizer.json", "merges.txt")
    own, base = tmp_path / "own", tmp_path / "based"
    reshard(megatron, own, chunk_tp=2)
    reshard(megatron, base, chunk_tp=2, base=tmp_path / "base")
    assert set(content(own)) == ALWAYS | BRIDGE | {f"{NAME}/tokenizer/vocab.json"}
    assert set(content(base)) == ALWAYS | BRIDGE | {f"{NAME}/tokenizer/merges.txt"}
    for out, source in ((own, megatron / place), (base, tmp_path / "base")):
        for name in ("config.json", "tokenizer.json"):
            assert (out / NAME / "tokenizer" / name).read_bytes() == (source / name).read_bytes()
        assert open_checkpoint(out).model.config == CONFIG


def test_a_release_stays_one(megatron: Path, tmp_path: Path) -> None:
    """Megatron counts no iterations on from it; a `latest_train_state.pt` would send Bridge to iteration 0."""
    (megatron / NAME).rename(megatron / "release")
    (megatron / "latest_checkpointed_iteration.txt").write_text("release")
    (megatron / "latest_train_state.pt").unlink()
    reshard(megatron, tmp_path / "out", chunk_tp=2)
    assert find_checkpoint(tmp_path / "out").iteration == tmp_path / "out" / "release"
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_bytes() == b"release"
    wanted = {name.replace(NAME, "release") for name in ALWAYS | BRIDGE} - {"latest_train_state.pt"}
    assert set(content(tmp_path / "out")) == wanted


def test_a_step_gives_the_folder_that_a_run_starts_from(
    megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "step_3"
    shutil.copytree(megatron, step / "policy" / "weights")
    (step / "policy/weights/thinkprune-manifest.json").unlink()
    shutil.move(step / "policy/weights" / NAME / "tokenizer", step / "policy/tokenizer")
    write(step, "training_info.json", "manifest.json", "policy/optimizer/notes.txt")
    (step / "config.yaml").write_text("policy: {model_name: x}")
    for source, out in ((step, "a"), (step / "policy/weights" / NAME, "b")):
        report.converted(reshard(source, tmp_path / out, chunk_tp=2))
        told = capsys.readouterr().out
        assert f"not a step to resume from: config.yaml and training_info.json stay in {step}\n" in told
        assert told.endswith(f"{{path: {tmp_path / out}, format: megatron_bridge}} in a NeMo-RL recipe\n")
        assert set(content(tmp_path / out)) == ALWAYS | BRIDGE
        assert find_checkpoint(tmp_path / out).root == tmp_path / out


def test_a_folder_may_be_given_from_inside(
    megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(megatron / NAME)
    reshard(Path(), tmp_path / "out", chunk_tp=2)
    assert set(content(tmp_path / "out")) == ALWAYS | BRIDGE


def test_a_model_that_bridge_cannot_run_is_cut_and_not_offered_to_it(
    megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> dict[str, bytes]:
        raise CheckpointError("no such rotary scaling")

    for name in BRIDGE:
        (megatron / name).unlink()
    monkeypatch.setattr(to_megatron, "bridge_files", refuse)
    report.converted(reshard(megatron, tmp_path / "out", chunk_tp=2))
    assert set(content(tmp_path / "out")) == ALWAYS
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"next: thinkprune-ckpt verify {megatron / NAME} {tmp_path / 'out'}"
    assert not any("resume" in line for line in told)
