"""Plan of a Hugging Face folder: which file holds which tensor, and its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from checkpoints_tools.copying.files import Files
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES, INDEX_FILE, index_json, stored_tensors
from checkpoints_tools.layout import Extent, StoredModel, TensorLayout, whole_extent
from checkpoints_tools.plans import DType, Plan, jobs_of, partial_path, target_dtypes
from checkpoints_tools.safetensors_file import Shard, TensorSpec, plan_shards


def plan_export(
    source: StoredModel,
    out: Path,
    *,
    root: Path | None = None,
    dtype: DType = "keep",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Plan:
    """Plan `source` as safetensors files of at most `max_shard_bytes` with what it carries beside them.

    `root`: the folder of the whole checkpoint, by default that of the weights.

    Raises:
        CheckpointError: A tensor's dtype cannot be converted.
    """
    dtypes = target_dtypes(source, dtype)
    specs = [TensorSpec(name, dtypes[name], t.shape) for name, t in source.tensors.items()]
    shards = plan_shards(specs, max_shard_bytes)
    folder = partial_path(out)
    tensors = _layouts(specs, shards, folder)
    places = {name: shard.file_name for shard in shards for name in shard.starts}
    total_size = sum(spec.nbytes for spec in specs)
    texts = {} if len(shards) == 1 else {INDEX_FILE: index_json(places, total_size)}

    def seal(_: Mapping[tuple[Path, int], int]) -> None:
        with Files() as files:
            for shard in shards:
                files.write(folder / shard.file_name, shard.header, 0)

    def read_back() -> StoredModel:
        return StoredModel(folder, "huggingface", source.config, _read(folder, source), ())

    return Plan(
        verb="export",
        source=source,
        root=root or source.path,
        out=out,
        jobs=jobs_of(((name, [name]) for name in tensors), source.tensors, tensors),
        raw_jobs=(),
        files={shard.file_name: shard.nbytes for shard in shards},
        carried={file.name: file for file in source.carried},
        texts=texts,
        last=(INDEX_FILE,) if texts else (),
        tensors=tensors,
        seal=seal,
        read_back=read_back,
    )


def _layouts(specs: list[TensorSpec], shards: list[Shard], folder: Path) -> dict[str, TensorLayout]:
    place = {name: (folder / s.file_name, start) for s in shards for name, start in s.starts.items()}
    layouts = {}
    for spec in specs:
        file, start = place[spec.name]
        layout = TensorLayout(spec.name, spec.dtype, spec.shape, ())
        extent = Extent(file, start, 0, 0, *layout.matrix)
        layouts[spec.name] = TensorLayout(spec.name, spec.dtype, spec.shape, (extent,))
    return layouts


def _read(folder: Path, source: StoredModel) -> dict[str, TensorLayout]:
    stored = stored_tensors(folder)
    return {
        name: TensorLayout(name, stored[name].dtype, stored[name].shape, (whole_extent(stored[name]),))
        for name in source.tensors
    }
