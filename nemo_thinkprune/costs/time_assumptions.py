"""What a step time is computed with beyond data sheets: each value is an assumption with its source, none is fitted.

Measured values of others were taken as they stand; nothing was adjusted until a published step time came out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Assumption:
    """A number that was assumed: printed with its unit and source wherever it was used."""

    name: str
    value: float
    unit: str
    source: str


def _assumed(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAssumptions:
    """Efficiencies and fixed times of a NeMo-RL step."""

    layer_efficiency: float = _assumed(
        0.55,
        "of the dense peak",
        "hardware FLOPs of a layer with its kernels and gaps, tensor-parallel communication and pipeline bubbles "
        "apart: median of the H100 bf16 rows of MosaicML llm-foundry's scripts/train/benchmarking with recomputation, "
        "7B to 70B, up to 4096 tokens (0.48 to 0.59); their communication is sharded-data-parallel and mostly hidden",
    )
    small_layer_efficiency: float = _assumed(
        0.42,
        "of the dense peak",
        "the same for models below 5B parameters: median of the 1B and 3B rows without recomputation, 512 to 4096 "
        "tokens (0.40 to 0.46)",
    )
    decode_bandwidth: float = _assumed(
        0.60,
        "of the HBM bandwidth",
        "weights and keys and values read for a token, launches and small all-reduces included: 60% on 2 H100 at "
        "batch 1, Databricks, LLM Inference Performance Engineering (2023); it falls as the batch grows",
    )
    link_efficiency: float = _assumed(
        0.82,
        "of the NVLink line rate",
        "370 of 450 GB/s on H100: NCCL's maintainers, NVIDIA/nccl-tests issue 212",
    )
    network_efficiency: float = _assumed(
        0.90,
        "of the network line rate",
        "calculon-ai/calculon, systems/a100_80g.json (Isaev et al. 2023)",
    )
    host_efficiency: float = _assumed(
        0.20,
        "of the PCIe line rate",
        "NeMo-RL moves weights and optimizer through unpinned host memory; unpinned copies are 4 to 5 times slower "
        "with 8 GPUs: microsoft/DeepSpeed pull request 5301",
    )
    fixed_seconds: float = _assumed(
        4.0,
        "s",
        "changes of phase, Ray calls, data and rewards of a step whatever its size: 3.9 s in a log of NeMo-RL v0.5 "
        "for a 1B model (Google Cloud's guide for NeMo-RL on G4: preparations, data processing and rewards)",
    )

    def listed(self) -> Iterator[Assumption]:
        """All of them with unit and source."""
        for item in fields(self):
            yield Assumption(
                item.name, getattr(self, item.name), item.metadata["unit"], item.metadata["source"]
            )

    def scaled(self, name: str, factor: float) -> TimeAssumptions:
        """The same with one value multiplied."""
        changed: dict[str, Any] = {name: getattr(self, name) * factor}
        return replace(self, **changed)
