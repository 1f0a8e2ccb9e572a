"""The memory plan of the local engine against the kernel's own count: real steps of random models, phase by phase.

    python benchmarks/memory_truth.py --out results/memory_truth [--only NAME ...] [--modes MODE ...] [--again]

Prints what stands in docs/performance.md as Markdown (also memory_truth.md of the folder), and on stderr how long each
run took.  Of each mode the folder gets the measurements (MODE.json) and a picture (MODE.svg).  Runs that MODE.json
already has are not repeated without --again, but compared with the plan as it is now.

as_it_comes: as users run it, compared with the whole plan.  given_back: glibc's allocator is told to give every block
of 128 KiB and more back at once (MALLOC_MMAP_THRESHOLD_) and not, as the engine tells it, to keep what is freed;
compared with the plan without the part that names what it keeps.

Each rank is a process of its own (benchmarks/memory_rank.py); the scoring pool is replaced, so that no other process
is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import memory_figure

from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.costs.parts import PhaseMemory
from nemo_thinkprune.costs.resident import BASE, KEPT, resident_phases
from nemo_thinkprune.data.tiny_model import build_tokenizer, model_config
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import load_recipe

MIB = 2**20
PHASES = ("load", "generate", "log-probs", "forward/backward", "optimizer", "save")
TIMEOUT_S = 900.0
AS_IT_COMES, GIVEN_BACK = "as_it_comes", "given_back"
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    AS_IT_COMES: {},
    GIVEN_BACK: {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)},
}
TITLES = {
    AS_IT_COMES: "As users run it, against the whole plan",
    GIVEN_BACK: f'Freed blocks given back at once, against the plan without its part "{KEPT}"',
}

RECIPE = """
grpo: {num_prompts_per_step: 4, num_generations_per_prompt: 2, seed: 0}
loss_fn: {reference_policy_kl_penalty: 0.001}
policy:
  model_name: model
  precision: float32
  generation_batch_size: 8
  megatron_cfg: {optimizer: {lr: 1.0e-6}}
data: {train: {data_path: none.jsonl}, max_input_seq_length: 240}
thinkprune:
  limits: [16]
  prompt_family: plain
  length_hint: false
  scoring: {workers: 1}
  runtime: {device: cpu, threads_per_rank: 1}
"""
MEGATRON = "policy.megatron_cfg"
TP2, PP2 = f"{MEGATRON}.tensor_model_parallel_size=2", f"{MEGATRON}.pipeline_model_parallel_size=2"
SP, BF16 = f"{MEGATRON}.sequence_parallel=true", "policy.precision=bfloat16"
RECOMPUTE = f"{MEGATRON}.activation_checkpointing=true"
ONE_ROW = ("policy.sequence_packing.train_mb_tokens=2048", "policy.sequence_packing.logprob_mb_tokens=2048")


def _shape(hidden: int, layers: int, ffn: int, *, vocabulary: int = 62) -> dict[str, int]:
    heads = hidden // 64
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(2, heads // 4),
        "head_dim": 64,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
    }


SMALL, MIDDLE = _shape(512, 8, 1408), _shape(1024, 8, 2816)
LARGE, LARGEST = _shape(1536, 8, 4096), _shape(2048, 8, 5632)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One run: a model's shape, ranks and overrides of the recipe."""

    name: str
    shape: Mapping[str, int]
    ranks: int = 1
    overrides: tuple[str, ...] = field(default=())

    @property
    def config(self) -> ModelConfig:
        """The model."""
        untied = {"tie_word_embeddings": False, "max_position_embeddings": 8192}
        return config_from_dict({**model_config(), **untied, **self.shape})


CASES = (
    Case("20M fp32", SMALL),
    Case("20M fp32 vocabulary 32768", _shape(512, 8, 1408, vocabulary=32768)),
    Case("90M fp32", MIDDLE),
    Case("90M bf16", MIDDLE, 1, (BF16,)),
    Case("20M fp32 long rows", SMALL, 1, ONE_ROW),
    Case("20M fp32 long rows recomputed", SMALL, 1, (*ONE_ROW, RECOMPUTE)),
    Case("90M fp32 long rows", MIDDLE, 1, ONE_ROW),
    Case("90M fp32 TP2 SP", MIDDLE, 2, (TP2, SP)),
    Case("90M bf16 TP2", MIDDLE, 2, (TP2, BF16)),
    Case("90M fp32 PP2", MIDDLE, 2, (PP2,)),
    Case("90M fp32 DP2", MIDDLE, 2),
    Case("90M bf16 DP2", MIDDLE, 2, (BF16,)),
    Case("20M fp32 TP2 PP2 SP", SMALL, 4, (TP2, PP2, SP)),
    Case("200M bf16", LARGE, 1, (BF16,)),
    Case("360M fp32", LARGEST, 1, ("grpo.num_prompts_per_step=2",)),
)


Ranks = Sequence[Mapping[str, Mapping[str, int]]]
"""What the ranks of a run said: of each phase, kernel counters in bytes."""


