"""Mutations of real files of both formats: the tensors that were touched are named, and no other."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import Save, hf_tensors
from support.emulated_saves import emulate_save
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.digest import digest_model
from checkpoints_tools.proof.manifest import manifest_of
from checkpoints_tools.proof.verify import open_both, report_lines, to_json, verify, verify_manifest
from checkpoints_tools.random_init import random_hf_init

CONFIG = small_config("Qwen2ForCausalLM", dtype="bfloat16", num_layers=3)
SAVED = small_config("Qwen2ForCausalLM", num_layers=4, dtype="bfloat16")
LAYER = "model.layers.1."
FORMATS = ("huggingface", "sharded", "stacked", "per layer")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """{format: folder} of one model."""
    root = tmp_path_factory.mktemp("verify")
    random_hf_init(CONFIG, root / "huggingface", 5, randomize_all=True)
    random_hf_init(CONFIG, root / "sharded", 5, randomize_all=True, max_shard_bytes=15_000)
    tensors = hf_tensors(root / "huggingface")
    emulate_save(tensors, CONFIG, root / "stacked")
    emulate_save(tensors, CONFIG, root / "per layer", per_layer=True)
    return {name: root / name for name in FORMATS}


@pytest.fixture(params=FORMATS)
def copy(request, originals, tmp_path):
    """A copy of the model in each format, to be changed."""
    return shutil.copytree(originals[request.param], tmp_path / "copy")


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def replace(folder, old, new):
    """Replace bytes in the one place in the one weight file that has them."""
    found = 0
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.distcp")]:
        data = file.read_bytes()
        found += data.count(old)
        file.write_bytes(data.replace(old, new))
    assert found == 1 and len(old) == len(new)


def exchange(folder, a, b):
    marker = b"\xa5" * len(a)
    replace(folder, a, marker)
    replace(folder, b, a)
    replace(folder, marker, b)


def check(originals, folder, **expected):
    """Compare with the original both ways; `expected` are notes by tensor, None for any."""
    base = originals["huggingface"]
    original, changed = open_model(base), open_model(folder, base=base, partial=True)
    for a, b in ((original, changed), (changed, original)):
        result = verify(a, b)
        assert not result.same and result.exit_code == 1 and result.a.digest != result.b.digest
        assert {f.difference.name for f in result.findings} == set(expected)
        for finding in result.findings:
            assert finding.difference.kind == "bytes"
            note = expected[finding.difference.name]
            assert note is None or finding.note == note.format(a="AB"[a is changed], b="AB"[b is original])
        assert report_lines(result)[-1].startswith("different: ")
    against = verify_manifest(changed, manifest_of(original, digest_model(original)))
    assert {f.difference.name for f in against.findings} == set(expected)


def test_formats_are_equal(originals):
    models = [open_model(folder, base=originals["huggingface"]) for folder in originals.values()]
    for other in models[1:]:
        result = verify(models[0], other, threads=2)
        assert result.same and result.exit_code == 0 and result.a.digest == result.b.digest
        assert report_lines(result)[-1] == "same: every tensor is equal, byte for byte"
        assert json.loads(json.dumps(to_json(result)))["same"] is True


def test_one_byte_flipped(originals, copy):
    row = raw(hf_tensors(originals["huggingface"])[LAYER + "mlp.down_proj.weight"][7])
    replace(copy, row, row[:5] + bytes([row[5] ^ 4]) + row[6:])
    note = "1 of 1,536 elements differ, the first at [7, 2], row 7"
    check(originals, copy, **{LAYER + "mlp.down_proj.weight": note})


def test_gate_and_up_exchanged(originals, copy):
    tensors = hf_tensors(originals["huggingface"])
    gate, up = LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"
    exchange(copy, raw(tensors[gate]), raw(tensors[up]))
    notes = {gate: "exchanged with mlp.up_proj.weight", up: "exchanged with mlp.gate_proj.weight"}
    check(originals, copy, **notes)


def test_k_and_v_of_one_group_exchanged(originals, copy):
    tensors = hf_tensors(originals["huggingface"])
    k, v = LAYER + "self_attn.k_proj.weight", LAYER + "self_attn.v_proj.weight"
    exchange(copy, raw(tensors[k][8:16]), raw(tensors[v][8:16]))
    notes = {
        k: "rows 8 to 15 exchanged with self_attn.v_proj.weight",
        v: "rows 8 to 15 exchanged with self_attn.k_proj.weight",
    }
    check(originals, copy, **notes)


def test_a_bias_zeroed(originals, copy):
    tensors = hf_tensors(originals["huggingface"])
    name = LAYER + "self_attn.k_proj.bias"
    for part in tensors[name].split(8):  # a checkpoint has each group's by itself
        replace(copy, raw(part), bytes(16))
    result = verify(
        open_model(originals["huggingface"]), open_model(copy, base=originals["huggingface"], partial=True)
    )
    assert [(f.difference.name, f.note) for f in result.findings] == [(name, "all zero in B")]
    check(originals, copy, **{name: None})
    manifest = manifest_of(
        open_model(originals["huggingface"]), digest_model(open_model(originals["sharded"]))
    )
    against = verify_manifest(open_model(copy, base=originals["huggingface"]), manifest)
    assert [(f.difference.name, f.note) for f in against.findings] == [(name, "all zero in A")]


def test_rows_in_another_order(originals, copy):
    tensors = hf_tensors(originals["huggingface"])
    name = LAYER + "mlp.down_proj.weight"
    exchange(copy, raw(tensors[name][3]), raw(tensors[name][20]))
    check(originals, copy, **{name: "the same rows in another order, rows 3 to 20"})


def test_layers_exchanged(originals, copy):
    tensors = hf_tensors(originals["huggingface"])
    a, b = (f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 2))
    exchange(copy, raw(tensors[a]), raw(tensors[b]))
    check(originals, copy, **{a: f"exchanged with {b}", b: f"exchanged with {a}"})


def drop_layer(folder, layer):
    """Remove a layer from the file or files that say what is stored."""
    if not (folder / ".metadata").is_file():
        tensors = {n: t for n, t in hf_tensors(folder).items() if f".layers.{layer}." not in n}
        config = (folder / "config.json").read_bytes()
        shutil.rmtree(folder)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_bytes(config)
        return
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    own = f"decoder.layers.{layer}."

    def dropped(key, offset):
        stacked = key.startswith("decoder.layers.") and not key.split(".")[2].isdecimal()
        return key.startswith(own) or (stacked and offset is not None and offset[0] == layer)

    for key, item in list(metadata.state_dict_metadata.items()):
        if key.startswith(own):
            del metadata.state_dict_metadata[key]
        elif hasattr(item, "chunks"):
            item.chunks = [c for c in item.chunks if not dropped(key, c.offsets)]
    metadata.storage_data = {i: s for i, s in metadata.storage_data.items() if not dropped(i.fqn, i.offset)}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_missing(originals, copy, layer):
    drop_layer(copy, layer)
    base = originals["huggingface"]
    whole, changed = open_model(base), open_model(copy, base=base, partial=True)
    names = [name for name in whole.tensors if f".layers.{layer}." in name]
    assert len(names) == 12
    for a, b, kind in ((whole, changed, "missing"), (changed, whole, "extra"), (changed, changed, "missing")):
        result = verify(a, b)
        assert [(f.difference.kind, f.difference.name) for f in result.findings] == [(kind, n) for n in names]
        assert result.exit_code == 1
    assert report_lines(result)[-13] == (f"missing  {names[0]}: in neither, but the architecture needs it")
    against = verify_manifest(changed, manifest_of(whole, digest_model(whole)))
    assert [(f.difference.kind, f.difference.name) for f in against.findings] == [("extra", n) for n in names]
    with pytest.raises(CheckpointError):
        open_model(copy, base=base)


def test_a_real_save_is_equal_to_its_source_and_a_flipped_bit_in_it_is_found(saves, tmp_path):
    folder, source = saves(SAVED, Save(tp=2)), saves.source(SAVED)
    whole, saved = open_both(source, folder)
    assert verify(whole, saved).same
    row = raw(hf_tensors(source)[LAYER + "self_attn.v_proj.weight"][8])
    copy = shutil.copytree(folder, tmp_path / "copy")
    replace(copy, row, row[:-1] + bytes([row[-1] ^ 0x80]))
    result = verify(*open_both(source, copy))
    assert [(f.difference.name, f.note) for f in result.findings] == [
        (LAYER + "self_attn.v_proj.weight", "1 of 512 elements differ, the first at [8, 31], row 8")
    ]


def test_a_checkpoint_takes_the_config_of_what_it_is_compared_with(originals):
    a, b = open_both(originals["stacked"], originals["huggingface"])
    assert a.config == b.config and verify(a, b).same
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_both(originals["stacked"], originals["per layer"])
    a, b = open_both(originals["stacked"], originals["per layer"], base=originals["sharded"])
    assert verify(a, b).same


@pytest.fixture
def hf_copy(originals, tmp_path):
    return shutil.copytree(originals["huggingface"], tmp_path / "copy")


def edit(folder, change):
    """Rewrite a folder's tensors in one file."""
    tensors = hf_tensors(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_of_another_name_shape_or_dtype_are_named(originals, hf_copy):
    norm, bias, up = "model.norm.weight", LAYER + "self_attn.q_proj.bias", LAYER + "mlp.up_proj.weight"

    def change(tensors):
        tensors["model.other.weight"] = tensors.pop(norm)
        tensors[bias] = tensors[bias].float()
        tensors[up] = tensors[up][:40].contiguous()

    edit(hf_copy, change)
    with pytest.raises(CheckpointError):
        open_model(hf_copy)
    result = verify(*open_both(originals["huggingface"], hf_copy))
    kinds = {f.difference.name: f.difference.kind for f in result.findings}
    assert kinds == {norm: "missing", bias: "dtype", up: "shape", "model.other.weight": "extra"}
    lines = report_lines(result)
    assert f"dtype    {bias}: BF16 in A, F32 in B" in lines
    assert f"shape    {up}: [48, 32] in A, [40, 32] in B" in lines
    assert "extra    model.other.weight: in B, not in A" in lines
    assert lines[-1] == "different: 4 tensors differ"


def test_float32_norms_are_equal_after_rounding(originals, hf_copy):
    def widen(tensors):
        for name in tensors:
            if "norm" in name:
                tensors[name] = tensors[name].float()

    edit(hf_copy, widen)
    a, b = open_both(originals["huggingface"], hf_copy)
    result = verify(a, b)
    assert {f.difference.kind for f in result.findings} == {"dtype"} and len(result.findings) == 7
    assert any("--dtype bf16" in line for line in report_lines(result))
    assert verify(a, b, as_dtype="bf16").same and verify(a, b, as_dtype="fp32").same
    manifest = manifest_of(a, digest_model(a))
    assert not verify_manifest(b, manifest).same and verify_manifest(b, manifest, as_dtype="bf16").same


def test_nothing_is_read_when_no_tensor_could_be_equal(originals, hf_copy):
    edit(hf_copy, lambda tensors: tensors.update({n: t.float() for n, t in tensors.items()}))
    seen = []
    result = verify(*open_both(originals["huggingface"], hf_copy), on_bytes=seen.append)
    assert not result.same and not seen and result.a.digest is None
    assert "not computed" in report_lines(result)[2]


@pytest.mark.parametrize(
    ("field", "value"), [("rope_theta", 5e5), ("rms_norm_eps", 1e-5), ("max_position_embeddings", 64)]
)
def test_a_config_that_changes_the_model_is_warned_of(originals, hf_copy, field, value):
    config = json.loads((hf_copy / "config.json").read_text())
    config[field] = value
    config.pop("rope_parameters")
    (hf_copy / "config.json").write_text(json.dumps(config))
    result = verify(*open_both(originals["huggingface"], hf_copy))
    assert result.same and len(result.warnings) == 1 and field in result.warnings[0]
    assert any(line.startswith("warning: ") for line in report_lines(result))


def test_an_output_layer_that_differs_from_the_embedding_it_is_tied_to_is_extra(tmp_path):
    random_hf_init(small_config("LlamaForCausalLM", tied=True), tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    edit(tmp_path / "b", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert verify(*open_both(tmp_path / "a", tmp_path / "b")).same
    edit(tmp_path / "b", lambda t: t["lm_head.weight"][0].zero_())
    result = verify(*open_both(tmp_path / "a", tmp_path / "b"))
    assert [(f.difference.kind, f.difference.name) for f in result.findings] == [("extra", "lm_head.weight")]


def test_a_truncated_file_is_an_error_that_names_it(originals, copy):
    files = sorted([*copy.glob("*.safetensors"), *copy.glob("*.distcp")])
    with open(files[-1], "r+b") as stream:
        stream.truncate(files[-1].stat().st_size - 10)
    with pytest.raises(CheckpointError) as caught:
        open_both(copy, originals["huggingface"])
    assert str(files[-1]) in str(caught.value) and "weight" in str(caught.value)


def test_only_as_many_tensors_as_asked_are_read_again(originals, hf_copy):
    edit(hf_copy, lambda tensors: [t.view(torch.int16)[0].add_(1) for t in tensors.values()])
    result = verify(*open_both(originals["huggingface"], hf_copy), explained=2)
    assert len(result.findings) == 39 and sum(bool(f.note) for f in result.findings) == 2
