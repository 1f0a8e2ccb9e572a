"""The memory plan of the local engine against the kernel's own count: real steps of random models, phase by phase.

    python benchmarks/memory_truth.py --out results/memory_truth [--only NAME ...] [--again] [--as-it-comes]

Writes results.json, table.txt and memory_truth.svg into the folder.  Runs that results.json already has are not
repeated without --again, but compared with the plan as it is now.

How much of what was freed glibc's allocator keeps depends on the order of all that was allocated: it is told to give
every block of 128 KiB and more back at once (MALLOC_MMAP_THRESHOLD_), and is compared with the plan without the part
that names it.  With --as-it-comes it is left alone, as users run it, and compared with the whole plan.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import memory_figure

from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.costs.parts import PhaseMemory
from nemo_thinkprune.costs.resident import KEPT, resident_phases
from nemo_thinkprune.costs.shards import model_parameters
from nemo_thinkprune.data.tiny_model import build_tokenizer, model_config
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.reporting.table import render

MIB = 2**20
PHASES = ("load", "generate", "log-probs", "forward/backward", "optimizer", "save")
TIMEOUT_S = 900.0
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}

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


@dataclass(frozen=True, slots=True)
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


def main() -> None:
    """Run what is asked for, compare, write."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.as_it_comes
    file = args.out / ("results_as_it_comes.json" if kept else "results.json")
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for case in CASES:
        if (args.only and case.name not in args.only) or (case.name in results and not args.again):
            continue
        results[case.name] = measured(case, given_back=not args.as_it_comes)
        write_atomic(file, json.dumps(results, indent=1) + "\n")
        print(render(HEAD, list(rows(case, results[case.name], kept=kept))), flush=True)
    known = [case for case in CASES if case.name in results]
    table = [row for case in known for row in rows(case, results[case.name], kept=kept)]
    text = "\n".join([render(HEAD, table), "", *summary(known, results, kept=kept)])
    write_atomic(file.with_suffix(".txt"), text + "\n")
    points = [point for case in known for point in comparisons(case, results[case.name], kept=kept)]
    write_atomic(file.with_suffix(".svg"), memory_figure.picture(points))
    print("\n".join(summary(known, results, kept=kept)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--as-it-comes", action="store_true")
    return parser.parse_args()


def measured(case: Case, *, given_back: bool) -> list[dict[str, dict[str, int]]]:
    """Run a case in a folder of its own; what each rank said.

    Raises:
        RuntimeError: A rank failed; the message ends with what it said.
    """
    folder = Path(tempfile.mkdtemp(prefix="memory_truth_"))
    try:
        random_hf_init(case.config, folder / "model", 0)
        build_tokenizer(folder / "model")
        (folder / "recipe.yaml").write_text(RECIPE)
        _run(case, folder, GIVEN_BACK if given_back else {})
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
    """A phase of a rank: planned and measured bytes."""

    case: str
    rank: int
    phase: str
    planned: int
    measured: int

    @property
    def ratio(self) -> float:
        """Plan / measurement."""
        return self.planned / self.measured


def comparisons(
    case: Case, ranks: Sequence[Mapping[str, Mapping[str, int]]], *, kept: bool
) -> Iterator[Comparison]:
    """Every phase of every rank; ranks are counted tensor parallel first, then data, then stages.

    `kept`: the plan with what the allocator keeps.
    """
    plan = planned(case)
    for number, said in enumerate(ranks):
        stage = number * len({one.stage for one in plan}) // case.ranks
        for one in plan:
            if one.stage == stage:
                size = sum(part.bytes for part in one.parts if kept or part.name != KEPT)
                yield Comparison(case.name, number, one.phase, size, said[one.phase]["VmHWM"])


def planned(case: Case) -> list[PhaseMemory]:
    """The plan of a case as it is now."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "recipe.yaml"
        file.write_text(RECIPE)
        return list(resident_phases(load_recipe(file, _overrides(case)), case.config))


HEAD = ("run and rank", "M parameters", *(f"{phase}" for phase in PHASES))


def rows(
    case: Case, ranks: Sequence[Mapping[str, Mapping[str, int]]], *, kept: bool
) -> Iterator[tuple[str, ...]]:
    """A row a rank; a cell is plan / measured in MiB and their ratio."""
    found = list(comparisons(case, ranks, kept=kept))
    count = f"{model_parameters(case.config) / 1e6:.0f}"
    for rank in range(case.ranks):
        of_rank = {one.phase: one for one in found if one.rank == rank}
        cells = (
            f"{of_rank[p].planned / MIB:.0f} / {of_rank[p].measured / MIB:.0f} = {of_rank[p].ratio:.3f}"
            for p in PHASES
        )
        yield (f"{case.name}, {rank}", count, *cells)


def summary(cases: Sequence[Case], results: Mapping[str, Any], *, kept: bool) -> Iterator[str]:
    """How far the plan is off, by phase and over all."""
    found = [one for case in cases for one in comparisons(case, results[case.name], kept=kept)]
    for phase in PHASES:
        ratios = [one.ratio for one in found if one.phase == phase]
        if ratios:
            yield f"{phase:<18} plan / measured {min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} ranks"
    off = [one for one in found if abs(one.ratio - 1) > 0.1]
    yield f"{len(found) - len(off)} of {len(found)} within 10%"
    for one in off:
        yield f"  not: {one.case}, rank {one.rank}, {one.phase}: {one.ratio:.3f}"


if __name__ == "__main__":
    main()
