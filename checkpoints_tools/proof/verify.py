"""Do two folders hold the same model? Every tensor's digest is compared, whatever the formats are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, Literal

from checkpoints_tools.layout import StoredModel
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.models import is_hf_folder, open_model
from checkpoints_tools.plans import DType, target_dtypes
from checkpoints_tools.proof.compare import Difference, compare
from checkpoints_tools.proof.digest import TensorDigest, digest_model
from checkpoints_tools.proof.explain import explain
from checkpoints_tools.proof.manifest import Manifest, model_digest
from checkpoints_tools.torch_dist.folders import find_checkpoint
from checkpoints_tools.weight_map import weight_map

# What config.json says about the model's past, not about what it computes.
_HISTORY = ("dtype", "initializer_range")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models. `digest` is None when it was not worth hashing: no tensor could be equal."""

    name: str
    format: Literal["huggingface", "torch_dist", "manifest"]
    tensors: int
    parameters: int
    nbytes: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference and, where it is known, what happened to the tensor (empty otherwise)."""

    difference: Difference
    note: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The answer. `warnings` tell what changes the model although its tensors are equal.

    `as_dtype`: what the tensors were converted to before they were compared.
    """

    a: Side
    b: Side
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    as_dtype: DType = "keep"

    @property
    def same(self) -> bool:
        """Whether the two hold the same tensors, byte for byte once they are converted."""
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0 the same, 1 different."""
        return 0 if self.same else 1


def open_both(a: Path, b: Path, *, base: Path | None = None) -> tuple[StoredModel, StoredModel]:
    """Two models to be compared, whole or not. A checkpoint without config.json takes it from the other's folder.

    `base`: the Hugging Face folder that a checkpoint takes config.json from, whatever it has.
    Raises CheckpointError where one cannot be opened.
    """
    return _open(a, base, other=b), _open(b, base, other=a)


def _open(path: Path, base: Path | None, *, other: Path) -> StoredModel:
    path, other = path.expanduser(), other.expanduser()
    if base is None and not is_hf_folder(path) and find_checkpoint(path).files is None:
        base = other if is_hf_folder(other) else find_checkpoint(other).files
    return open_model(path, base=base, partial=True)


def verify(
    a: StoredModel,
    b: StoredModel,
    *,
    threads: int = 4,
    as_dtype: DType = "keep",
    on_bytes: Callable[[int], None] | None = None,
    explained: int = 8,
) -> Verification:
    """Compare two models; `as_dtype` converts both before they are compared.

    A tensor that the architecture needs and neither model has counts as missing. At most `explained`
    differing tensors are read once more, to say where and how they differ.

    Raises:
        CheckpointError: A file is damaged, or a tensor cannot be converted.
    """
    headers = [_headers(model, as_dtype) for model in (a, b)]
    hashed = any(headers[1].get(name) == tensor for name, tensor in headers[0].items())
    digests = headers
    if hashed:
        digests = [
            digest_model(model, threads=threads, on_bytes=on_bytes, as_dtype=as_dtype) for model in (a, b)
        ]
    differences = compare(*digests) + _needed_by_both((a, b))
    notes = explain(a, b, digests[0], digests[1], differences, limit=explained)
    return Verification(
        _side(str(a.path), a.format, digests[0], hashed),
        _side(str(b.path), b.format, digests[1], hashed),
        tuple(Finding(d, notes.get(d.name, "")) for d in differences),
        tuple(config_warnings(a.config, b.config)),
        as_dtype,
    )


def verify_manifest(
    a: StoredModel,
    manifest: Manifest,
    *,
    name: str = "the manifest",
    threads: int = 4,
    as_dtype: DType = "keep",
    on_bytes: Callable[[int], None] | None = None,
    explained: int = 8,
) -> Verification:
    """Compare a model with the digests that a manifest states; `as_dtype` converts the model's tensors.

    Raises:
        CheckpointError: A file is damaged, or a tensor cannot be converted.
    """
    digests = digest_model(a, threads=threads, on_bytes=on_bytes, as_dtype=as_dtype)
    differences = compare(digests, manifest.tensors) + _needed_by_both((a,), manifest.tensors)
    notes = explain(a, None, digests, manifest.tensors, differences, limit=explained)
    return Verification(
        _side(str(a.path), a.format, digests, True),
        _side(name, "manifest", manifest.tensors, True),
        tuple(Finding(d, notes.get(d.name, "")) for d in differences),
        (),
        as_dtype,
    )


def _headers(model: StoredModel, dtype: DType) -> dict[str, TensorDigest]:
    """The tensors as they will be hashed, with no digest yet."""
    dtypes = target_dtypes(model, dtype)
    return {name: TensorDigest(dtypes[name], tensor.shape, "") for name, tensor in model.tensors.items()}


def _needed_by_both(
    models: Iterable[StoredModel], others: Mapping[str, TensorDigest] | None = None
) -> list[Difference]:
    """Tensors that the architecture needs and no side has: equal folders may both lack them."""
    models = list(models)
    present = set(others or ()).union(*(model.tensors for model in models))
    needed = dict.fromkeys(name for model in models for name in weight_map(model.config).hf)
    return [Difference("missing", name, None, None) for name in needed if name not in present]


def _side(
    name: str,
    kind: Literal["huggingface", "torch_dist", "manifest"],
    tensors: Mapping[str, TensorDigest],
    hashed: bool,
) -> Side:
    parameters = sum(prod(tensor.shape) for tensor in tensors.values())
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Side(name, kind, len(tensors), parameters, nbytes, model_digest(tensors) if hashed else None)


def config_warnings(a: ModelConfig, b: ModelConfig) -> list[str]:
    """One line for each field of config.json that makes two models of equal tensors compute differently."""
    return [
        f"config.json: {field.name} is {left!r} in A and {right!r} in B; equal tensors do not make these"
        " the same model"
        for field in fields(ModelConfig)
        if field.name not in _HISTORY
        and (left := getattr(a, field.name)) != (right := getattr(b, field.name))
    ]


def report_lines(result: Verification) -> list[str]:
    """The answer as lines of text: the two models, each differing tensor, the warnings, the verdict."""
    lines = []
    for letter, side in (("A", result.a), ("B", result.b)):
        digest = side.digest or "not computed: no tensor has the same dtype and shape in both"
        lines.append(f"{letter}  {side.name} ({side.format})")
        lines.append(f"   {side.tensors} tensors, {side.parameters:,} parameters, {side.nbytes:,} bytes")
        lines.append(f"   digest {digest}")
    for finding in result.findings:
        lines.append(f"{_what(finding.difference)}{': ' + finding.note if finding.note else ''}")
    lines += [f"warning: {warning}" for warning in result.warnings]
    if result.findings and all(f.difference.kind == "dtype" for f in result.findings):
        lines.append("only dtypes differ; with --dtype bf16 both are rounded before they are compared")
    count = len(result.findings)
    how = "byte for byte" if result.as_dtype == "keep" else f"after conversion to {result.as_dtype}"
    lines.append(
        f"same: every tensor is equal, {how}" if result.same
        else f"different: {count} tensor{'s differ' if count != 1 else ' differs'}"
    )  # fmt: skip
    return lines


def _what(difference: Difference) -> str:
    a, b, name = difference.a, difference.b, difference.name
    if difference.kind == "dtype" and a and b:
        return f"dtype    {name}: {a.dtype} in A, {b.dtype} in B"
    if difference.kind == "shape" and a and b:
        return f"shape    {name}: {list(a.shape)} in A, {list(b.shape)} in B"
    if difference.kind == "bytes":
        return f"bytes    {name}"
    where = "in A, not in B" if a else "in B, not in A" if b else "in neither, but the architecture needs it"
    return f"{difference.kind:8} {name}: {where}"


def to_json(result: Verification) -> dict[str, Any]:
    """The answer as JSON types."""
    return {
        "same": result.same,
        "dtype": result.as_dtype,
        "a": _side_json(result.a),
        "b": _side_json(result.b),
        "differences": [
            {
                "kind": finding.difference.kind,
                "tensor": finding.difference.name,
                "a": _tensor_json(finding.difference.a),
                "b": _tensor_json(finding.difference.b),
                "note": finding.note,
            }
            for finding in result.findings
        ],
        "warnings": list(result.warnings),
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "path": side.name,
        "format": side.format,
        "tensors": side.tensors,
        "parameters": side.parameters,
        "bytes": side.nbytes,
        "digest": side.digest,
    }


def _tensor_json(tensor: TensorDigest | None) -> dict[str, Any] | None:
    if tensor is None:
        return None
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256 or None}
