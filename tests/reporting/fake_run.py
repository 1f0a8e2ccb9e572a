"""Write the files of a run as an engine would, with numbers shaped like those of the running-total task."""

import json
import math
import random
from pathlib import Path

from nemo_thinkprune.evaluation import stats

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
CONFIG = """\
grpo: {num_prompts_per_step: 32, num_generations_per_prompt: 8, max_num_steps: 10, seed: 0}
policy: {model_name: tiny, megatron_cfg: {optimizer: {lr: 0.0001}, tensor_model_parallel_size: 1}}
loss_fn: {reference_policy_kl_penalty: 0.001, ratio_clip_min: 0.2}
thinkprune:
  limits: [128, 96, 64]
  long_limit: 240
  selection: {max_relative_drop: 0.1}
  control: {enabled: true}
cluster: {gpus_per_node: 1, num_nodes: 1}
"""


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_jsonl(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sample_rows(*, checks: float, skill: float, limit: int, problems=60, samples=4, seed=0, hostile=False):
    """Rows of one evaluation; ``checks`` is the chance that a step is checked once more."""
    rng = random.Random(seed)
    rows = []
    for p in range(problems):
        puzzle = random.Random(p)
        value, operands = 10, [puzzle.choice([-4, -3, -2, -1, 1, 2, 3, 4]) for _ in range(3 + p % 4)]
        for s in range(samples):
            words, total = ["<think>"], value
            for letter, operand in zip("abcdef", operands, strict=False):
                step = f"{letter} {operand:+d} : {total} {operand:+d} = {total + operand} ;".split()
                words += step
                while rng.random() < checks:
                    words += ["wait", ",", "check", *step]
                total += operand
            right = rng.random() < skill
            words += ["</think>", "\\boxed{", str(total if right else total + 1), "}"]
            cut = len(words) + 1 > limit
            text = " ".join(words[:limit])
            prompt = "start 10 ; " + " ; ".join(
                f"{a} {o:+d}" for a, o in zip("abcdef", operands, strict=False)
            )
            rows.append(
                {
                    "problem_id": f"p{p}",
                    "sample": s,
                    "prompt": prompt + " ; result ?" + (HOSTILE if hostile else ""),
                    "response": text + (HOSTILE if hostile else ""),
                    "response_tokens": min(limit, len(words) + 1),
                    "stop_reason": "limit" if cut else "eos",
                    "reward": float(right and not cut),
                    "reason": "truncated" if cut else "correct" if right else "wrong",
                    "answer": None if cut else str(total if right else total + 1),
                    "gold": str(total),
                }
            )
    return rows


def write_eval(folder: Path, name: str, rows, *, limit=240, limits=(128, 96, 64)) -> None:
    samples = max(row["sample"] for row in rows) + 1
    summary = stats.summarise(
        rows,
        limits=limits,
        model="tiny",
        data="report.jsonl",
        limit=limit,
        samples=samples,
        temperature=1.0,
        top_p=1.0,
    )
    write_jsonl(folder / "eval" / f"{name}.jsonl", rows)
    write_json(folder / "eval" / f"{name}.json", summary)


def metric_rows(steps, *, begin: float, end: float, cut: float, seed=0, offset=0):
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        mean = end + (begin - end) * math.exp(-3 * step / steps) + rng.gauss(0, 1.2)
        yield {
            "step": step,
            "reward_mean": min(1.0, 0.97 - cut * math.exp(-3 * step / steps) + rng.gauss(0, 0.01)),
            "accuracy": 0.95,
            "response_tokens_mean": mean,
            "response_tokens_p50": mean * 0.9,
            "response_tokens_p90": mean * 1.5,
            "response_tokens_p99": mean * 2,
            "truncated_share": max(0.0, cut * math.exp(-3 * step / steps) + rng.gauss(0, 0.01)),
            "mixed_group_share": 0.3 + cut * math.exp(-2 * step / steps),
            "kl": 0.02 * step / steps * (1 + rng.random() / 5),
            "loss": rng.gauss(0, 0.01),
            "grad_norm": 0.8 + rng.random() / 2,
            "entropy": 0.3 - 0.05 * step / steps,
            "lr": 1e-4,
            "timing": {"step_s": 1.5, "tokens_per_s": 21000 + rng.random() * 4000, "peak_memory_mb": 700},
        }


def validation_row(step, *, accuracy, tokens, within=0.8, cut=0.02, limit=240):
    measured = {
        "accuracy": accuracy,
        "mean_tokens": tokens,
        "limit": limit,
        "share_cut": cut,
        "accuracy_at_limit": within,
    }
    return {"step": step, "validation": measured}


def write_train(folder: Path, *, steps=10, begin=98.0, end=68.0, cut=0.3, seed=0) -> None:
    rows = [validation_row(0, accuracy=0.95, tokens=begin)]
    for row in metric_rows(steps, begin=begin, end=end, cut=cut, seed=seed):
        rows.append(row)
        if row["step"] % 5 == 0:
            rows.append(validation_row(row["step"], accuracy=0.96, tokens=row["response_tokens_mean"]))
    write_jsonl(folder / "metrics.jsonl", rows)


def write_decision(folder: Path, *, number, limit, begin, end) -> None:
    write_json(
        folder / "decision.json",
        {
            "round": number,
            "limit": limit,
            "baseline": {
                "step": 0,
                "accuracy": 0.953,
                "mean_tokens": begin,
                "share_cut": 0.01,
                "accuracy_at_limit": 0.71,
            },
            "candidates": [
                {
                    "step": 5,
                    "accuracy": 0.961,
                    "mean_tokens": (begin + end) / 2,
                    "share_cut": 0.0,
                    "accuracy_at_limit": 0.82,
                    "relative_drop": -0.008,
                    "qualifies": True,
                },
                {
                    "step": 10,
                    "accuracy": 0.968,
                    "mean_tokens": end,
                    "share_cut": 0.0,
                    "accuracy_at_limit": 0.91,
                    "relative_drop": -0.016,
                    "qualifies": True,
                },
            ],
            "selected_step": 10,
            "kept_start": False,
            "weights": f"{folder.name}/checkpoints/step_10/policy/weights/iter_0000000",
            "reason": "2 of 2 checkpoints kept accuracy; step 10 is the shortest.",
        },
    )


def write_prune(root: Path, *, hostile=False, problems=60) -> Path:
    """A finished prune run with a warm-up and a control."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_json(
        root / "environment.json",
        {
            "python": "3.11.9",
            "system": "Linux x86_64",
            "processor": "a CPU",
            "cores": 2,
            "packages": {"torch": "2.13.0"},
        },
    )
    losses = [{"step": s, "loss": 2.5 * math.exp(-s / 90) + 0.2} for s in range(1, 701)]
    write_jsonl(root / "warmup" / "metrics.jsonl", [*losses, validation_row(700, accuracy=0.96, tokens=98.0)])
    lengths = {128: (98.0, 68.0), 96: (68.0, 55.0), 64: (55.0, 48.0)}
    write_eval(
        root, "start", sample_rows(checks=0.53, skill=0.965, limit=240, problems=problems, hostile=hostile)
    )
    for number, (limit, (begin, end)) in enumerate(lengths.items(), start=1):
        folder = root / f"round_{number}_L{limit}"
        write_train(folder, begin=begin, end=end, cut=0.25 - 0.05 * number, seed=number)
        write_decision(folder, number=number, limit=limit, begin=begin, end=end)
        checks = {128: 0.32, 96: 0.17, 64: 0.06}[limit]
        rows = sample_rows(
            checks=checks, skill=0.985, limit=240, problems=problems, seed=number, hostile=hostile
        )
        write_eval(root, folder.name, rows)
    write_train(root / "control", steps=30, begin=98, end=72, cut=0.02, seed=9)
    write_eval(root, "control", sample_rows(checks=0.38, skill=0.982, limit=240, problems=problems, seed=9))
    return root


if __name__ == "__main__":
    import sys

    from nemo_thinkprune.reporting.report import write_report

    write_report(write_prune(Path(sys.argv[1]), problems=128))
