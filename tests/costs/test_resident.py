"""Resident memory of a rank of the local engine, with the numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import small_config

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.local_batches import LocalBatch, largest_batch
from nemo_thinkprune.costs.parts import PhaseMemory
from nemo_thinkprune.costs.resident import mapped_bytes, resident_phases
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.schema import Recipe

# 2 layers of 2,304 + 2,048 + 64 + 1,024 + 4,608 + ..., embedding and output of 384 padded rows
MODEL = small_config("Qwen2ForCausalLM", dtype="float32")
LAYER = 32 * 64 + 64 + 32 * 32 + 3 * 32 * 48 + 2 * 32
PARAMETERS = 2 * LAYER + 32 + 2 * 384 * 32

RECIPE = """
grpo: {num_prompts_per_step: 4, num_generations_per_prompt: 2}
policy: {model_name: model, precision: float32, generation_batch_size: 8}
data: {train: {data_path: none.jsonl}, max_input_seq_length: 240}
thinkprune: {limits: [16], prompt_family: plain, length_hint: false, runtime: {device: cpu}}
"""
TP2 = ("policy.megatron_cfg.tensor_model_parallel_size=2", "cluster.gpus_per_node=2")
DP2 = ("cluster.gpus_per_node=2",)


@pytest.fixture
def recipe(tmp_path: Path):
    """A recipe with overrides."""

    def make(*overrides: str) -> Recipe:
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return make


def parts(recipe: Recipe, phase: str, model: ModelConfig = MODEL) -> dict[str, int]:
    found: PhaseMemory = next(one for one in resident_phases(recipe, model) if one.phase == phase)
    return {part.name: part.bytes for part in found.parts}


def test_what_stays_through_all_phases(recipe) -> None:
    for phase in ("generate", "log-probs", "forward/backward", "optimizer", "save"):
        held = parts(recipe(), phase)
        assert held["weights"] == held["gradients"] == held["reference policy"] == 4 * PARAMETERS
        assert held["optimizer"] == 8 * PARAMETERS
        assert "float32 gradients" not in held
    without = parts(recipe("loss_fn.reference_policy_kl_penalty=0"), "generate")
    assert "reference policy" not in without


def test_bfloat16_has_master_weights_and_float32_gradients_until_the_next_update(recipe) -> None:
    narrow = recipe("policy.precision=bfloat16")
    held = parts(narrow, "log-probs")
    assert held["weights"] == held["gradients"] == 2 * PARAMETERS
    assert held["optimizer"] == 12 * PARAMETERS
    assert held["float32 gradients"] == 4 * PARAMETERS
    assert "float32 gradients" not in parts(narrow, "forward/backward")
    deep = small_config("Qwen2ForCausalLM", num_layers=8, ffn=4800)
    alone = ("policy.sequence_packing.enabled=false", "policy.train_micro_batch_size=1")
    short = recipe(
        "policy.precision=bfloat16", *alone, "data.max_input_seq_length=8", "thinkprune.limits=[4]"
    )
    begins = parts(short, "forward/backward", deep)
    assert "activations" not in begins and begins["float32 gradients"] == 2 * begins["gradients"]


def test_loading_maps_the_files_or_makes_gradients_whichever_is_more(recipe) -> None:
    load = parts(recipe(), "load")
    assert load["weights"] == 4 * PARAMETERS
    assert load.get("mapped files of weights", load.get("gradients")) == 4 * PARAMETERS
    halves = mapped_bytes(MODEL, Split(tp=2), 0)
    columns = 2 * (32 * 32 + 32 * 48)  # split by columns: every page holds some of them
    rows = 2 * (32 * 64 + 64 + 2 * 32 * 48) + 2 * 512 * 32  # 300 tokens are padded to 512
    norms = 2 * 2 * 32 + 32
    assert halves == 4 * (columns + rows // 2 + norms)


def test_sampling_keeps_prompts_once_and_packed_weights(recipe) -> None:
    made = parts(recipe(), "generate")
    assert made["key-value cache"] == 2 * 2 * (4 * 240 + 8 * 16) * 2 * 8 * 4
    assert made["weights packed for sampling"] == 4 * (2 * (LAYER - 64 - 2 * 32) + 384 * 32)
    assert made["workspace of a layer"] == 4 * 240 * (3 * 48 + 3 * 32) * 4
    assert made["logits"] == 3 * 4 * 8 * 384


def test_a_tied_output_projection_is_packed_beside_the_embedding(recipe) -> None:
    tied = small_config("Qwen2ForCausalLM", dtype="float32", tied=True)
    assert (
        parts(recipe(), "generate", tied)["weights packed for sampling"]
        == parts(recipe(), "generate")["weights packed for sampling"]
    )


def test_a_cache_of_long_responses_is_cut_layer_by_layer(recipe) -> None:
    """Three times the keys or values of one layer: those of 7 rows, 2 heads of 8, 2000 tokens."""
    made = parts(recipe("thinkprune.limits=[2000]"), "generate")
    assert made["a layer's cache cut to fewer rows"] == 3 * 2 * 8 * 7 * 2000 * 4
    assert "workspace of a layer" not in made


def test_the_largest_micro_batch_counts_a_prompt_once(recipe) -> None:
    """A prompt of 240 and two responses of 16, each without its last token: 270."""
    assert recipe().policy.sequence_packing.train_mb_tokens == 320
    assert largest_batch(recipe(), Split()) == LocalBatch(tokens=270, responses=32, count=4)
    narrow = recipe("policy.sequence_packing.train_mb_tokens=256", "policy.max_total_sequence_length=256")
    assert largest_batch(narrow, Split()) == LocalBatch(tokens=255, responses=16, count=8)
    wide = recipe("policy.sequence_packing.train_mb_tokens=600")
    assert largest_batch(wide, Split()) == LocalBatch(tokens=540, responses=64, count=2)
    assert largest_batch(wide, split_of(recipe(*DP2))) == LocalBatch(tokens=510, responses=32, count=2)
    even = Split(tp=2, sequence_parallel=True)
    assert largest_batch(narrow, even).tokens == 256
    rows = recipe("policy.sequence_packing.enabled=false", "policy.train_micro_batch_size=4")
    assert largest_batch(rows, Split()) == LocalBatch(tokens=540, responses=64, count=2)


def test_several_data_parallel_ranks_reduce_and_gather_copies(recipe) -> None:
    """Gloo reduces a copy of the gradients when the activations are gone: whichever is more counts."""
    assert "activations" in parts(recipe(*DP2), "forward/backward")
    model = small_config("Qwen2ForCausalLM", ffn=4800, vocab_size=100)
    alone = ("policy.sequence_packing.enabled=false", "policy.train_micro_batch_size=1")
    short = ("data.max_input_seq_length=8", "thinkprune.limits=[4]")
    two = recipe(*DP2, *alone, *short)
    train = parts(two, "forward/backward", model)
    gradients = train["reduced copy of gradients"]
    assert "activations" not in train
    assert gradients == train["gradients"]
    assert parts(two, "optimizer", model)["gathered weights"] == gradients
    assert parts(two, "save", model)["optimizer gathered and copied"] == 30 * gradients // 4
    assert "activations" in parts(recipe(*alone, *short), "forward/backward", model)


def test_saving_copies_gate_and_up_of_weights_and_moments(recipe) -> None:
    assert parts(recipe(), "save")["copies of gate and up"] == 2 * (2 * 48 * 32) * 12
    light = parts(recipe("checkpointing.save_optimizer=false"), "save")
    assert light["copies of gate and up"] == 2 * (2 * 48 * 32) * 4


def test_what_the_widest_phase_freed_is_still_resident_in_the_others(recipe) -> None:
    """All blocks of this model are small: phases differ in what they hold, not in what is resident."""
    phases = {one.phase: one for one in resident_phases(recipe(), MODEL)}
    made = {
        name: sum(p.bytes for p in phases[name].parts if p.name in _MADE) for name in phases if name != "load"
    }
    kept = {name: sum(p.bytes for p in phases[name].parts if p.name.startswith("kept")) for name in made}
    most = max(size for name, size in made.items() if name != "save")
    for name, size in made.items():
        assert kept[name] >= most - size
    assert sum(made.values()) > 0


_MADE = {
    "key-value cache", "weights packed for sampling", "workspace of a layer", "logits", "activations",
    "AdamW's temporaries", "copies of gate and up",
}  # fmt: skip


def test_tensor_parallel_ranks_share_and_stages_differ(recipe) -> None:
    split = (LAYER - 2 * 32) // 2 + 2 * 32
    assert parts(recipe(*TP2), "generate")["weights"] == 4 * (2 * split + 32 + 2 * 256 * 32)
    staged = recipe("policy.megatron_cfg.pipeline_model_parallel_size=2", "cluster.gpus_per_node=2")
    train = [one for one in resident_phases(staged, MODEL) if one.phase == "forward/backward"]
    first, last = ({part.name: part.bytes for part in one.parts} for one in train)
    assert "logits" not in first and last["logits"] > 0
    assert first["activations"] > last["activations"]
