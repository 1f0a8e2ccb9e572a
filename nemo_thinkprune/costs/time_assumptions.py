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


_LAYERS = (
    "hardware FLOPs of layers, without tensor-parallel communication and pipeline bubbles: median of the {gpu} bf16 "
    "rows of MosaicML llm-foundry's scripts/train/benchmarking, {rows}"
)
_LARGE = "7B to 70B with recomputation, up to 4096 tokens ({span})"
_SMALL = "1B and 3B without recomputation, up to 4096 tokens ({span}); used below 5B parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAssumptions:
    """Efficiencies and fixed times of a NeMo-RL step; the defaults are for Hopper GPUs, see `assumptions_for`."""

    layer_efficiency: float = _assumed(
        0.55, "of the dense peak", _LAYERS.format(gpu="H100", rows=_LARGE.format(span="0.48 to 0.59"))
    )
    small_layer_efficiency: float = _assumed(
        0.42, "of the dense peak", _LAYERS.format(gpu="H100", rows=_SMALL.format(span="0.40 to 0.46"))
    )
    decode_bandwidth: float = _assumed(
        0.60,
        "of the HBM bandwidth",
        "reading weights, keys and values for a token, with launches: 60% on 2 H100 at batch 1, Databricks, LLM "
        "Inference Performance Engineering (2023); it falls as the batch grows",
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
        "copies to and from unpinned host memory are 4 to 5 times slower with 8 GPUs: microsoft/DeepSpeed pull "
        "request 5301",
    )
    fixed_seconds: float = _assumed(
        4.0,
        "s",
        "changes of phase, Ray calls, data, rewards: 3.9 s in a log of NeMo-RL v0.5 for a 1B model (Google Cloud's "
        "guide for NeMo-RL on G4)",
    )

    other_sources: tuple[tuple[str, str], ...] = ()
    """(name, source) of values that are not the defaults."""

    @staticmethod
    def names() -> list[str]:
        """Names of all values."""
        return [item.name for item in fields(TimeAssumptions) if item.metadata]

    def listed(self) -> Iterator[Assumption]:
        """All of them with unit and source."""
        other = dict(self.other_sources)
        for item in fields(self):
            if item.metadata:
                source = other.get(item.name, item.metadata["source"])
                yield Assumption(item.name, getattr(self, item.name), item.metadata["unit"], source)

    def scaled(self, name: str, factor: float) -> TimeAssumptions:
        """The same with one value multiplied."""
        changed: dict[str, Any] = {name: getattr(self, name) * factor}
        return replace(self, **changed)


def assumptions_for(gpu: str) -> TimeAssumptions:
    """The assumptions for a GPU of that name.

    An A100 computes less and so reaches a larger share of its peak; of Blackwell no such measurement is known here,
    and what Hopper reaches is taken.
    """
    hopper = TimeAssumptions()
    if gpu.startswith("a100"):
        return replace(
            hopper,
            layer_efficiency=0.74,
            small_layer_efficiency=0.61,
            other_sources=(
                (
                    "layer_efficiency",
                    _LAYERS.format(gpu="A100-80GB", rows=_LARGE.format(span="0.65 to 0.79")),
                ),
                (
                    "small_layer_efficiency",
                    _LAYERS.format(gpu="A100-80GB", rows=_SMALL.format(span="0.59 to 0.64")),
                ),
            ),
        )
    if gpu.startswith(("h100", "h200")):
        return hopper
    named = ("layer_efficiency", "small_layer_efficiency", "decode_bandwidth")
    return replace(
        hopper,
        other_sources=tuple(
            (one.name, f"measured on Hopper, unknown for this GPU: {one.source}")
            for one in hopper.listed()
            if one.name in named
        ),
    )
