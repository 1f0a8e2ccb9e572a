"""Model folders: what is written is read by the reference library; what is damaged is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_from_dict, read_hf_config
from checkpoints_tools.hf_folder import TensorWriter, carried_files, stored_tensors
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.safetensors_file import TensorSpec, plan_shards, read_header

CONFIG = config_from_dict(
    {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": 400,
    }
)
SPECS = [TensorSpec("a", "BF16", (3,)), TensorSpec("b", "F32", (2, 2)), TensorSpec("c", "F16", (5,))]


def write(folder, specs=SPECS, max_shard_bytes=10**6, fill=lambda i: bytes([i])):
    with TensorWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
        for i, spec in enumerate(specs):
            data = fill(i) * spec.nbytes
            writer.write(spec.name, [data[:3], memoryview(data)[3:]])


def test_mixed_dtypes_are_aligned_and_read_by_the_reference_library(tmp_path):
    write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert set(file.keys()) == {"a", "b", "c"} and file.metadata() == {"format": "pt"}
        assert file.get_tensor("b").tobytes() == b"\1" * 16 and file.get_tensor("c").tobytes() == b"\2" * 10
    stored = stored_tensors(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    assert {n: (t.dtype, t.shape) for n, t in stored.items()} == {s.name: (s.dtype, s.shape) for s in SPECS}
    assert all(
        raw[t.start :][: t.nbytes] == bytes([i]) * t.nbytes for i, t in enumerate(map(stored.get, "abc"))
    )
    assert stored["b"].start % 4 == 0


def test_files_of_the_reference_library_are_read(tmp_path):
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.ones(3, np.float16),
        "z": np.zeros((0, 2)),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes()
    for name, tensor in stored_tensors(tmp_path).items():
        assert tensor.shape == arrays[name].shape
        assert raw[tensor.start :][: tensor.nbytes] == arrays[name].tobytes()


def test_shards_are_filled_in_order_and_indexed(tmp_path):
    write(tmp_path, max_shard_bytes=22)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index == {"metadata": {"total_size": 32}, "weight_map": {"a": first, "b": first, "c": second}}
    assert set(stored_tensors(tmp_path)) == {"a", "b", "c"}
    assert set(load_file(tmp_path / second)) == {"c"}


def test_a_tensor_larger_than_a_shard_gets_its_own():
    specs = [TensorSpec(name, "F32", (size,)) for name, size in (("a", 1), ("b", 9), ("c", 1), ("d", 1))]
    assert [list(shard.starts) for shard in plan_shards(specs, 8)] == [["a"], ["b"], ["c", "d"]]


def test_nothing_is_left_when_writing_fails(tmp_path):
    def fail(i):
        if i == 2:
            raise OSError(28, "No space left on device")
        return b"x"

    with pytest.raises(OSError, match="No space"):
        write(tmp_path, max_shard_bytes=22, fill=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([("b", b"x" * 16)], "expected a, got b"),
        ([("a", b"x" * 5)], "expected 6 bytes, got 5"),
        ([("a", b"x" * 6)], "2 tensors were not written, the first is b"),
    ],
)
def test_the_writer_takes_all_tensors_in_order_and_in_full(tmp_path, writes, message):
    with pytest.raises(ValueError, match=message), TensorWriter(tmp_path, SPECS) as writer:
        for name, data in writes:
            writer.write(name, [data])
    assert list(tmp_path.iterdir()) == []


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        ([], "not an object"),
        ({"t": entry(dtype="F12")}, "malformed header entry of t"),
        ({"t": entry(shape=(-2,), offsets=(8, 0))}, "malformed"),
        ({"t": entry(shape=(True, 2))}, "malformed"),
        ({"t": [1]}, "malformed"),
        ({"t": entry(shape=(3,))}, "t has 8 bytes, which is not F32 of shape"),
        ({"t": entry(), "u": entry()}, "overlap"),
        ({"t": entry(offsets=(4, 12))}, "hole at byte"),
        ({"t": entry(shape=(1,), offsets=(0, 4))}, "truncated or damaged"),
        ({"t": entry(shape=(10**15,), offsets=(0, 4 * 10**15))}, "truncated or damaged"),
    ],
)
def test_malformed_headers_are_refused(tmp_path, header, message):
    file = tmp_path / "model.safetensors"
    header_file(file, header, b"12345678")
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"1234", (2**62).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file, or is truncated"):
        read_header(tmp_path / "f")


def test_every_truncation_is_noticed(tmp_path):
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "../model-00001-of-00002.safetensors"}, "'../model-00001"),
        ({"a": "/etc/passwd"}, "'/etc/passwd' is not the name"),
        ({"a": 3}, "3 is not the name"),
        ({"c": "model-00009-of-00002.safetensors"}, "model-00009-of-00002.safetensors is missing"),
        ({"a": "model-00002-of-00002.safetensors"}, "holds a, which the index does not place there"),
        ({"d": "model-00002-of-00002.safetensors"}, "no file holds: d"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, change, message):
    write(tmp_path, max_shard_bytes=22)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= change
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="only safetensors weights are read"):
        stored_tensors(tmp_path)
    for text in ("{}", '{"weight_map": {}}', "nonsense"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            stored_tensors(tmp_path)


def test_files_that_go_with_the_model(tmp_path):
    carried = [
        "LICENSE",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
    ]
    for name in [
        *carried,
        "model.safetensors",
        "README.md",
        "optimizer.pt",
        "model.safetensors.index.json",
        "x.py",
    ]:
        (tmp_path / name).write_text("")
    assert [file.name for file in carried_files(tmp_path)] == carried


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_random_init_is_what_transformers_loads_and_depends_on_the_seed_only(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = replace(CONFIG, dtype=dtype, initializer_range=0.09)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        random_hf_init(config, tmp_path / name, seed, token_ids={"eos_token_id": 3})
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b and a != c
    assert read_hf_config(tmp_path / "a") == config
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype) and model.config.eos_token_id == 3
    for name, tensor in model.state_dict().items():
        if name.endswith(("norm.weight", ".bias")):
            assert (tensor == name.endswith("norm.weight")).all()
        else:
            assert abs(tensor.float().std().item() / 0.09 - 1) < 0.1 and abs(tensor.float().mean()) < 0.02


def test_bfloat16_rounding_is_to_nearest_even(tmp_path):
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "bfloat16"):
        random_hf_init(replace(CONFIG, dtype=dtype), tmp_path / dtype, 5, randomize_all=True)
    from safetensors.torch import load_file as load_torch

    wide, narrow = (load_torch(tmp_path / d / "model.safetensors") for d in ("float32", "bfloat16"))
    assert all(torch.equal(narrow[name], tensor.bfloat16()) for name, tensor in wide.items())
    assert wide["model.norm.weight"].std() > 0 and wide["model.layers.0.self_attn.q_proj.bias"].std() > 0


def test_random_init_does_not_overwrite_weights(tmp_path):
    random_hf_init(CONFIG, tmp_path, 0)
    with pytest.raises(CheckpointError, match=r"already holds model\.safetensors"):
        random_hf_init(CONFIG, tmp_path, 0)
