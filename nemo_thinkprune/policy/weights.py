"""Hugging Face weights into and out of a built Megatron-Core model, by the table in `checkpoints_tools`.

Every rank reads only the slices that its own shard is made of; saving collects one tensor at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from safetensors import safe_open
from torch import Tensor, nn

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES, TensorWriter, carried_files, stored_tensors
from checkpoints_tools.hf_model import check_tensors, check_tied_head
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import StoredTensor, TensorSpec
from checkpoints_tools.weight_map import WeightMap
from checkpoints_tools.weight_map.names import HF_EMBEDDING
from nemo_thinkprune.policy import weight_gather
from nemo_thinkprune.policy.weight_gather import (
    ModelChunks,
    ParallelWeights,
    padded_vocab,
    parallel_weights,
    user_errors,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir, write_atomic

SaveDtype = Literal["keep", "bf16", "fp32"]

DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_CASTS: dict[str, torch.dtype | None] = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}


@torch.no_grad()
def load_hf(
    model_chunks: ModelChunks,
    config: ModelConfig,
    folder: str | Path,
    *,
    pulse: Callable[[], None] = lambda: None,
) -> None:
    """Fill every parameter of this rank's model from a folder of safetensors.

    Collective over the pipeline group. Values are cast to each parameter's dtype; padding rows of the
    vocabulary become zero. Call it before an optimizer copies its main parameters. `pulse` is called after each
    parameter.

    Raises UserError when the folder or a tensor is missing, a tensor is unknown or has another shape, or the
    model does not have the parameters that `config` describes.
    """
    weights = parallel_weights(model_chunks, config)
    with user_errors():
        stored = stored_tensors(Path(folder))
        check_tensors(stored, weights.table, config, Path(folder))
    with ExitStack() as stack:
        reader = _Reader(stored, stack)
        for name, parameter in weights.local:
            _fill(parameter, name, weights.table, reader, tied=config.tied)
            pulse()


def iter_hf_tensors(model_chunks: ModelChunks, config: ModelConfig) -> Iterator[tuple[str, Tensor | None]]:
    """All Hugging Face tensors of the model in its order, gathered over TP and PP one at a time.

    The source of a refit of another engine. Collective within each model replica: all its ranks must run it
    to the end. TP rank 0 of the first pipeline stage gets each tensor (on the model's device, in the
    parameter's dtype), the other ranks None. Raises UserError when model and `config` do not match.
    """
    yield from weight_gather.iter_hf_tensors(parallel_weights(model_chunks, config))


def save_hf(
    model_chunks: ModelChunks,
    config: ModelConfig,
    out: str | Path,
    *,
    source_folder: str | Path | None,
    dtype: SaveDtype = "keep",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write the model as a new Hugging Face folder; the inverse of `load_hf`.

    Collective over all ranks; rank 0 writes and holds one tensor at a time. config.json, tokenizer, chat
    template and licence files of `source_folder` are carried over byte for byte (None: a config.json is
    written from `config`). `dtype` keep is that of the parameters. The folder gets its name only when it is
    complete and synced.

    Raises UserError on every rank when `out` exists or does not fit on the disk; when writing fails, OSError
    on rank 0 and RuntimeError on the others.
    """
    target = Path(out)
    partial = target.with_name(f".{target.name}.partial")
    _on_main(lambda: _prepare(config, target, partial, source_folder))
    failure: Exception | None = None
    if mpu.get_data_parallel_rank(with_context_parallel=True) == 0:
        weights = parallel_weights(model_chunks, config)
        failure = _write(weights, partial, cast=_CASTS[dtype], max_shard_bytes=max_shard_bytes)
    _on_main(lambda: _publish(target, partial, failure))


class _Reader:
    """Reads boxes of stored tensors; files stay open until the stack is closed."""

    def __init__(self, stored: dict[str, StoredTensor], stack: ExitStack) -> None:
        self.stored, self._stack = stored, stack
        self._open: dict[Path, Any] = {}

    def read(self, name: str, box: tuple[slice, ...]) -> Tensor:
        file = self.stored[name].file
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
        return self._open[file].get_slice(name)[box]


def _fill(parameter: nn.Parameter, name: str, table: WeightMap, reader: _Reader, *, tied: bool) -> None:
    rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    padded = padded_vocab(table, name, tuple(parameter.shape))
    if padded is not None:
        parameter.zero_()
    for read in table.hf_reads(name, rank, size, padded):
        parameter[read.local_slice].copy_(reader.read(read.hf_name, read.hf_slice))
        if tied and read.hf_name == HF_EMBEDDING:
            with user_errors():
                check_tied_head(reader.stored, rows=(read.hf_start[0], read.shape[0]))


def _prepare(config: ModelConfig, target: Path, partial: Path, source: str | Path | None) -> None:
    if target.exists():
        raise UserError(f"{target} exists: choose another folder or remove it")
    if source is not None and not Path(source).is_dir():
        raise UserError(f"{source} is not a folder to take config.json and the tokenizer from")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if source is None:
        write_atomic(partial / "config.json", json.dumps(config_to_dict(config), indent=2) + "\n")
    else:
        for file in carried_files(Path(source)):
            write_atomic(partial / file.name, file.read_bytes())


def _write(
    weights: ParallelWeights, folder: Path, *, cast: torch.dtype | None, max_shard_bytes: int
) -> Exception | None:
    """Stream the tensors into the folder on rank 0; its failure is returned, not raised."""
    tensors = weight_gather.iter_hf_tensors(weights)
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            with user_errors():
                _stream(weights, tensors, folder, cast, max_shard_bytes)
        except (OSError, UserError) as error:
            failure = error
    for _ in tensors:  # also after a failure: the other ranks go on sending
        pass
    return failure


def _stream(
    weights: ParallelWeights,
    tensors: Iterator[tuple[str, Tensor | None]],
    folder: Path,
    cast: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    table = weights.table
    specs = [
        TensorSpec(hf_name, DTYPE_NAMES[cast or weights.held[name].dtype], table.hf[hf_name])
        for name in table.megatron
        for hf_name in table.hf_names(name)
    ]
    need, free = sum(spec.nbytes for spec in specs), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"{folder.parent} has {free} bytes free, the model needs {need}")
    with TensorWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in tensors:
            assert tensor is not None
            data = tensor.to(device="cpu", dtype=cast or tensor.dtype).contiguous()
            writer.write(name, [data.view(-1).view(torch.uint8).numpy().data])


def _publish(target: Path, partial: Path, failure: Exception | None) -> None:
    if failure is not None:
        shutil.rmtree(partial, ignore_errors=True)
        raise failure
    partial.rename(target)
    fsync_dir(target.parent)


def _on_main(action: Callable[[], None]) -> None:
    """Run on rank 0; when it fails there, raise on every rank."""
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except (OSError, UserError) as error:
            failure = error
    message = [None if failure is None else (isinstance(failure, UserError), str(failure))]
    dist.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    if message[0] is not None:
        is_user, text = message[0]
        raise UserError(text) if is_user else RuntimeError(f"rank 0 could not save the model: {text}")
