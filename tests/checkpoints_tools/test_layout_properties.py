"""Any model saved in any layout: hypothesis draws both, an emulation of Megatron's save writes the checkpoint."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints import Save, Saves, assert_same, hf_tensors, reference_hf
from support.emulated_saves import emulate_save
from support.examples import repeatable
from support.models import small_config
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from checkpoints_tools.convert import export_model, import_model, reshard
from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.digest import digest_model


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how its checkpoint is cut."""

    config: ModelConfig
    tp: int
    stages: tuple[int, ...]
    per_layer: bool
    divisible_by: int
    dtype: torch.dtype
    fp32_norms: bool
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    """Small models of odd sizes with a layout that Megatron could save them in."""
    tp = draw(st.sampled_from([1, 1, 2, 3, 4]))
    stages = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    groups = tp * draw(st.integers(1, 2))
    architecture = draw(st.sampled_from(["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"]))
    config = small_config(
        architecture,
        hidden_size=draw(st.integers(1, 24)),
        num_layers=sum(stages),
        num_heads=groups * draw(st.integers(1, 3)),
        num_kv_heads=groups,
        head_dim=2 * draw(st.integers(1, 4)),
        ffn=tp * draw(st.integers(1, 9)),
        vocab_size=draw(st.integers(1, 200)),
        tied=draw(st.booleans()),
    )
    return Case(
        config=config,
        tp=tp,
        stages=stages,
        per_layer=draw(st.booleans()),
        divisible_by=draw(st.sampled_from([1, 8, 128])),
        dtype=draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float16])),
        fp32_norms=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def random_model(case: Case, folder: Path) -> dict[str, Tensor]:
    """Write a Hugging Face folder whose tensors are random bits, NaNs and infinities included."""
    c, tensors = case.config, {}
    rows = {"q": c.num_heads * c.head_dim, "k": c.num_kv_heads * c.head_dim, "v": c.num_kv_heads * c.head_dim}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for n in range(c.num_layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (c.hidden_size,),
            **{f"self_attn.{part}_proj.weight": (size, c.hidden_size) for part, size in rows.items()},
            **{f"self_attn.{part}_proj.bias": (size,) for part, size in rows.items() if c.qkv_bias},
            **{f"self_attn.{part}_norm.weight": (c.head_dim,) for part in "qk" if c.qk_norm},
            "self_attn.o_proj.weight": (c.hidden_size, rows["q"]),
            "post_attention_layernorm.weight": (c.hidden_size,),
            "mlp.gate_proj.weight": (c.ffn, c.hidden_size),
            "mlp.up_proj.weight": (c.ffn, c.hidden_size),
            "mlp.down_proj.weight": (c.hidden_size, c.ffn),
        }
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    generator = torch.Generator().manual_seed(case.seed)
    for name, shape in shapes.items():
        dtype = torch.float32 if case.fp32_norms and "norm" in name else case.dtype
        size = torch.Size(shape).numel() * dtype.itemsize
        bits = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
        tensors[name] = bits.view(dtype).reshape(shape)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_dict(c)))
    return tensors


def digests(path: Path, base: Path) -> Any:
    return digest_model(open_model(path, base=base))


@repeatable(30)
@given(case=cases())
def test_any_saved_layout_exports_to_the_same_tensors(case: Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model = random_model(case, root / "hf")
        folder = root / "iter_0000002"
        emulate_save(
            model,
            case.config,
            folder,
            tp=case.tp,
            stages=case.stages,
            per_layer=case.per_layer,
            divisible_by=case.divisible_by,
        )
        export_model(folder, root / "out", base=root / "hf", verify=False)
        assert_same(hf_tensors(root / "out"), model)
        assert digests(folder, root / "hf") == digests(root / "hf", root / "hf")


@repeatable(20)
@given(case=cases(), cut_at_import=st.booleans())
def test_import_reshard_export_return_every_tensor(case: Case, cut_at_import: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        model = random_model(case, root / "hf")
        import_model(root / "hf", root / "a", chunk_tp=case.tp if cut_at_import else 1, verify=False)
        expected = digests(root / "hf", root / "hf")
        assert digests(root / "a", root / "hf") == expected
        reshard(root / "a", root / "b", chunk_tp=case.tp, verify=False)
        assert digests(root / "b", root / "hf") == expected
        export_model(root / "b", root / "out", verify=False)
        assert_same(hf_tensors(root / "out"), model)


EMULATED = {
    "one": (Save(), (4,)),
    "tp2_pp2": (Save(tp=2, pp=2), (2, 2)),
    "per_layer": (Save(tp=2, pp=2, per_layer=True), (2, 2)),
    "unequal": (Save(pp=2, first_stage=1), (1, 3)),
}


@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_emulation_is_what_megatron_writes(
    saves: Saves, tmp_path: Path, name: str, architecture: str
) -> None:
    tied = architecture == "Qwen3ForCausalLM"
    config = small_config(architecture, num_layers=4, dtype="bfloat16", tied=tied)
    save, stages = EMULATED[name]
    real, emulated = saves(config, save), tmp_path / "emulated"
    hf = hf_tensors(saves.source(config))
    emulate_save(hf, config, emulated, tp=save.tp, stages=stages, per_layer=save.per_layer)
    assert description(emulated) == description(real)
    assert_same(reference_hf(emulated, config), reference_hf(real, config))


def description(folder: Path) -> dict[Any, Any]:
    """Tensors with their chunks, and for each record the rank that wrote it and its length."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # made by this test
    out: dict[Any, Any] = {}
    for key, item in metadata.state_dict_metadata.items():
        out[key] = "bytes"
        if isinstance(item, TensorStorageMetadata):
            chunks = sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in item.chunks)
            out[key] = (item.properties.dtype, tuple(item.size), chunks)
    for index, place in metadata.storage_data.items():
        rank = place.relative_path.split("_")[2]
        out[index.fqn, tuple(index.offset or ())] = (rank, place.length)
    return out
