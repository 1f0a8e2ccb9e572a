"""The manifest file: a digest worked out by hand, a round trip, and nothing but CheckpointError for what is damaged."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import repeatable
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.proof.compare import compare
from checkpoints_tools.proof.digest import TensorDigest
from checkpoints_tools.proof.manifest import (
    MANIFEST_FILE,
    Manifest,
    from_text,
    manifest_of,
    model_digest,
    read_manifest,
    to_bytes,
)

BYTES = struct.pack("<4f", 1.0, -2.0, 0.0, 0.5)
A = TensorDigest("F32", (2, 2), hashlib.sha256(BYTES).hexdigest())
B = TensorDigest("BF16", (3,), hashlib.sha256(b"\x80\x3f\x00\x00\x00\xbf").hexdigest())
MANIFEST = Manifest({"w.b": A, "w.a": B}, "bf16", "step_200", "torch_dist", "thinkprune-ckpt 0.1.0")


def test_the_model_digest_is_the_sha256_of_the_sorted_lines():
    text = f"w.a BF16 3 {B.sha256}\nw.b F32 2,2 {A.sha256}\n"
    assert model_digest(MANIFEST.tensors) == hashlib.sha256(text.encode()).hexdigest()
    assert MANIFEST.parameters == 7 and MANIFEST.nbytes == 22


def test_round_trip_keeps_every_field_and_the_order(tmp_path):
    (tmp_path / MANIFEST_FILE).write_bytes(to_bytes(MANIFEST))
    assert read_manifest(tmp_path) == read_manifest(tmp_path / MANIFEST_FILE) == MANIFEST
    assert list(read_manifest(tmp_path).tensors) == ["w.b", "w.a"]
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_FILE]
    raw = json.loads((tmp_path / MANIFEST_FILE).read_bytes())
    assert raw["version"] == 1 and raw["digest"] == MANIFEST.digest and raw["parameters"] == 7


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/QwQ-32B", "QwQ-32B"),
        ("/data/run/checkpoints/step_200/policy/weights/iter_0000000", "step_200/iter_0000000"),
        ("/data/mine/release", "mine/release"),
        ("/data/mine/../QwQ-32B/", "QwQ-32B"),
        ("/iter_0000001", "iter_0000001"),
    ],
)
def test_the_source_is_named_without_its_place_on_the_machine(path, name):
    model = StoredModel(Path(path), "torch_dist", small_config("Qwen2ForCausalLM"), {}, ())
    manifest = manifest_of(model, MANIFEST.tensors, dtype_policy="bf16")
    assert manifest.source == name and b"/data" not in to_bytes(manifest)
    assert from_text(to_bytes(manifest).decode()) == manifest


def test_missing_and_irregular_files_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(CheckpointError):
        read_manifest(tmp_path)
    for data in (b"\xff\xfe", b" " * (8 << 20) + b"{}"):
        (tmp_path / "other.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"other\.json"):
            read_manifest(tmp_path / "other.json")


def test_compare_names_each_kind_of_difference():
    a = {"same": A, "gone": A, "type": A, "shape": A, "bytes": A}
    b = {
        "bytes": replace(A, sha256="0" * 64),
        "type": replace(A, dtype="F16"),
        "shape": replace(A, shape=(4,)),
        "same": A,
        "new": B,
    }
    found = [(d.kind, d.name) for d in compare(a, b)]
    assert found == [
        ("missing", "gone"),
        ("dtype", "type"),
        ("shape", "shape"),
        ("bytes", "bytes"),
        ("extra", "new"),
    ]
    assert compare(a, dict(reversed(a.items()))) == []


def edited(**changes):
    return json.dumps(json.loads(to_bytes(MANIFEST)) | changes).encode()


def with_tensor(name="w.b", **changes):
    tensors = json.loads(to_bytes(MANIFEST))["tensors"]
    return edited(tensors=tensors | {name: tensors["w.b"] | changes})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable manifest"),
        (b"[" * 100_000, "not a readable manifest"),
        (b"[]", "must be an object"),
        (to_bytes(MANIFEST)[:-3], "not a readable manifest"),
        (to_bytes(MANIFEST).replace(b'"version"', b'"digest": "", "version"'), "given twice"),
        (to_bytes(MANIFEST).replace(b'"w.a"', b'"w.b"'), "given twice"),
        (edited(format="other"), "not a manifest of thinkprune-ckpt"),
        (edited(version=2), "version 2 is not known"),
        (edited(version=True), "not a manifest"),
        (edited(more=1), "exactly"),
        (edited(parameters=8), "do not fit"),
        (edited(bytes=22.0), "do not fit"),
        (edited(digest="0" * 64), "do not fit"),
        (edited(parameters=float("nan")), "NaN is not JSON"),
        (edited(source={"name": "x\ny", "format": "torch_dist"}), "one line of text"),
        (edited(source={"name": "x", "format": ["torch_dist"]}), "not one of"),
        (edited(dtype_policy={}), "not one of"),
        (edited(tensors={}), "at least one tensor"),
        (with_tensor("two words"), "not a tensor's name"),
        (with_tensor(dtype="F33"), "malformed dtype or shape"),
        (with_tensor(dtype=["F32"]), "malformed dtype or shape"),
        (with_tensor(shape=[2, -2]), "malformed dtype or shape"),
        (with_tensor(shape=[2, True]), "malformed dtype or shape"),
        (with_tensor(shape=[1] * 9), "malformed dtype or shape"),
        (with_tensor(shape=[10**30]), "malformed dtype or shape"),
        (with_tensor(sha256="A" * 64), "64 lower-case"),
        (with_tensor(sha256="0" * 64), "do not fit"),
    ],
)
def test_damaged_manifests_are_refused(data, message):
    with pytest.raises(CheckpointError, match=message):
        from_text(data.decode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def only_checkpoint_errors(data):
    try:
        manifest = from_text(data.decode("utf-8", "surrogateescape"))
    except CheckpointError:
        return
    assert from_text(to_bytes(manifest).decode()) == manifest


@repeatable(100)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    only_checkpoint_errors(data)


@repeatable(100)
@given(st.integers(0, len(to_bytes(MANIFEST)) - 1), st.integers(0, 255))
def test_any_byte_replaced(position, value):
    data = bytearray(to_bytes(MANIFEST))
    data[position] = value
    only_checkpoint_errors(bytes(data))


@repeatable(100)
@given(st.sampled_from(sorted(json.loads(to_bytes(MANIFEST)))), JSON)
def test_any_value_in_any_field(field, value):
    only_checkpoint_errors(edited(**{field: value}))


@repeatable(100)
@given(st.sampled_from(("dtype", "shape", "sha256")), JSON)
def test_any_value_in_a_tensor(field, value):
    only_checkpoint_errors(with_tensor(**{field: value}))
