"""What inspect says of folders of both formats, whole and not, in JSON and on the screen."""

import io
import json
import pickle
import shutil
from dataclasses import replace
from math import prod

import pytest
from rich.console import Console
from safetensors.torch import save_file
from support.checkpoints import Save, hf_tensors
from support.emulated_saves import emulate_save
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.proof.inspection import inspect, to_json
from checkpoints_tools.proof.inspection_view import ranges, render
from checkpoints_tools.proof.manifest import MANIFEST_FILE
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.sizes import size

CONFIG = small_config("Qwen2ForCausalLM", dtype="bfloat16", num_layers=12)
PARAMETERS = 2 * 300 * 32 + 32 + 12 * (2 * 32 + 32 * 64 + 64 + 32 * 32 + 3 * 32 * 48)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    random_hf_init(CONFIG, root / "hf", 5, max_shard_bytes=100_000)
    (root / "hf" / "tokenizer.json").write_text("{}")
    (root / "hf" / "README.md").write_text("x")
    (root / "hf" / "odd.bin").write_text("x")
    tensors = hf_tensors(root / "hf")
    emulate_save(tensors, CONFIG, root / "run" / "iter_0000002", tp=2, stages=(6, 6))
    (root / "run" / "latest_checkpointed_iteration.txt").write_text("2")
    emulate_save(tensors, CONFIG, root / "per_layer", per_layer=True)
    return root


def shown(found, width=80, **options):
    stream = io.StringIO()
    render(Console(file=stream, width=width, force_terminal=False), found, **options)
    return stream.getvalue()


def facts(found):
    return json.loads(json.dumps(to_json(found)))


def test_a_hugging_face_folder(originals):
    found = inspect(originals / "hf")
    stored = hf_tensors(originals / "hf")
    assert {row.key: row.shape for row in found.tensors} == {n: tuple(t.shape) for n, t in stored.items()}
    assert found.parameters == sum(t.numel() for t in stored.values()) == PARAMETERS
    told = facts(found)
    assert told["config"]["architecture"] == "Qwen2ForCausalLM" and told["complete"] is True
    assert told["model_bytes"] == 2 * PARAMETERS and told["dtypes"] == {"BF16": 147}
    assert told["format"] == "huggingface" and told["vocabulary"] == 300 and told["padding"] == 0
    roles = {file["name"]: file["role"] for file in told["files"]}
    assert roles["tokenizer.json"] == "tokenizer" and roles["odd.bin"] == "unknown"
    assert roles["config.json"] == "config" and roles["README.md"] == "text"
    assert roles["model.safetensors.index.json"] == "weights"


def test_a_checkpoint_of_stacked_layers_cut_in_two(originals):
    found = inspect(originals / "run", base=originals / "hf")
    assert (found.format, found.weights, found.layers) == ("torch_dist", "iter_0000002", "stacked")
    assert (found.tensor_parallel, found.writers) == (2, 4)
    assert (found.vocabulary, found.padding) == (512, 212)
    assert found.parameters == PARAMETERS and len(found.of("model")) == 10
    assert found.items == 48 and found.item_bytes > 0 and found.problems == ()
    fc1 = next(row for row in found.tensors if row.key == "decoder.layers.mlp.linear_fc1.weight")
    assert (fc1.shape, fc1.chunks, fc1.pieces) == ((12, 96, 32), 48, (12, 4, 1))
    assert "iter_0000002/common.pt" in [file.name for file in found.files if file.role == "checkpoint"]


def test_every_file_of_a_runs_checkpoint_is_named(originals, tmp_path):
    step = tmp_path / "step_7"
    shutil.copytree(originals / "run/iter_0000002", step / "policy/weights/iter_0000000")
    for name in ("manifest.json", "training_info.json", "config.yaml"):
        (step / name).write_text("{}")
    (step / "policy/tokenizer").mkdir()
    (step / "policy/tokenizer/tokenizer_config.json").write_text("{}")
    roles = {file.name: file.role for file in inspect(step, base=originals / "hf").files}
    assert [roles[n] for n in ("manifest.json", "training_info.json", "config.yaml")] == ["run"] * 3
    assert "unknown" not in roles.values()


def test_a_checkpoint_without_config_is_shown_under_its_own_keys(originals):
    found = inspect(originals / "per_layer")
    assert found.config is None and "no config.json" in found.config_note and found.problems == ()
    assert found.layers == "per layer" and found.tensor_parallel == 1 and found.padding is None
    assert "decoder.layers.11.mlp.linear_fc1.weight_w" in {row.key for row in found.tensors}
    assert (
        found.parameters == sum(prod(row.shape) for row in found.tensors) > PARAMETERS
    )  # padding is counted
    assert "no config.json" in shown(found)


def test_optimizer_state_of_a_real_save_is_told_from_the_model(saves):
    config = small_config("Qwen3ForCausalLM", num_layers=4, head_dim=16, tied=True)
    folder = saves(config, Save(dp=2, optimizer="distributed"))
    found = inspect(folder.parent, base=saves.source(config))
    assert found.problems == ()
    assert all(row.key.startswith("optimizer.") for row in found.of("optimizer"))
    names = {row.key for row in found.of("model")}
    moments = [row for row in found.of("optimizer") if row.key.startswith("optimizer.state.exp_avg.")]
    assert {row.key.removeprefix("optimizer.state.exp_avg.") for row in moments} == names
    assert found.of("other") == [] and found.items > 0
    assert facts(found)["optimizer"]["bytes"] == sum(row.nbytes for row in found.of("optimizer")) > 0
    assert "optimizer" in shown(found) and "optimizer.state" not in shown(found)
    assert "optimizer.state.exp_avg.decoder" in shown(found, width=160, tensors=True)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("folder", ["hf", "run", "per_layer"])
