"""What a manifest that lies beside a source says of it: a source that is something else is not converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import StoredModel
from checkpoints_tools.plans import Plan
from checkpoints_tools.proof.compare import Difference, compare
from checkpoints_tools.proof.digest import TensorDigest
from checkpoints_tools.proof.manifest import MANIFEST_FILE, Manifest, read_manifest


@dataclass(frozen=True, slots=True)
class Stated:
    """A manifest and its file."""

    file: Path
    manifest: Manifest


def stated_manifest(source: StoredModel) -> Stated | None:
    """The manifest beside a source, None where there is none.

    A checkpoint's lies beside the iteration's folder. Where several iterations lie there, a training has gone on
    in the folder and nothing says which of them the manifest is of: it is left aside.

    Raises:
        CheckpointError: There is one and it cannot be read.
    """
    folder = source.path.resolve()
    if source.format == "torch_dist":
        folder = folder.parent
        if sum(1 for _ in folder.glob("*/.metadata")) > 1:
            return None
    file = folder / MANIFEST_FILE
    if not file.exists():
        return None
    try:
        return Stated(file, read_manifest(file))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it to convert {source.path} without its word") from None


def require_stated_shapes(stated: Stated, plan: Plan) -> None:
    """Raise CheckpointError, before anything is read, where names, shapes or types are not the manifest's."""
    stored = {
        name: TensorDigest(tensor.dtype, tensor.shape, stated.manifest.tensors[name].sha256)
        if name in stated.manifest.tensors
        else TensorDigest(tensor.dtype, tensor.shape, "")
        for name, tensor in plan.source.tensors.items()
    }
    _refuse(stated, plan, compare(stated.manifest.tensors, stored))


def require_stated(stated: Stated, plan: Plan, digests: Mapping[str, TensorDigest]) -> None:
    """Raise CheckpointError where the source's bytes are not the manifest's.

    `digests`: of the tensors as they were written; those that were converted on the way tell nothing.
    """
    same = {name: d for name, d in digests.items() if d.dtype == plan.source.tensors[name].dtype}
    wanted = {name: stated.manifest.tensors[name] for name in same}
    _refuse(stated, plan, compare(wanted, same))


def _refuse(stated: Stated, plan: Plan, differences: list[Difference]) -> None:
    if not differences:
        return
    names = ", ".join(f"{d.name} ({d.kind})" for d in differences[:5])
    more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise CheckpointError(
        f"{plan.source.path} is not what {stated.file} says: {names}{more}; restore it, or remove the manifest if "
        "the change was meant"
    )
