"""The predicted step of NeMo-RL's published rows beside what was published: errors, phases, sensitivity.

    python benchmarks/published_step.py [--row 0] [--phases]

Rows: docs/about/performance-summary.md of NeMo-RL v0.5 (GRPO on OpenMathInstruct-2, Megatron-Core, bf16, mean of five
steps), all of its dense models. Settings that the page does not give are those of the recipes at tag v0.5.0
(examples/configs/recipes/llm/performance and what they inherit from grpo_math_1B.yaml): 64 prompts x 32 responses in
four updates of 512, KL weight 0.01 and so a reference pass, an old-log-probability pass, packed rows.

Of a row the prediction is given its average response; the prompt is what makes tokens/s/GPU x seconds x GPUs / 2048
come out. Nothing is fitted: the assumptions are those of every plan. The page has no times of single phases.

Runs anywhere, without a GPU.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig, RopeScaling
from nemo_thinkprune.costs.flops import Work
from nemo_thinkprune.costs.gpus import GPUS, MIB, Gpu
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.lengths import cut_lengths
from nemo_thinkprune.costs.step_time import step_time
from nemo_thinkprune.costs.time_assumptions import TimeAssumptions, assumptions_for
from nemo_thinkprune.costs.train_time import Machine
from nemo_thinkprune.plan.time_table import TimePlan, step_of, time_lines, time_rows
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.schema import Recipe

ROLLOUTS, GROUP = 2048, 32
LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B"
LLAMA_CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab_size=128256,
    tied=False,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    rms_norm_eps=1e-5,
    qkv_bias=False,
    qk_norm=False,
    max_position_embeddings=131072,
    initializer_range=0.02,
    dtype="bfloat16",
)
GB200 = Gpu(
    name="gb200-192g",
    memory_bytes=188_700 * MIB,
    bf16_flops=2500e12,
    memory_bandwidth=8e12,
    link_bandwidth=900e9,
    network_bandwidth=900e9,
    host_bandwidth=450e9,
    source="NVIDIA GB200 NVL72 data sheet, per GPU of 72 (5 PFLOP/s with sparsity, 576 TB/s, NVLink 130 TB/s both "
    "ways, 186 GB); every GPU of the rack is an NVLink neighbour; to the host NVLink-C2C, 900 GB/s both ways; memory "
    "that a program sees: assumed",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A published row; `aside` of its GPUs only generate (1-step off policy), 0: generation shares all."""

    model: str
    gpu: Gpu
    gpus: int
    aside: int
    per_node: int
    tp: int
    pp: int
    engine_tp: int
    response: int
    tokens_per_gpu_second: float
    seconds: float

    @property
    def name(self) -> str:
        """As the tables print it."""
        mode = "1-off" if self.aside else "on-policy"
        return f"{self.model.rpartition('/')[2][:12]} {self.gpu.name} x{self.gpus} {mode}"

    @property
    def prompt(self) -> int:
        """Prompt tokens that the published throughput implies."""
        return round(self.tokens_per_gpu_second * self.gpus * self.seconds / ROLLOUTS) - self.response


_H100 = GPUS["h100-80g"]
ROWS = (
    Row(QWEN, _H100, 32, 0, 8, 4, 4, 4, 3251, 571, 376),
    Row(QWEN, _H100, 64, 32, 8, 4, 4, 4, 3252, 538, 200),
    Row(LLAMA, _H100, 16, 0, 8, 1, 2, 1, 1019, 1581, 92.8),
    Row(LLAMA, _H100, 16, 8, 8, 1, 1, 1, 1123, 2478, 64.8),
    Row(QWEN, GB200, 16, 0, 4, 2, 1, 1, 3253, 1127, 381),
    Row(QWEN, GB200, 32, 16, 4, 2, 1, 1, 3258, 1025, 210),
    Row(LLAMA, GB200, 8, 0, 4, 1, 1, 1, 1066, 3359, 91.0),
    Row(LLAMA, GB200, 8, 4, 4, 1, 1, 1, 1107, 4463, 71.1),
)


def recipe_of(row: Row, *more: str) -> Recipe:
    """The row's recipe in this project's keys."""
    nodes = row.gpus // row.per_node
    settings = [
        f"policy.model_name={row.model}",
        "grpo.num_prompts_per_step=64",
        "grpo.num_generations_per_prompt=32",
        "policy.train_global_batch_size=512",
        "loss_fn.reference_policy_kl_penalty=0.01",
        "policy.max_total_sequence_length=4096",
        "policy.generation.max_new_tokens=4096",
        "policy.train_micro_batch_size=1",
        f"policy.logprob_batch_size={2 if row.model == LLAMA else 4}",
        "policy.logprob_chunk_size=null",
        f"policy.make_sequence_length_divisible_by={row.tp}",
        f"policy.megatron_cfg.activation_checkpointing={str(row.model == LLAMA).lower()}",
        f"policy.megatron_cfg.tensor_model_parallel_size={row.tp}",
        f"policy.megatron_cfg.pipeline_model_parallel_size={row.pp}",
        f"policy.megatron_cfg.sequence_parallel={str(row.tp > 1).lower()}",
        f"policy.generation.vllm_cfg.tensor_parallel_size={row.engine_tp}",
        f"cluster.num_nodes={nodes}",
        f"cluster.gpus_per_node={row.per_node}",
    ]
    if row.aside:
        settings += [
            "policy.generation.colocated.enabled=false",
            f"policy.generation.colocated.resources.num_nodes={row.aside // row.per_node}",
            f"policy.generation.colocated.resources.gpus_per_node={row.per_node}",
            "policy.generation.vllm_cfg.gpu_memory_utilization=0.8",
        ]
    return load_recipe("qwq-32b-4k-4n8g", [*settings, *more])


