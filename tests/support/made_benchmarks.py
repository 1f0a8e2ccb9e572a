"""Benchmarks with numbers small enough to work out by hand, and a tiny recipe to measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_thinkprune.bench.phases import OTHER, REFERENCE, ROLLOUT, SCORING, UPDATE
from nemo_thinkprune.bench.result import (
    SCHEMA,
    Conditions,
    Machine,
    MeasuredStep,
    Model,
    Peak,
    PhaseUse,
    Result,
    StepWork,
)
from nemo_thinkprune.bench.summary import measurement_errors, summarise

MIB = 2**20
MODEL = Model(
    architecture="Qwen2ForCausalLM",
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn=96,
    vocab_size=61,
    tied=True,
    parameters=1234,
)
WORK: dict[str, Any] = {
    "model": MODEL,
    "prompts": 2,
    "samples": 2,
    "limit": 50,
    "updates": 1,
    "reference_logprobs": True,
    "fixed_length": True,
    "problems": "p" * 64,
}
CONDITIONS: dict[str, Any] = {
    "engine": "the local engine",
    "device": "cpu",
    "tensor_parallel": 2,
    "pipeline_parallel": 1,
    "context_parallel": 1,
    "data_parallel": 1,
    "sequence_parallel": False,
    "training_devices": 2,
    "rollout_devices": 2,
    "devices": 2,
    "threads": 1,
    "precision": "float32",
    "batches": "packed to 512 tokens",
    "recompute": "nothing",
    "rows": 4,
}
MACHINE: dict[str, Any] = {
    "system": "Linux x86_64",
    "processor": "A processor",
    "cores": 2,
    "python": "3.11.0",
    "packages": {"torch": "2.13.0", "megatron-core": "0.16.1"},
    "gpus": (),
}


def use(seconds: float, *, cpu: float | None = None, peak: int | None = 100 * MIB) -> PhaseUse:
    """A phase whose two ranks held `peak` and half of it."""
    half = None if peak is None else peak // 2
    return PhaseUse(
        seconds=seconds,
        cpu_seconds=2 * seconds if cpu is None else cpu,
        peak_bytes_max=peak,
        peak_bytes_min=half,
    )


def step(number: int, *, scale: float = 1.0, **values: Any) -> MeasuredStep:
    """Ten seconds: rollout 4, scoring 0.5, reference 1, update 4, other 0.5; 40 + 160 tokens in 4 sequences."""
    phases = values.pop(
        "phases",
        {
            ROLLOUT: use(4 * scale),
            SCORING: use(0.5 * scale),
            REFERENCE: use(scale),
            UPDATE: use(4 * scale, peak=300 * MIB),
            OTHER: use(0.5 * scale),
        },
    )
    fields: dict[str, Any] = {
        "step": number,
        "seconds": sum(one.seconds for one in phases.values()),
        "phases": phases,
        "checkpoint": use(2.0 * scale),
        "sequences": 4,
        "prompt_tokens": 40,
        "response_tokens": 160,
        "lengths": f"{number}" * 64,
        "flops": {ROLLOUT: 800, REFERENCE: 1000, UPDATE: 3200},
        "hardware_flops": {ROLLOUT: 800, REFERENCE: 1000, UPDATE: 4000},
    }
    return MeasuredStep(**{**fields, **values})


def result(
    steps: Sequence[MeasuredStep],
    *,
    peak: float | None = 1000.0,
    work: dict[str, Any] | None = None,
    conditions: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> Result:
    """A benchmark of these steps on two devices; the dicts replace fields."""
    how = Conditions(**{**CONDITIONS, **(conditions or {})})
    top = Peak(flops_per_s=peak, source="given by --peak-tflops")
    summary = summarise(steps, how, top)
    return Result(
        schema=SCHEMA,
        made="2030-01-02T03:04:05Z",
        recipe="tiny",
        recipe_sha256="r" * 64,
        warmup=1,
        work=StepWork(**{**WORK, **(work or {})}),
        conditions=how,
        machine=Machine(**{**MACHINE, **(machine or {})}),
        peak=top,
        steps=tuple(steps),
        summary=summary,
        errors=tuple(measurement_errors(summary)),
        notes=("a note",),
    )


def tiny_overrides(root: Path) -> list[str]:
    """Settings over recipes/quickstart.yaml: a random tiny model under `root`, 4 x 2 responses of 24 tokens."""
    from nemo_thinkprune.data.running_total import write_dataset
    from nemo_thinkprune.rounds.quickstart import make_model

    make_model(root / "model", seed=0)
    write_dataset(root / "data", seed=0, train=32, selection=8, report=8, sft_short=8, sft_redundant=8)
    return [
        f"policy.model_name={root / 'model'}",
        f"data.train=[{{data_path: {root / 'data' / 'train.jsonl'}}}]",
        "data.validation=null",
        "thinkprune.report_data=null",
        "thinkprune.limits=[24]",
        "grpo.num_prompts_per_step=4",
        "grpo.num_generations_per_prompt=2",
    ]
