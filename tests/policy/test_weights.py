"""Hugging Face folders survive loading into and saving from Megatron-Core under every layout."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import MODELS
from support.ranks import run_ranks
from torch import nn
from transformers import AutoModelForCausalLM

from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.hf_folder import TensorWriter
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.policy import weights
from nemo_thinkprune.policy.device import megatron_device
from nemo_thinkprune.policy.model import ModelOptions, build_model
from nemo_thinkprune.policy.parallel import model_parallel
from nemo_thinkprune.policy.weights import iter_hf_tensors, load_hf, save_hf
from nemo_thinkprune.recipe.errors import UserError

CPU = torch.device("cpu")
SHARD_BYTES = 20_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random model of each kind, sharded, with other files beside it."""
    made = {}
    for name, config in MODELS.items():
        folder = tmp_path_factory.mktemp("hf") / name
        random_hf_init(config, folder, 3, randomize_all=True, max_shard_bytes=SHARD_BYTES)
        (folder / "tokenizer.json").write_bytes(b'{"caf\xc3\xa9":\r\n1}')
        (folder / "chat_template.jinja").write_bytes(b"{{ x }}\n")
        (folder / "training.log").write_text("stays behind")
        made[name] = folder
    return made


TOKENS = torch.randint(0, 70, (1, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected_logits(folders):
    """Transformers' logits of TOKENS: fp32 [17, vocabulary]."""
    with torch.no_grad():
        return {
            name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS).logits[0]
            for name, folder in folders.items()
        }


@pytest.fixture(scope="module")
def single(tmp_path_factory, expected_logits):
    """A layout of one rank in this process; Transformers has run before torch is redirected."""
    rendezvous = tmp_path_factory.mktemp("rendezvous") / "file"
    with (
        megatron_device(CPU),
        model_parallel(rank=0, world=1, rendezvous=rendezvous, tp=1, pp=1, device=CPU) as layout,
    ):
        yield layout


def empty_model(folder, layout):
    """The model of a folder with NaN everywhere, so that what is not loaded shows."""
    config = read_hf_config(folder)
    options = ModelOptions(dtype=getattr(torch, config.dtype))
    model = build_model(config, options, layout=layout, device=CPU)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    return config, model


def round_trip(layout, jobs):
    for folder, out in jobs:
        config, model = empty_model(folder, layout)
        load_hf([model], config, folder)
        assert not any(parameter.isnan().any() for parameter in model.parameters())
        save_hf([model], config, out, source_folder=folder, max_shard_bytes=SHARD_BYTES)


def content(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name != "training.log"}


@pytest.mark.parametrize(("world", "tp", "pp"), [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 2, 2), (2, 1, 1)])
def test_load_and_save_return_every_byte(folders, tmp_path, world, tp, pp):
    jobs = [(str(folder), str(tmp_path / name)) for name, folder in folders.items()]
    run_ranks(round_trip, jobs, world=world, tp=tp, pp=pp)
    for name, folder in folders.items():
        assert content(tmp_path / name) == content(folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(folders)


def _vocabulary_rows(layout, folder):
    config, model = empty_model(folder, layout)
    load_hf(model, config, folder)
    shared = model.shared_embedding_or_output_weight() if config.tied else model.output_layer.weight
    return None if shared is None else shared.detach().clone().numpy()


def test_padding_is_zero_and_both_ends_of_a_pipeline_hold_tied_embeddings(folders):
    folder = folders["llama"]  # tied, 70 rows padded to 2 x 128
    first, first_1, last, last_1 = run_ranks(_vocabulary_rows, str(folder), world=4, tp=2, pp=2)
    assert (first == last).all() and (first_1 == last_1).all()
    rows = torch.from_numpy(first)
    assert rows.shape == (128, MODELS["llama"].hidden_size)
    assert (rows[70:] == 0).all() and (rows[:70] != 0).all() and not first_1.any()


def _failing_saves(layout, folder, out):
    config, model = empty_model(folder, layout)
    load_hf(model, config, folder)
    raised = []
    real_write, written = TensorWriter.write, []

    def full_disk(self, name, data):
        written.append(name)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real_write(self, name, data)

    TensorWriter.write = full_disk
    for target in (out, folder):
        try:
            save_hf(model, config, target, source_folder=folder)
        except Exception as error:
            raised.append((type(error).__name__, str(error)))
    return raised


def test_a_failure_on_rank_0_is_raised_on_every_rank_and_leaves_nothing(folders, tmp_path):
    folder, out = folders["qwen2"], tmp_path / "out"
    results = run_ranks(_failing_saves, str(folder), str(out), world=4, tp=2, pp=2)
    assert [full[0] for full, _ in results] == ["OSError"] + ["RuntimeError"] * 3
    assert all("No space left on device" in full[1] for full, _ in results)
    assert all(kind == "UserError" and "exists" in text for _, (kind, text) in results)
    assert list(tmp_path.iterdir()) == []


def test_transformer_engine_names_wrappers_and_chunks_are_understood(folders, single, tmp_path):
    folder = folders["qwen3"]
    config, model = empty_model(folder, single)
    for layer in model.decoder.layers:  # TransformerEngine's layers hold the norms in the linear modules
        layer.self_attention.linear_qkv.layer_norm_weight = layer.input_layernorm.weight
        layer.mlp.linear_fc1.layer_norm_weight = layer.pre_mlp_layernorm.weight
        layer.input_layernorm, layer.pre_mlp_layernorm = nn.Identity(), nn.Identity()
    first, second, wrapper = nn.Module(), nn.Module(), nn.Module()
    first.embedding, first.decoder, second.decoder = model.embedding, nn.Module(), nn.Module()
    first.decoder.layers, second.decoder.layers = model.decoder.layers[:1], model.decoder.layers[1:]
    second.decoder.final_layernorm, second.output_layer = model.decoder.final_layernorm, model.output_layer
    wrapper.module = second
    load_hf([first, wrapper], config, folder)
    save_hf([first, wrapper], config, tmp_path / "out", source_folder=folder, max_shard_bytes=SHARD_BYTES)
    assert content(tmp_path / "out") == content(folder)


def test_saved_dtype(folders, single, tmp_path):
    folder = folders["qwen2"]  # bfloat16
    config, model = empty_model(folder, single)
    load_hf(model, config, folder)
    model.decoder.final_layernorm.float()  # megatron-core may hold norms in fp32 beside bf16 weights
    for dtype in ("keep", "bf16", "fp32"):
        save_hf(model, config, tmp_path / dtype, source_folder=None, dtype=dtype)
    kept, bf16, fp32 = (load_file(tmp_path / d / "model.safetensors") for d in ("keep", "bf16", "fp32"))
    assert {name for name, t in kept.items() if t.dtype == torch.float32} == {"model.norm.weight"}
    assert {t.dtype for t in bf16.values()} == {torch.bfloat16}
    assert {t.dtype for t in fp32.values()} == {torch.float32}
    assert all(torch.equal(fp32[name], tensor.float()) for name, tensor in bf16.items())
    assert read_hf_config(tmp_path / "keep") == config


def test_iterated_tensors_are_the_models_and_own_their_memory(folders, single):
    config, model = empty_model(folders["llama"], single)
    load_hf(model, config, folders["llama"])
    first = {name: tensor.clone() for name, tensor in iter_hf_tensors(model, config)}
    for _, tensor in iter_hf_tensors(model, config):
        tensor.zero_()
    again = dict(iter_hf_tensors(model, config))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert "lm_head.weight" not in first and first["model.norm.weight"].any()


def rewritten(folder, target, change):
    """A single-file copy of a model with its tensors changed."""
    target.mkdir()
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight is missing"),
        (
            lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(2)}),
            "o_proj.bias is unknown",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(5)}), r"model.norm.weight has shape \(5,\)"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(32).int()}),
            "model.norm.weight is stored as I32",
        ),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "tie_word_embeddings"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 3)}), "tie_word_embeddings"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folders, single, tmp_path, change, message):
    folder = rewritten(folders["llama"], tmp_path / "bad", change)
    config, model = empty_model(folder, single)
    with pytest.raises(UserError, match=message):
        load_hf(model, config, folder)