def predict(
    row: Row, *more: str, assumed: TimeAssumptions | None = None, response: float | None = None
) -> TimePlan:
    """The predicted step of a row, with further settings or other assumptions."""
    model = LLAMA_CONFIG if row.model == LLAMA else known_models()[row.model]
    return time_rows(
        recipe_of(row, *more),
        model,
        row.gpu,
        response_tokens=response or row.response,
        prompt_tokens=row.prompt,
        assumed=assumed,
    )


def compared() -> Iterator[str]:
    """Predicted and published seconds and tokens/s/GPU of every row, with the error."""
    yield f"{'row':<40} {'predicted':>10} {'published':>10} {'error':>7} {'tok/s/GPU':>10} {'published':>10}  phases"
    for row in ROWS:
        plan = predict(row)
        if plan.step is None:
            yield f"{row.name:<40} {plan.problem}"
            continue
        step = plan.step
        phases = ", ".join(f"{p.name} {p.seconds:.0f}" for p in step.phases if p.seconds >= 0.5)
        yield (
            f"{row.name:<40} {step.seconds:8.1f} s {row.seconds:8.1f} s {step.seconds / row.seconds - 1:+7.0%} "
            f"{step.tokens_per_gpu_second:10.0f} {row.tokens_per_gpu_second:10.0f}  {phases}"
        )


def seconds(plan: TimePlan) -> float:
    """Seconds of a predicted step; not a number when there is none."""
    return plan.step.seconds if plan.step else float("nan")


def sensitivity(row: Row) -> Iterator[str]:
    """What each assumption, 20% lower and higher, does to the row's seconds."""
    base, usual = seconds(predict(row)), assumptions_for(row.gpu.name)
    yield f"{row.name}: {base:.1f} s predicted, {row.seconds:.1f} s published; each assumption x 0.8 and x 1.2"
    lines = []
    for name in TimeAssumptions.names():
        low, high = (seconds(predict(row, assumed=usual.scaled(name, f))) for f in (0.8, 1.2))
        lines.append((name, low, high))
    low, high = (seconds(predict(row, response=f * row.response)) for f in (0.8, 1.2))
    lines.append(("mean response", low, high))
    for name, low, high in sorted(lines, key=lambda line: -abs(line[2] - line[1])):
        yield f"  {name:<26} {low:8.1f} s ({low / base - 1:+5.0%})  {high:8.1f} s ({high / base - 1:+5.0%})"
    newer = predict(row, "policy.train_global_batch_size=2048", "loss_fn.force_on_policy_ratio=true")
    yield f"  the same as NeMo-RL v0.7.0's recipe (one update of 2048, no old pass): {seconds(newer):.1f} s"


def unequal_engines(row: Row, shuffles: int = 20) -> str:
    """Generation if all responses to a prompt had nearly the same length: engines then get unequal shares."""
    base = predict(row)
    recipe, model = recipe_of(row), LLAMA_CONFIG if row.model == LLAMA else known_models()[row.model]
    machine = Machine(gpu=row.gpu, gpus_per_node=row.per_node, assumed=assumptions_for(row.gpu.name))
    ordered = sorted(cut_lengths(ROLLOUTS, mean=row.response, limit=4096 - row.prompt))
    found = []
    for seed in range(shuffles):
        draw = random.Random(seed)
        groups = [draw.sample(ordered[i : i + GROUP], GROUP) for i in range(0, ROLLOUTS, GROUP)]
        draw.shuffle(groups)
        work = Work(
            prompts=[row.prompt] * ROLLOUTS, responses=[n for g in groups for n in g], group_size=GROUP
        )
        found.append(step_time(machine, step_of(recipe, model, row.gpu, work=work)).phase("generate"))
    fair = base.step.phase("generate") if base.step else float("nan")
    span = f"{min(found):.0f} to {max(found):.0f} s"
    return f"  generate: {fair:.0f} s with fair shares, {span} if all responses to a prompt were alike"


def main() -> None:
    """Prints the table of rows, and the sensitivity of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", type=int, default=0, help="row of the sensitivity table")
    parser.add_argument("--phases", action="store_true", help="print that row's phases and assumptions too")
    chosen = parser.parse_args()
    row = ROWS[chosen.row]
    print("\n".join(compared()), end="\n\n")
    print("\n".join(sensitivity(row)))
    print(unequal_engines(row))
    if chosen.phases:
        print("", *time_lines(predict(row)), sep="\n")


if __name__ == "__main__":
    main()