def test_the_screen_is_short_and_narrow_however_many_layers(originals, folder, width):
    text = shown(inspect(originals / folder, base=originals / "hf"), width)
    body = text.splitlines()[1:]  # the path stands alone, uncut
    assert len(body) < 40 and all(len(line.rstrip()) <= width for line in body)
    assert "layers.0-11" in text or "layers.* (12 stacked)" in text
    assert "Qwen2ForCausalLM, 12 layers" in text and f"{PARAMETERS:,}" in text
    every = shown(inspect(originals / folder), width, tensors=True)
    assert ("layers.7." in every) is (folder != "run")


def test_the_longest_names_and_shapes_of_qwq_32b_fit_80_columns(originals):
    found = inspect(originals / "run", base=originals / "hf")
    wide = {32: 5120, 64: 7168, 96: 55296, 48: 27648, 512: 152064, 12: 64}
    cut = {1: 1, 12: 64, 2: 8, 4: 16}
    rows = [
        replace(row, shape=tuple(wide[n] for n in row.shape), pieces=tuple(cut[n] for n in row.pieces))
        for row in found.tensors
    ]
    text = shown(replace(found, tensors=tuple(rows)))
    assert "  self_attention.linear_qkv.layer_norm_weight 5120 " in text
    assert " 55296 x 5120  BF16 64 x 16 " in text and " 152064 x 5120 BF16 8 " in text


def test_layers_that_differ_are_not_shown_as_one(originals, tmp_path):
    tensors = hf_tensors(originals / "hf")
    for layer in (3, 4, 9):
        name = f"model.layers.{layer}.input_layernorm.weight"
        tensors[name] = tensors[name].float()
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(originals / "hf" / "config.json", tmp_path)
    text = shown(inspect(tmp_path))
    assert "model.layers.3-4, 9 " in text
    assert "model.layers.0-2, 5-8, 10-11" in text and "144 BF16, 3 F32" in text


def test_a_folder_that_is_not_its_config(originals, tmp_path):
    tensors = hf_tensors(originals / "hf")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:299].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(originals / "hf" / "config.json", tmp_path)
    found = inspect(tmp_path)
    assert found.problems == (
        "missing tensor: model.norm.weight",
        "unknown tensor: model.extra.weight",
        "wrong shape: lm_head.weight has [299, 32], config.json says [300, 32]",
    )
    assert "problem" in shown(found) and facts(found)["complete"] is False


def test_an_unsupported_config_is_told_and_the_tensors_are_shown(originals, tmp_path):
    copy = shutil.copytree(originals / "hf", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (copy / "config.json").write_text(json.dumps(config))
    found = inspect(copy)
    assert found.config is None and "GPT2LMHeadModel is not supported" in found.config_note
    assert found.parameters == PARAMETERS and len(found.tensors) == 147


def test_an_unfinished_save_and_a_missing_layer_are_problems(originals, tmp_path):
    copy = shutil.copytree(originals / "per_layer", tmp_path / "copy")
    (copy / "metadata.json").unlink()
    metadata = pickle.loads((copy / ".metadata").read_bytes())
    for table in (metadata.state_dict_metadata, metadata.storage_data):
        for key in [k for k in table if "layers.5." in getattr(k, "fqn", k)]:
            del table[key]
    (copy / ".metadata").write_bytes(pickle.dumps(metadata))
    found = inspect(copy, base=originals / "hf")
    assert len(found.problems) == 2 and "metadata.json is missing" in found.problems[0]
    assert "decoder.layers.5." in found.problems[1] and "is missing" in found.problems[1]
    assert "layers.0-4, 6-11" in shown(found)


def test_a_config_with_another_vocabulary_is_a_problem(originals, tmp_path):
    larger = small_config("Qwen2ForCausalLM", dtype="bfloat16", num_layers=12, vocab_size=600)
    random_hf_init(larger, tmp_path / "base", 0)
    found = inspect(originals / "run", base=tmp_path / "base")
    assert any("vocab" in problem for problem in found.problems) and found.padding == -88
    assert "88 fewer than the config says" in shown(found, 120)


def test_a_damaged_manifest_is_a_problem(originals, tmp_path):
    copy = shutil.copytree(originals / "hf", tmp_path / "copy")
    (copy / MANIFEST_FILE).write_text("{}")
    found = inspect(copy)
    assert found.digest is None and len(found.problems) == 1 and MANIFEST_FILE in found.problems[0]


def test_names_from_a_file_cannot_steer_the_terminal(originals, tmp_path):
    copy = shutil.copytree(originals / "hf", tmp_path / "copy")
    (copy / "a\x1b[2Jb").write_text("x")
    assert "\x1b" not in shown(inspect(copy)) and r"a\x1b[2Jb" in shown(inspect(copy))
    save_file({"w\x1b[2J": hf_tensors(copy)["model.norm.weight"]}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a tensor's name") as caught:
        inspect(copy)
    assert "\x1b" not in str(caught.value)


def test_what_is_no_model_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError):
            inspect(path)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345, "12.3 kB"), (999_499, "999 kB"),
     (999_500, "1 MB"), (65_500_000_000, "65.5 GB"), (2 * 10**18, "2000 PB")],
)  # fmt: skip
def test_sizes(nbytes, text):
    assert size(nbytes) == text


def test_ranges():
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7" and ranges([]) == ""
