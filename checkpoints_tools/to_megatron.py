"""Plans of Megatron checkpoints: from a Hugging Face folder, or with other chunks from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from checkpoints_tools.beside import files_beside, iteration_of
from checkpoints_tools.bridge_files import LATEST_TRAIN_STATE_FILE, bridge_files
from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.megatron_model import model_layouts
from checkpoints_tools.models import OpenCheckpoint
from checkpoints_tools.plans import DType, Plan, jobs_of, partial_path, raw_layout, target_dtypes
from checkpoints_tools.torch_dist.folders import TOKENIZER_FOLDER
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.plan_chunks import RecordCopy, file_sizes, plan_chunks
from checkpoints_tools.torch_dist.plan_chunks import plan_reshard as plan_reshard_chunks
from checkpoints_tools.torch_dist.read import read_index
from checkpoints_tools.torch_dist.write import (
    COMMON_FILE,
    CONFIG_FILE,
    METADATA_FILE,
    TRACKER_FILE,
    common_pt,
    finish_records,
    iteration_folder,
    metadata_json,
    tracker_text,
    write_metadata,
)
from checkpoints_tools.weight_map import weight_map


def plan_import(
    source: StoredModel, out: Path, *, chunk_tp: int = 1, dtype: DType = "keep", iteration: int = 0
) -> Plan:
    """Plan the Hugging Face model `source` as a checkpoint that Megatron-Core, Bridge and NeMo-RL read.

    Raises:
        CheckpointError: `chunk_tp` does not divide the model, or dtypes do not go together.
    """
    name = iteration_folder(iteration)
    folder = partial_path(out) / name
    dtypes = target_dtypes(source, dtype)
    index = plan_chunks(source.config, dtypes, folder, chunk_tp=chunk_tp)
    texts = {
        f"{name}/{METADATA_FILE}": write_metadata(index),
        f"{name}/{COMMON_FILE}": common_pt(iteration=iteration),
        **bridge_files(source.config, name, iteration, dtypes=dtypes),
        f"{name}/{CONFIG_FILE}": metadata_json(),
        TRACKER_FILE: tracker_text(iteration),
    }
    carried = {f"{name}/{TOKENIZER_FOLDER}/{file.name}": file for file in source.carried}
    return _plan(
        "import", source, source.path, out, index, written=index, raw_jobs=(), carried=carried, texts=texts
    )


def plan_reshard(opened: OpenCheckpoint, out: Path, *, chunk_tp: int) -> Plan:
    """Plan a checkpoint folder with chunks for `chunk_tp` tensor parallel loaders.

    Optimizer state, objects and the files beside the weights (see `files_beside`) are carried over unchanged, and
    Bridge's files written where they are absent. From a `step_N` this makes the folder that a run starts from
    (pretrained_checkpoint), not a step that one resumes from.

    Raises:
        CheckpointError: `chunk_tp` does not divide the model.
    """
    source, iteration = opened.model, iteration_of(opened.folder.iteration)
    name = iteration_folder(iteration)
    folder = partial_path(out) / name
    planned = plan_reshard_chunks(opened.index, source.config, folder, chunk_tp=chunk_tp)
    carried = files_beside(opened, name)
    bridge = _bridge_files(source, name, iteration)
    texts = {
        f"{name}/{METADATA_FILE}": write_metadata(planned.index),
        **{file: text for file, text in bridge.items() if file not in carried},
        f"{name}/{CONFIG_FILE}": (opened.folder.iteration / CONFIG_FILE).read_bytes(),
        TRACKER_FILE: tracker_text(iteration),
    }
    raw_jobs = tuple(map(_raw_job, planned.copies))
    return _plan(
        "reshard", source, opened.folder.root, out, planned.index,
        written=planned.model, raw_jobs=raw_jobs, carried=carried, texts=texts,
    )  # fmt: skip


def _bridge_files(source: StoredModel, name: str, iteration: int | None) -> dict[str, bytes]:
    """Bridge's files for a checkpoint that somebody else saved; none where they could not be true."""
    try:
        files = bridge_files(source.config, name, iteration or 0, dtypes=target_dtypes(source, "keep"))
    except CheckpointError:  # Megatron cannot run the model; its weights can be cut all the same
        return {}
    if iteration is None:  # Bridge would look for the folder of iteration 0
        del files[LATEST_TRAIN_STATE_FILE]
    return files


def _raw_job(copy: RecordCopy) -> Job:
    source = raw_layout(copy.key, copy.source, copy.source_offset, copy.nbytes)
    destination = raw_layout(copy.key, copy.destination, copy.offset, copy.nbytes)
    return Job(f"record {copy.destination.name} {copy.offset}", (Pair(source, destination),))


def _plan(
    verb: Literal["import", "reshard"],
    source: StoredModel,
    root: Path,
    out: Path,
    index: DistIndex,
    *,
    written: DistIndex,
    raw_jobs: tuple[Job, ...],
    carried: Mapping[str, Path],
    texts: Mapping[str, bytes],
) -> Plan:
    """The plan of a checkpoint `index` of which `written` is made from the source's tensors."""
    folder, table = index.folder, weight_map(source.config)
    name, tensors = folder.name, model_layouts(index, source.config)

    def seal(checksums: Mapping[tuple[Path, int], int]) -> None:
        finish_records(written, {(f.name, at): crc for (f, at), crc in checksums.items()}, folder)

    def read_back() -> StoredModel:
        layouts = model_layouts(read_index(folder), source.config)
        return StoredModel(folder, "torch_dist", source.config, layouts, ())

    return Plan(
        verb=verb,
        source=source,
        root=root,
        out=out,
        jobs=jobs_of(((n, table.hf_names(n)) for n in table.megatron), source.tensors, tensors),
        raw_jobs=raw_jobs,
        files={f"{name}/{file}": size for file, size in file_sizes(index).items()},
        carried=carried,
        texts=texts,
        last=(f"{name}/{CONFIG_FILE}", TRACKER_FILE),
        tensors=tensors,
        seal=seal,
        read_back=read_back,
    )
