"""The weight map covers every element once and cuts shards as Megatron-Core does."""

import subprocess
import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import (
    ARCHITECTURES,
    Copy,
    MegatronTensor,
    WeightMap,
    box_slice,
    canonical_name,
    local_boxes,
    local_shape,
    padded_vocab_size,
    stored_shape,
    weight_map,
)
from checkpoints_tools.weight_map.geometry import tiling_fault
from checkpoints_tools.weight_map.pieces import Piece


def model_config(
    architecture="Qwen2ForCausalLM",
    *,
    layers=2,
    heads=4,
    groups=2,
    head_dim=4,
    hidden=16,
    ffn=24,
    vocab=50,
    tied=False,
):
    description = ARCHITECTURES[architecture]
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        ffn=ffn,
        vocab_size=vocab,
        tied=tied,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        qkv_bias=description.qkv_bias,
        qk_norm=description.qk_norm,
        max_position_embeddings=128,
        initializer_range=0.02,
        dtype="float32",
    )


@st.composite
def configs(draw, tp=1):
    """Model shapes that `tp` divides."""
    groups = tp * draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 3))
    return model_config(
        draw(st.sampled_from(sorted(ARCHITECTURES))),
        layers=draw(st.integers(1, 3)),
        heads=groups * draw(st.integers(1, 3)),
        groups=groups,
        head_dim=head_dim,
        hidden=draw(st.integers(1, 9)),
        ffn=tp * draw(st.integers(1, 5)),
        vocab=draw(st.integers(1, 300)),
        tied=draw(st.booleans()),
    )


def random_hf(table, seed=0):
    """Distinct integers in every element, so that a misplaced one shows."""
    sizes = [prod(shape) for shape in table.hf.values()]
    values = np.random.default_rng(seed).permutation(sum(sizes)) + 1
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(table.hf.items(), parts, strict=True)}


def to_megatron(table, hf):
    out = {name: np.zeros(tensor.shape, dtype=np.int64) for name, tensor in table.megatron.items()}
    for name, copies in table.copies.items():
        for copy in copies:
            out[name][box_slice(copy.megatron_start, copy.shape)] = hf[copy.hf_name][
                box_slice(copy.hf_start, copy.shape)
            ]
    return out


@repeatable(40)
@given(configs())
def test_copies_cover_every_element_of_both_sides_exactly_once(config):
    table = weight_map(config)
    seen_hf = {name: np.zeros(shape, dtype=int) for name, shape in table.hf.items()}
    seen = {name: np.zeros(tensor.shape, dtype=int) for name, tensor in table.megatron.items()}
    for name, copies in table.copies.items():
        for copy in copies:
            assert copy.megatron_name == name
            seen_hf[copy.hf_name][box_slice(copy.hf_start, copy.shape)] += 1
            seen[name][box_slice(copy.megatron_start, copy.shape)] += 1
    assert all((count == 1).all() for count in (*seen_hf.values(), *seen.values()))


@repeatable(25)
@given(st.data(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 8, 128]))
def test_reads_of_all_ranks_rebuild_the_tensor_as_megatron_shards_it(data, tp, divisible_by):
    config = data.draw(configs(tp))
    table = weight_map(config)
    hf = random_hf(table)
    padded = padded_vocab_size(config.vocab_size, tp, divisible_by)
    for name, expected in to_megatron(table, hf).items():
        tensor = table.megatron[name]
        shards = []
        for rank in range(tp):
            shard = np.zeros(local_shape(tensor, tp, padded), dtype=np.int64)
            for read in table.hf_reads(name, rank, tp, padded):
                shard[read.local_slice] = hf[read.hf_name][read.hf_slice]
            shards.append(shard)
        if tensor.tp_axis is None:
            rebuilt = shards[0]
            assert all((shard == rebuilt).all() for shard in shards)
        else:  # each rank holds its part of block 0, then of block 1
            blocks = [np.split(shard, tensor.tp_blocks, axis=tensor.tp_axis) for shard in shards]
            rebuilt = np.concatenate(
                [blocks[rank][b] for b in range(tensor.tp_blocks) for rank in range(tp)], axis=tensor.tp_axis
            )
        if tensor.vocab:
            assert rebuilt.shape == stored_shape(tensor, padded)
            assert (rebuilt[config.vocab_size :] == 0).all()
            rebuilt = rebuilt[: config.vocab_size]
        assert (rebuilt == expected).all(), name


def test_qkv_rows_follow_each_other_by_group():
    table = weight_map(model_config(heads=4, groups=2, head_dim=4, hidden=3))
    hf = random_hf(table)
    q, k, v = (hf[f"model.layers.1.self_attn.{part}_proj.bias"] for part in "qkv")
    bias = to_megatron(table, hf)["decoder.layers.1.self_attention.linear_qkv.bias"]
    by_hand = np.concatenate([q[:8], k[:4], v[:4], q[8:], k[4:], v[4:]])
    assert (bias == by_hand).all()