def test_inv_freq_and_an_equal_head_beside_tied_embeddings_are_ignored(folders, single, tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = rewritten(folders["llama"], tmp_path / "old", add)
    config, model = empty_model(folder, single)
    load_hf(model, config, folder)
    save_hf(model, config, tmp_path / "out", source_folder=folder, max_shard_bytes=SHARD_BYTES)
    original = content(folders["llama"])
    saved = content(tmp_path / "out")
    assert all(saved[name] == data for name, data in original.items() if name.endswith(".safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_layers": 3},
            r"lacks decoder.layers.2.self_attention.linear_qkv.layer_norm_weight.* and 1 more",
        ),
        ({"num_layers": 1}, "unknown parameters decoder.layers.1"),
        ({"ffn": 56}, r"linear_fc1.weight has shape \(96, 32\), not \(112, 32\)"),
        ({"vocab_size": 500}, "128 rows cannot hold 500"),
    ],
)
def test_a_model_that_does_not_match_its_config_is_refused(folders, single, change, message):
    config, model = empty_model(folders["llama"], single)
    with pytest.raises(UserError, match=message):
        load_hf(model, replace(config, **change), folders["llama"])


def test_folder_without_weights_and_full_disk_are_user_errors(folders, single, tmp_path, monkeypatch):
    config, model = empty_model(folders["llama"], single)
    with pytest.raises(UserError, match="only safetensors weights are read"):
        load_hf(model, config, tmp_path)
    load_hf(model, config, folders["llama"])
    usage = weights.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="1000 bytes free"):
        save_hf(model, config, tmp_path / "out", source_folder=None)
    with pytest.raises(UserError, match="not a folder"):
        save_hf(model, config, tmp_path / "out", source_folder=tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_transformers_reads_what_was_saved(folders, single, tmp_path):
    folder = folders["qwen3"]
    config, model = empty_model(folder, single)
    load_hf(model, config, folder)
    save_hf(model, config, tmp_path / "out", source_folder=folder, max_shard_bytes=SHARD_BYTES)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    ours = dict(iter_hf_tensors(model, config))
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in ours.values())
    assert set(ours) == set(theirs) == set(index["weight_map"])
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_loaded_model_computes_what_transformers_computes(folders, single, expected_logits, name):
    config, model = empty_model(folders[name], single)
    load_hf(model, config, folders[name])
    model.float()
    with torch.no_grad():
        hidden = model(TOKENS, torch.arange(17)[None], None)
        logits = (model.output_hidden(hidden) @ model.output_weight().T)[:, : config.vocab_size]
    torch.testing.assert_close(logits, expected_logits[name], atol=1e-5, rtol=1e-5)
