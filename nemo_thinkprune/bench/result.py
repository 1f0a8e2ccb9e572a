"""What a benchmark found, as one JSON file: the work, the conditions, the machine, every step, and their summary.

The summary follows from the steps (bench/summary.py), and a file whose summary does not is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.bench.spread import Spread
from nemo_thinkprune.bench.strict import decode, parse, to_text
from nemo_thinkprune.recipe.errors import UserError

SCHEMA = 1
RESULT_FILE = "bench.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model's shape; `parameters` counts a tied embedding once."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step has to do: two benchmarks can be compared when this is the same.

    Attributes:
        model: Its shape.
        prompts: Prompts in a step.
        samples: Responses to each.
        limit: Longest response in tokens.
        updates: Optimizer updates in a step.
        reference_logprobs: Whether the loss needs log-probs under the reference policy.
        fixed_length: Whether end tokens were not honoured, so that every response has `limit` tokens.
        problems: SHA-256 of the ids of the problems of the first step, which data and seed decide.
    """

    model: Model
    prompts: int
    samples: int
    limit: int
    updates: int
    reference_logprobs: bool
    fixed_length: bool
    problems: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the work was done: what a comparison is about.

    Attributes:
        engine: "local", or NeMo-RL and its version.
        device: "cpu" or "cuda".
        training_devices: Devices that train; a device is a rank: one GPU, or one process on a CPU.
        rollout_devices: Devices that generate; the same ones unless generation has its own.
        devices: All of them.
        threads: Threads of a rank on a CPU; None on a GPU.
        precision: Type of the weights.
        batches: How sequences become micro-batches.
        recompute: What the backward pass computes again to save memory.
        rows: Most responses that are generated at the same time.
    """

    engine: str
    device: str
    tensor_parallel: int
    pipeline_parallel: int
    context_parallel: int
    data_parallel: int
    sequence_parallel: bool
    training_devices: int
    rollout_devices: int
    devices: int
    threads: int | None
    precision: str
    batches: str
    recompute: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it ran; no host name and no path. `gpus`: the names of the devices, empty on a CPU."""

    system: str
    processor: str
    cores: int
    python: str
    packages: dict[str, str]
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most FLOP/s that one device can do at this precision, and where the number is from."""

    flops_per_s: float | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseUse:
    """One phase of one step.

    Attributes:
        seconds: Wall time on rank 0.
        cpu_seconds: Processor time of all ranks together, with the processes that they started.
        peak_bytes_max: Most memory held by any rank: allocated on a GPU, resident on a CPU.
        peak_bytes_min: Of the rank that held least at its own peak.
    """

    seconds: float
    cpu_seconds: float | None
    peak_bytes_max: int | None
    peak_bytes_min: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """One step: `phases` add up to `seconds`; `checkpoint` stands beside it.

    `lengths` is the SHA-256 of the prompt and response lengths of its sequences: steps that share it did the same
    work. `flops` are model FLOPs by phase, all devices together; `hardware_flops` count what is computed again too.
    """

    step: int
    seconds: float
    phases: dict[str, PhaseUse]
    checkpoint: PhaseUse | None
    sequences: int
    prompt_tokens: int
    response_tokens: int
    lengths: str
    flops: dict[str, int]
    hardware_flops: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSummary:
    """A phase over all steps; `share` of their seconds, None for what stands beside the step."""

    seconds: Spread
    share: float | None
    cpu_seconds: Spread | None
    peak_bytes_max: int | None
    peak_bytes_min: int | None
    mfu: Spread | None
    hfu: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second and device: `tokens` says which are counted, `seconds` over which time."""

    value: Spread
    tokens: str
    seconds: str
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All steps in one: medians with spread."""

    step: PhaseSummary
    phases: dict[str, PhaseSummary]
    checkpoint: PhaseSummary | None
    rates: dict[str, Rate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A benchmark.

    `errors` say why a number cannot be true; `notes` what a reader should know. `warmup`: steps before those.
    """

    schema: int
    made: str
    recipe: str
    recipe_sha256: str
    warmup: int
    work: StepWork
    conditions: Conditions
    machine: Machine
    peak: Peak
    steps: tuple[MeasuredStep, ...]
    summary: Summary
    errors: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The benchmark as JSON text."""
        return to_text(self)


def read_result(path: str | os.PathLike[str]) -> Result:
    """The benchmark in a file.

    Raises:
        UserError: There is none, or it is not as `thinkprune bench` wrote it; names the file and the place.
    """
    try:
        return result_from(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a {RESULT_FILE}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text: give a {RESULT_FILE} that thinkprune bench wrote") from None
    except UserError as error:
        raise UserError(f"{path} is not a benchmark as thinkprune bench writes it: {error}") from None


def result_from(text: str) -> Result:
    """The benchmark in a JSON text.

    Raises:
        UserError: as `read_result`.
    """
    from nemo_thinkprune.bench.summary import check_result

    data = parse(text)
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        raise UserError(f"it has schema {schema} and this program reads {SCHEMA}: measure again")
    result: Result = decode(Result, data)
    check_result(result)
    return result
