"""Checkpoints that real megatron-core wrote, and readers of them that share no code with the converter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.random_init import random_hf_init
from support.ranks import run_ranks


@dataclass(frozen=True, slots=True)
class Save:
    """How a checkpoint is saved.

    `per_layer`: keys `decoder.layers.N.`, fc1 as weight_w and weight_v (Megatron's singleton_local_shards).
    `optimizer`: None, "adam" or "distributed" (over `dp` ranks); one update is made first, so that no moment
    is zero and the weights differ from the source. `fp32_norms`: norms in float32 that no bfloat16 can hold.
    `common_state`: as megatron-core after 0.16 writes, without common.pt. `first_stage` layers on the first
    pipeline stage, when the stages are to differ.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    per_layer: bool = False
    optimizer: str | None = None
    fp32_norms: bool = False
    common_state: bool = False
    first_stage: int | None = None


class Saves:
    """Saves each (model, layout) once; the folders are shared, so copy one before changing it.

    saves = Saves(tmp_path_factory.mktemp("saves"))
    folder = saves(small_config("Qwen2ForCausalLM"), Save(tp=2, pp=2))
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[tuple[ModelConfig, Save], Path] = {}

    def source(self, config: ModelConfig) -> Path:
        """The Hugging Face folder (norms and biases random, a tokenizer file) that the saves start from."""
        folder = self.root / "hf" / _name(config)
        if not folder.exists():
            random_hf_init(config, folder, 3, randomize_all=True, max_shard_bytes=50_000)
            (folder / "tokenizer.json").write_bytes(b'{"caf\xc3\xa9":\r\n1}')
            (folder / "chat_template.jinja").write_bytes(b"{{ x }}\n")
        return folder

    def __call__(self, config: ModelConfig, save: Save = Save()) -> Path:
        """The torch_dist folder of the model, `iter_0000002` in a folder that names it as the latest."""
        if (config, save) not in self._made:
            root = self.root / f"{_name(config)}_{_name(save)}"
            folder = root / "iter_0000002"
            folder.mkdir(parents=True)
            world = save.tp * save.pp * save.dp
            run_ranks(_save, self.source(config), folder, save, world=world, tp=save.tp, pp=save.pp)
            (root / "latest_checkpointed_iteration.txt").write_text("2")
            self._made[config, save] = folder
        return self._made[config, save]


def _name(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _save(layout: Any, source: Path, folder: Path, save: Save) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject

    from nemo_thinkprune.policy.checkpoint import CONTENT_METADATA

    policy = _policy(layout, source, save)
    if save.optimizer:
        _update(policy)
    if save.fp32_norms:
        _widen_norms(policy.network)
    content = CONTENT_METADATA | {"singleton_local_shards": save.per_layer}
    state = _state(policy, content) | {"iteration": 2, "checkpoint_version": 3.0}
    if save.common_state:
        common = {"iteration": 2, "checkpoint_version": 3.0, "content_metadata": content}
        state["common_state"] = ShardedObject("common_state", common, (1,), (0,), replica_id=layout.rank)
    dist_checkpointing.save(state, str(folder), content_metadata=content)
    if save.common_state and layout.is_main:
        (folder / "common.pt").unlink()


def _policy(layout: Any, source: Path, save: Save) -> Any:
    from checkpoints_tools.hf_config import read_hf_config
    from support.models import load_policy

    optimizer = None
    if save.optimizer:
        optimizer = {"lr": 1e-3, "use_distributed_optimizer": save.optimizer == "distributed"}
        optimizer["bf16"] = read_hf_config(source).dtype == "bfloat16"
    dtype = getattr(torch, read_hf_config(source).dtype)
    return load_policy(
        layout, source, optimizer=optimizer, dtype=dtype, layers_in_first_stage=save.first_stage
    )


def _state(policy: Any, content: dict[str, Any]) -> dict[str, Any]:
    from megatron.core import parallel_state as mpu

    metadata = {**content, "dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}
    model = policy.network.sharded_state_dict(metadata=metadata)
    state = {"model": model}
    if policy.optimizer is not None:
        state["optimizer"] = policy.optimizer.sharded_state_dict(model, is_loading=False, metadata=metadata)
    return state


def _update(policy: Any) -> None:
    from nemo_thinkprune.policy.batch import TokenSequence

    layout, vocabulary = policy.layout, policy.model.vocab_size
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(vocabulary, (4, 2, 12), generator=generator).tolist()
    mine = [TokenSequence(*row) for row in rows][layout.dp_rank :: layout.dp]
    policy.update(mine, lambda logprobs, entropy, micro: (-logprobs.sum() / 48, {}), lr=1e-3)


def _widen_norms(network: torch.nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if "norm" in name:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.data = parameter.data.float() + 1e-4 * noise


def dcp_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a torch_dist folder by key, as torch.distributed.checkpoint assembles them."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in stored.items()
        if isinstance(item, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return state


def reference_hf(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The Hugging Face tensors of a torch_dist folder, from Megatron's definition of its own tensors.

    linear_qkv stacks, for each key-value group, the group's queries, its key and its value (megatron-core
    `SelfAttention.get_query_key_value_tensors`); linear_fc1 is gate over up; rows past the vocabulary are
    padding.
    """
    stored = dcp_tensors(folder)
    out = {
        "model.embed_tokens.weight": stored["embedding.word_embeddings.weight"][: config.vocab_size],
        "model.norm.weight": stored["decoder.final_layernorm.weight"],
    }
    if not config.tied:
        out["lm_head.weight"] = stored["output_layer.weight"][: config.vocab_size]
    for layer in range(config.num_layers):
        tensors = _of_layer(stored, layer)
        hf = _hf_layer(tensors, config)
        out |= {f"model.layers.{layer}.{name}": tensor for name, tensor in hf.items()}
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _of_layer(stored: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    own = f"decoder.layers.{layer}."
    if any(key.startswith(own) for key in stored):
        return {key.removeprefix(own): tensor for key, tensor in stored.items() if key.startswith(own)}
    shared = "decoder.layers."
    return {key.removeprefix(shared): t[layer] for key, t in stored.items() if key.startswith(shared)}


def _hf_layer(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    if "mlp.linear_fc1.weight" in tensors:
        gate, up = tensors["mlp.linear_fc1.weight"].chunk(2)
    else:
        gate, up = tensors["mlp.linear_fc1.weight_w"], tensors["mlp.linear_fc1.weight_v"]
    out = {
        "input_layernorm.weight": tensors["self_attention.linear_qkv.layer_norm_weight"],
        "post_attention_layernorm.weight": tensors["mlp.linear_fc1.layer_norm_weight"],
        "self_attn.o_proj.weight": tensors["self_attention.linear_proj.weight"],
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": tensors["mlp.linear_fc2.weight"],
    }
    for short in ("q", "k"):
        if f"self_attention.{short}_layernorm.weight" in tensors:
            out[f"self_attn.{short}_norm.weight"] = tensors[f"self_attention.{short}_layernorm.weight"]
    queries = config.num_heads // config.num_kv_heads
    for kind in ("weight", "bias"):
        if f"self_attention.linear_qkv.{kind}" not in tensors:
            continue
        packed = tensors[f"self_attention.linear_qkv.{kind}"]
        heads = packed.unflatten(0, (config.num_kv_heads, queries + 2, config.head_dim))
        parts = {"q": heads[:, :queries], "k": heads[:, queries], "v": heads[:, queries + 1]}
        for part, value in parts.items():
            out[f"self_attn.{part}_proj.{kind}"] = value.reshape(-1, *packed.shape[1:])
    return out


def hf_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder by name, read by the safetensors library."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        other = actual[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(other.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
