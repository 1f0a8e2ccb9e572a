"""The weight map of one model."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.shapes import Index
from checkpoints_tools.weight_map.geometry import (
    Copy,
    MegatronTensor,
    Read,
    intersect,
    local_boxes,
    tiling_fault,
)
from checkpoints_tools.weight_map.pieces import Piece


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Shapes of all Hugging Face tensors, all Megatron tensors, and the copies that make one of the other.

    `copies` is keyed by Megatron name. Each Hugging Face tensor lies in one Megatron tensor, so a model can
    be converted one Megatron tensor at a time. All dicts are in the model's order.
    """

    hf: dict[str, Index]
    megatron: dict[str, MegatronTensor]
    copies: dict[str, tuple[Copy, ...]]

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "WeightMap":
        """Collect the pieces; raises CheckpointError when they do not cover every tensor exactly once."""
        table = cls({}, {}, {})
        for piece in pieces:
            fault = _fault(piece) or next((n for n, _ in piece.hf if n in table.hf), None)
            if fault or piece.tensor.name in table.megatron:
                raise CheckpointError(f"weight map of {piece.tensor.name} is wrong: {fault or 'named twice'}")
            table.megatron[piece.tensor.name] = piece.tensor
            table.copies[piece.tensor.name] = piece.copies
            table.hf.update(piece.hf)
        return table

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(prod(shape) for shape in self.hf.values())

    def hf_names(self, name: str) -> list[str]:
        """The Hugging Face tensors that lie in the Megatron tensor, in the model's order."""
        return list(dict.fromkeys(copy.hf_name for copy in self.copies[name]))

    def hf_reads(self, name: str, tp_rank: int, tp_size: int, padded_vocab: int | None = None) -> list[Read]:
        """Boxes of Hugging Face tensors that fill rank `tp_rank`'s shard of the Megatron tensor.

        What they leave of the shard is vocabulary padding. Raises CheckpointError where `tp_size` does not
        divide the tensor.
        """
        reads = []
        for box in local_boxes(self.megatron[name], tp_rank, tp_size, padded_vocab):
            for copy in self.copies[name]:
                common = intersect(box.global_start, box.shape, copy.megatron_start, copy.shape)
                if common is not None:
                    start, shape = common
                    hf_start = _moved(start, copy.megatron_start, copy.hf_start)
                    local_start = _moved(start, box.global_start, box.local_start)
                    reads.append(Read(copy.hf_name, hf_start, local_start, shape))
        return reads


def _moved(point: Index, origin: Index, new_origin: Index) -> Index:
    return tuple(p - a + b for p, a, b in zip(point, origin, new_origin, strict=True))


def _fault(piece: Piece) -> str | None:
    fault = tiling_fault(piece.tensor.shape, [(c.megatron_start, c.shape) for c in piece.copies])
    for name, shape in piece.hf:
        boxes = [(c.hf_start, c.shape) for c in piece.copies if c.hf_name == name]
        hf_fault = tiling_fault(shape, boxes)
        fault = fault or (hf_fault and f"{name}: {hf_fault}")
    unknown = {c.hf_name for c in piece.copies} - {name for name, _ in piece.hf}
    return fault or (f"copies from unknown {sorted(unknown)}" if unknown else None)