def test_fc1_shard_is_a_part_of_gate_over_a_part_of_up():
    table = weight_map(model_config(ffn=4, hidden=1))
    reads = table.hf_reads("decoder.layers.0.mlp.linear_fc1.weight", tp_rank=1, tp_size=2)
    assert [(r.hf_name.split(".")[-2], r.hf_start, r.local_start, r.shape) for r in reads] == [
        ("gate_proj", (2, 0), (0, 0), (2, 1)),
        ("up_proj", (2, 0), (2, 0), (2, 1)),
    ]


def test_a_rank_may_hold_nothing_but_padding():
    tensor = MegatronTensor("embedding.word_embeddings.weight", (5, 2), tp_axis=0, vocab=True)
    assert local_shape(tensor, 2, 16) == (8, 2)
    assert [box.shape for box in local_boxes(tensor, 0, 2, 16)] == [(5, 2)]
    assert local_boxes(tensor, 1, 2, 16) == []


def test_qwq_vocabulary_is_padded_at_tp_8_only():
    assert [padded_vocab_size(152064, tp) for tp in (1, 2, 4, 8)] == [152064, 152064, 152064, 152576]


def test_qwq_32b_has_its_published_parameter_count():
    qwq = model_config(layers=64, heads=40, groups=8, head_dim=128, hidden=5120, ffn=27648, vocab=152064)
    table = weight_map(qwq)
    assert table.parameters == 32_763_876_352
    assert table.megatron["decoder.layers.63.self_attention.linear_qkv.weight"].shape == (7168, 5120)
    assert len(table.hf) == 771


def test_tied_models_have_no_output_tensor_on_either_side():
    table = weight_map(model_config(tied=True))
    assert "lm_head.weight" not in table.hf and "output_layer.weight" not in table.megatron


@pytest.mark.parametrize(
    ("tensor", "tp"),
    [(MegatronTensor("a", (6, 4), tp_axis=0, tp_blocks=2), 2), (MegatronTensor("b", (4, 6), tp_axis=1), 4)],
)
def test_indivisible_tensor_parallelism_is_refused(tensor, tp):
    with pytest.raises(CheckpointError, match=f"{tensor.name}: .*tensor_model_parallel_size {tp}"):
        local_shape(tensor, tp)


def test_padded_vocabulary_smaller_than_the_model_is_refused():
    tensor = MegatronTensor("embedding", (130, 2), tp_axis=0, vocab=True)
    with pytest.raises(CheckpointError, match="128 rows cannot hold 130"):
        local_boxes(tensor, 0, 1, 128)


@pytest.mark.parametrize(
    ("boxes", "fault"),
    [
        ([((0, 0), (2, 2)), ((1, 1), (1, 1))], "overlap"),
        ([((0, 0), (2, 1))], "cover 2 of 4"),
        ([((0, 0), (2, 2)), ((2, 0), (1, 2))], "not lie inside"),
        ([((0, 1), (2, 1)), ((0, 0), (2, 1))], None),
    ],
)
def test_tiling_faults_are_found(boxes, fault):
    found = tiling_fault((2, 2), boxes)
    assert found is None if fault is None else fault in found


def test_a_map_with_a_missing_or_doubled_piece_is_refused():
    good = next(iter(_pieces()))
    with pytest.raises(CheckpointError, match="cover 0 of"):
        WeightMap.of([replace(good, copies=())])
    with pytest.raises(CheckpointError, match=r"embed_tokens"):
        WeightMap.of([good, good])
    stray = Copy("other", (0, 0), good.tensor.name, (0, 0), good.tensor.shape)
    with pytest.raises(CheckpointError, match="wrong"):
        WeightMap.of([replace(good, copies=(stray,))])


def _pieces() -> list[Piece]:
    from checkpoints_tools.weight_map import decoder_only

    config = model_config(layers=1)
    return list(decoder_only(config, ARCHITECTURES[config.architecture].layer(config)))


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        (
            "decoder.layers.1.input_layernorm.weight",
            "decoder.layers.4.self_attention.linear_qkv.layer_norm_weight",
        ),
        ("decoder.layers.1.pre_mlp_layernorm.weight", "decoder.layers.4.mlp.linear_fc1.layer_norm_weight"),
        (
            "decoder.layers.0.self_attention.q_layernorm.weight",
            "decoder.layers.3.self_attention.q_layernorm.weight",
        ),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ],
)
def test_canonical_names(parameter, name):
    assert canonical_name(parameter, layer_offset=3, tied=True) == name
    assert canonical_name("output_layer.weight", tied=False) == "output_layer.weight"


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_hf_names_and_shapes_are_those_of_transformers(architecture):
    torch = pytest.importorskip("torch")
    import transformers

    config = model_config(architecture, heads=4, groups=2, head_dim=4, hidden=16)
    kind = {"Qwen2ForCausalLM": "Qwen2", "Qwen3ForCausalLM": "Qwen3", "LlamaForCausalLM": "Llama"}[
        architecture
    ]
    hf_config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=24,
        vocab_size=50,
    )
    with torch.device("meta"):
        model = getattr(transformers, architecture)(hf_config)
    assert weight_map(config).hf == {name: tuple(p.shape) for name, p in model.state_dict().items()}


def test_nothing_here_imports_torch():
    code = (
        "import sys, checkpoints_tools.hf_config, checkpoints_tools.weight_map;"
        "sys.exit(any(m.split('.')[0] in ('torch', 'numpy', 'nemo_thinkprune') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