def main() -> None:
    """Run what is asked for, compare, write."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    text: list[str] = []
    for mode in args.modes:
        results = _results(args.out / f"{mode}.json", mode, only=args.only, again=args.again)
        found = {
            case: list(comparisons(case, results[case.name], mode)) for case in CASES if case.name in results
        }
        if found:
            points = [one for of_case in found.values() for one in of_case]
            write_atomic(args.out / f"{mode}.svg", memory_figure.picture(points))
            text += [*markdown(TITLES[mode], found), ""]
    write_atomic(args.out / "memory_truth.md", "\n".join(text))
    print("\n".join(text), end="")


def _results(file: Path, mode: str, *, only: Sequence[str] | None, again: bool) -> dict[str, Any]:
    """What `file` has, after the runs that are missing or wanted again; it is written after each."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for case in CASES:
        if (only and case.name not in only) or (case.name in results and not again):
            continue
        began = time.monotonic()
        results[case.name] = measured(case, ENVIRONMENT[mode])
        write_atomic(file, json.dumps(results, indent=1) + "\n")
        print(f"{mode}: {case.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--modes", nargs="+", choices=list(ENVIRONMENT), default=list(ENVIRONMENT))
    parser.add_argument("--again", action="store_true")
    return parser.parse_args()


def measured(case: Case, allocator: Mapping[str, str]) -> list[dict[str, dict[str, int]]]:
    """Run a case in a folder of its own, with these settings of the allocator; what each rank said.

    Raises:
        RuntimeError: A rank failed; the message ends with what it said.
    """
    folder = Path(tempfile.mkdtemp(prefix="memory_truth_"))
    try:
        random_hf_init(case.config, folder / "model", 0)
        build_tokenizer(folder / "model")
        (folder / "recipe.yaml").write_text(RECIPE)
        _run(case, folder, allocator)
        return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(case.ranks)]
    finally:
        shutil.rmtree(folder)


def _run(case: Case, folder: Path, allocator: Mapping[str, str]) -> None:
    program = Path(__file__).with_name("memory_rank.py")
    environment = {
        **os.environ, **allocator, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0",
    }  # fmt: skip
    processes = []
    for rank in range(case.ranks):
        log = open(folder / f"rank_{rank}.log", "wb")  # noqa: SIM115
        command = [sys.executable, "-W", "ignore", str(program), str(folder), str(rank), str(case.ranks)]
        processes.append(
            subprocess.Popen([*command, *_overrides(case)], env=environment, stdout=log, stderr=log)
        )
        log.close()
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        if code:
            said = (folder / f"rank_{rank}.log").read_text()[-2000:]
            raise RuntimeError(f"{case.name}: rank {rank} ended with {code}:\n{said}")


def _overrides(case: Case) -> list[str]:
    return [f"cluster.gpus_per_node={case.ranks}", *case.overrides]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A phase of a rank: planned and measured bytes, and those of both that interpreter and libraries take."""

    case: str
    rank: int
    phase: str
    planned: int
    measured: int
    base: int

    @property
    def ratio(self) -> float:
        """Plan / measurement."""
        return self.planned / self.measured

    @property
    def of_model(self) -> float:
        """The same of what the model and its work take: without `base`."""
        return (self.planned - self.base) / (self.measured - self.base)


def comparisons(case: Case, ranks: Ranks, mode: str) -> Iterator[Comparison]:
    """Every phase of every rank; ranks are counted tensor parallel first, then data, then stages."""
    plan = planned(case)
    for number, said in enumerate(ranks):
        stage = number * len({one.stage for one in plan}) // case.ranks
        for one in plan:
            if one.stage == stage:
                parts = {p.name: p.bytes for p in one.parts if mode == AS_IT_COMES or p.name != KEPT}
                measured_bytes = said[one.phase]["VmHWM"]
                yield Comparison(
                    case.name, number, one.phase, sum(parts.values()), measured_bytes, parts[BASE]
                )


def planned(case: Case) -> list[PhaseMemory]:
    """The plan of a case as it is now."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "recipe.yaml"
        file.write_text(RECIPE)
        return list(resident_phases(load_recipe(file, _overrides(case)), case.config))


def markdown(title: str, found: Mapping[Case, Sequence[Comparison]]) -> Iterator[str]:
    """Headline and table of a mode; a row a run, of several ranks the one that is furthest off."""
    points = [one for of_case in found.values() for one in of_case]
    yield f"**{title}.** {headline([one.ratio for one in points])}."
    yield f"Without interpreter and libraries, in brackets: {headline([one.of_model for one in points])}."
    yield ""
    head = ("run", "ranks", "most, MiB", *PHASES)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for case, of_case in found.items():
        most = max(one.measured for one in of_case) / MIB
        cells = (_cell([one for one in of_case if one.phase == phase]) for phase in PHASES)
        yield f"| {case.name} | {case.ranks} | {most:,.0f} | {' | '.join(cells)} |"


def headline(ratios: Sequence[float]) -> str:
    """How far plan / measured is off, over all phases of all ranks."""
    near = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    return f"{near} of {len(ratios)} phases of ranks within 10%, plan / measured {min(ratios):.3f} to {max(ratios):.3f}"


def _cell(ranks: Sequence[Comparison]) -> str:
    furthest = max(ranks, key=lambda one: abs(one.ratio - 1))
    return f"{furthest.ratio:.3f} ({furthest.of_model:.3f})"


if __name__ == "__main__":
    main()
