"""Models on disk as extents: real Megatron saves and Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import Save, Saves, assert_same, dcp_tensors, hf_tensors, reference_hf
from support.extents import assemble
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_model
from checkpoints_tools.torch_dist.read import read_index

# The same as in test_round_trip.py: each is saved once for both.
QWEN2 = small_config("Qwen2ForCausalLM", num_layers=4, dtype="bfloat16")
QWEN3 = small_config("Qwen3ForCausalLM", num_layers=4, head_dim=16, tied=True)
LLAMA = small_config("LlamaForCausalLM", vocab_size=70, tied=True, dtype="bfloat16")
CASES = {
    "stacked": (QWEN2, Save(tp=2, pp=2)),
    "padded and tied": (LLAMA, Save(tp=2, pp=2)),
    "a key for each layer": (QWEN2, Save(tp=2, pp=2, per_layer=True)),
    "optimizer": (QWEN3, Save(dp=2, optimizer="distributed")),
    "fp32 norms": (QWEN2, Save(tp=2, pp=2, fp32_norms=True, optimizer="adam")),
    "no common.pt": (QWEN3, Save(tp=2, common_state=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_real_save_is_read_bit_by_bit(saves: Saves, case: str) -> None:
    config, save = CASES[case]
    folder = saves(config, save)
    model = open_model(folder, base=saves.source(config))
    assert (model.format, model.config) == ("torch_dist", config)
    assert_same(assemble(model.tensors), reference_hf(folder, config))
    assert "tokenizer.json" in {file.name for file in model.carried}


def test_the_index_lists_all_that_is_stored(saves: Saves) -> None:
    folder = saves(QWEN3, Save(dp=2, optimizer="distributed"))
    index, stored = read_index(folder), dcp_tensors(folder)
    assert {key: t.shape for key, t in index.tensors.items()} == {
        k: tuple(t.shape) for k, t in stored.items()
    }
    located = {key: {c.payload >= 0 for c in t.chunks} for key, t in index.tensors.items()}
    assert all(found == {not key.startswith("optimizer.")} for key, found in located.items())
    assert any(key.startswith("optimizer.") for key in located)
    assert all("_extra_state" in key for key in index.items)
    assert index.items


def test_common_state_is_an_item_like_any_other(saves: Saves) -> None:
    assert "common_state/shard_0_1" in read_index(saves(QWEN3, Save(tp=2, common_state=True))).items


def test_a_checkpoint_without_config_asks_for_the_base(saves: Saves, tmp_path: Path) -> None:
    folder = saves(QWEN2, Save(tp=2, pp=2))
    with pytest.raises(CheckpointError, match="--base HF_DIR"):
        open_model(folder)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_model(folder, base=tmp_path)


def hf_folder(folder: Path, saves: Saves, config: Any = QWEN2, **changes: torch.Tensor | None) -> Path:
    """A copy of a model folder in one file, with tensors replaced, added or (None) removed."""
    source = saves.source(config)
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    tensors = {**hf_tensors(source), **changes}
    save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, folder / "model.safetensors")
    return folder


def test_a_hugging_face_folder_is_read_bit_by_bit(saves: Saves) -> None:
    folder = saves.source(QWEN2)
    model = open_model(folder)
    assert model.format == "huggingface"
    assert_same(assemble(model.tensors), hf_tensors(folder))
    assert {file.name for file in model.carried} >= {"config.json", "tokenizer.json", "chat_template.jinja"}


def test_a_hugging_face_folder_of_another_model_is_refused(saves: Saves, tmp_path: Path) -> None:
    norm = "model.norm.weight"
    with pytest.raises(CheckpointError, match=f"{norm} is missing"):
        open_model(hf_folder(tmp_path / "a", saves, **{norm: None}))
    with pytest.raises(CheckpointError, match=r"model\.extra is unknown"):
        open_model(hf_folder(tmp_path / "b", saves, **{"model.extra": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=rf"{norm} has shape \(3,\)"):
        open_model(hf_folder(tmp_path / "c", saves, **{norm: torch.ones(3)}))
    with pytest.raises(CheckpointError, match=f"{norm} is stored as I64; weights are read as BF16, F16, F32"):
        open_model(hf_folder(tmp_path / "d", saves, **{norm: torch.ones(32, dtype=torch.int64)}))


def test_old_exports_carry_what_is_not_needed(saves: Saves, tmp_path: Path) -> None:
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    model = open_model(hf_folder(tmp_path / "a", saves, **frequencies))
    assert_same(assemble(model.tensors), hf_tensors(saves.source(QWEN2)))


def test_a_tied_output_layer_must_equal_the_embedding(saves: Saves, tmp_path: Path) -> None:
    embedding = hf_tensors(saves.source(LLAMA))["model.embed_tokens.weight"]
    model = open_model(hf_folder(tmp_path / "a", saves, LLAMA, **{"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" not in model.tensors
    other = embedding.clone()
    other[-1, -1] += 1
    for name, head in {"b": other, "c": embedding.float(), "d": embedding[:-1]}.items():
        with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
            open_model(hf_folder(tmp_path / name, saves, LLAMA, **{"lm_head.weight": head}))


def test_a_header_that_repeats_a_name_is_refused(tmp_path: Path) -> None:
    entry = '"a":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    header = ("{" + entry % (0, 1) + "," + entry % (1, 2) + "}").encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"xy")
    (tmp_path / "config.json").write_text(json.dumps({}))
    from checkpoints_tools.safetensors_file import read_header

    with pytest.raises(CheckpointError, match="occurs twice"):
        read_header(file)
    file.write_bytes(header[:0] + (17 << 20).to_bytes(8, "little") + b" " * (17 << 20))
    with pytest.raises(CheckpointError, match="larger than any model's"):
        read_header(file)


def test_the_helper_reads_what_safetensors_reads(saves: Saves) -> None:
    files = sorted(saves.source(QWEN2).glob("*.safetensors"))
    assert len(files) > 1
    assert {k for f in files for k in load_file(f)} == set(open_model(saves.source(QWEN2)).tensors)
