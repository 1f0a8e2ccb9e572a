"""The manifest of a model: the digest of every tensor, in a small file that lies beside the weights.

The model digest is sha256 over one line per tensor, sorted by name: `name dtype shape sha256`, where shape is
its integers with commas. It does not depend on the format, the sharding or the order of the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.proof.digest import TensorDigest
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.small_files import read_text

MANIFEST_FILE = "thinkprune-manifest.json"
FORMAT, VERSION = "thinkprune-manifest", 1

# A model of 126 layers has a manifest of some 300 kB.
_MAX_BYTES = 8 << 20
_MAX_AXES, _MAX_SIZE = 8, 1 << 48
_NAME = re.compile(r"[!-~]{1,512}")  # printable, no blanks: a name is one word of a digest line
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f]{0,255}")
_INSIDE = re.compile(
    r"iter_\d+|release|weights|policy"
)  # folders of a checkpoint, under the name it is known by
_SOURCE_FORMATS = ("huggingface", "torch_dist")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model folder holds. `tensors` is keyed by Hugging Face name.

    `dtype_policy` is how the tensors were converted from the source (keep, bf16, fp32); `source` is the name of
    the folder they came from, without its place on the machine, `source_format` its format; `tool` is the
    program and its version.
    """

    tensors: Mapping[str, TensorDigest]
    dtype_policy: str
    source: str
    source_format: str
    tool: str

    @property
    def digest(self) -> str:
        """The model digest, 64 hexadecimal digits."""
        return model_digest(self.tensors)

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def digest_line(name: str, tensor: TensorDigest) -> str:
    """The tensor's line in the text that the model digest is taken of, without the line's end."""
    return f"{name} {tensor.dtype} {','.join(map(str, tensor.shape))} {tensor.sha256}"


def model_digest(tensors: Mapping[str, TensorDigest]) -> str:
    """sha256 of the tensors' lines, sorted by name, each with a line feed: 64 hexadecimal digits."""
    lines = (digest_line(name, tensors[name]) + "\n" for name in sorted(tensors))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def manifest_of(
    model: StoredModel, tensors: Mapping[str, TensorDigest], *, dtype_policy: str = "keep"
) -> Manifest:
    """The manifest of tensors that come from `model`."""
    name = source_name(model.path)
    source = name if _LABEL.fullmatch(name) else ""
    return Manifest(dict(tensors), dtype_policy, source, model.format, tool_version())


def source_name(path: Path) -> str:
    """What to call a model's folder where its place must not show: `QwQ-32B`, `step_200/iter_0000000`."""
    whole = Path(os.path.abspath(path))
    folder = whole
    while _INSIDE.fullmatch(folder.name):
        folder = folder.parent
    return whole.name if folder in (whole, Path(whole.anchor)) else f"{folder.name}/{whole.name}"


def tool_version() -> str:
    """Program name and version."""
    for distribution in ("nemo-thinkprune", "thinkprune-ckpt"):  # the product, or the converter alone
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"thinkprune-ckpt {metadata.version(distribution)}"
    return "thinkprune-ckpt"  # a source tree that is not installed


def to_bytes(manifest: Manifest) -> bytes:
    """Content of the manifest file; the same manifest always gives the same bytes."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "digest": manifest.digest,
        "parameters": manifest.parameters,
        "bytes": manifest.nbytes,
        "dtype_policy": manifest.dtype_policy,
        "source": {"name": manifest.source, "format": manifest.source_format},
        "tool": manifest.tool,
    }
    # A line per tensor, so that two manifests can be compared with diff.
    lines = []
    for name, tensor in manifest.tensors.items():
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256}
        lines.append(f"    {json.dumps(name)}: {json.dumps(entry)}")
    text = json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "tensors": {\n' + ",\n".join(lines)
    return f"{text}\n  }}\n}}\n".encode()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file, or the one in a model folder.

    Raises:
        CheckpointError: It is missing, malformed, or its totals and digest do not fit its tensors.
    """
    file = path / MANIFEST_FILE if path.is_dir() else path
    text = read_text(file, max_bytes=_MAX_BYTES)
    if text is None:
        raise CheckpointError(f"{file} does not exist; import and export write {MANIFEST_FILE}")
    try:
        return from_text(text)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def from_text(text: str) -> Manifest:
    """The manifest in a file's content; strict. Raises CheckpointError."""
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"not a readable manifest: {error}") from error
    _require_keys(raw, "the manifest", "digest", "parameters", "bytes", "dtype_policy", "source", "tool",
                  "tensors", "format", "version")  # fmt: skip
    if raw["format"] != FORMAT or type(raw["version"]) is not int:
        raise CheckpointError(f"not a manifest of thinkprune-ckpt: format {raw['format']!r:.80}")
    if raw["version"] != VERSION:
        raise CheckpointError(f"manifest version {raw['version']!r:.20} is not known, only {VERSION}")
    source = raw["source"]
    _require_keys(source, "source", "name", "format")
    manifest = Manifest(
        tensors=_tensors(raw["tensors"]),
        dtype_policy=_one_of(raw["dtype_policy"], "dtype_policy", ("keep", "bf16", "fp32")),
        source=_label(source["name"], "source name"),
        source_format=_one_of(source["format"], "source format", _SOURCE_FORMATS),
        tool=_label(raw["tool"], "tool"),
    )
    stated = (raw["digest"], raw["parameters"], raw["bytes"])
    if any(type(n) is not int for n in stated[1:]) or stated != (
        manifest.digest,
        manifest.parameters,
        manifest.nbytes,
    ):
        raise CheckpointError(
            "its digest or totals do not fit its tensors: the file is damaged or was edited"
        )
    return manifest


def _tensors(raw: Any) -> dict[str, TensorDigest]:
    if not isinstance(raw, dict) or not raw:
        raise CheckpointError("tensors must be an object that names at least one tensor")
    tensors = {}
    for name, entry in raw.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"{name!r:.80} is not a tensor's name")
        _require_keys(entry, f"tensor {name}", "dtype", "shape", "sha256")
        dtype, shape, sha256 = entry["dtype"], entry["shape"], entry["sha256"]
        valid_shape = (
            isinstance(shape, list)
            and len(shape) <= _MAX_AXES
            and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in shape)
        )
        if not valid_shape or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise CheckpointError(f"tensor {name}: malformed dtype or shape")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise CheckpointError(f"tensor {name}: sha256 must be 64 lower-case hexadecimal digits")
        tensors[name] = TensorDigest(dtype, tuple(shape), sha256)
    return tensors


def _require_keys(value: Any, what: str, *keys: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise CheckpointError(f"{what} must be an object with exactly {', '.join(sorted(keys))}")


def _one_of(value: Any, what: str, choices: tuple[str, ...]) -> str:
    if value not in choices:  # tuples compare by ==, so an unhashable value is merely not found
        raise CheckpointError(f"{what} {value!r:.80} is not one of {', '.join(choices)}")
    return str(value)


def _label(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise CheckpointError(f"{what} {value!r:.80} must be one line of text")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise CheckpointError("a key is given twice")
    return content


def _no_constant(text: str) -> None:
    raise CheckpointError(f"{text} is not JSON")
