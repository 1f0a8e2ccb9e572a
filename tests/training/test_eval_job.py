"""Real eval jobs on what training left: layouts agree, numbers follow from the rows; the commands that lead there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.models import write_bpe_model
from support.tiny_runs import WEIGHTS, train_job

from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.supervisor import run_job

LIMIT, SAMPLES, PROBLEMS = 46, 4, 24
WITHIN = (20, 38, LIMIT)
TP2 = {"cluster.gpus_per_node": 2, "policy.megatron_cfg.tensor_model_parallel_size": 2}


@pytest.fixture(scope="module")
def step_1(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one step."""
    run_dir = tmp_path_factory.mktemp("trained")
    run_job(
        train_job(tiny_run, run_dir, grpo__max_num_steps=1, grpo__val_at_start=False, grpo__val_at_end=False)
    )
    return run_dir / "checkpoints" / "step_1"


@pytest.fixture(scope="module")
def problems(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "some.jsonl"
    lines = Path(tiny_run.data.validation[0].data_path).read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:PROBLEMS]))
    return path


def measure(recipe: Any, problems: Path, out: Path, weights: Path | None = None, **values: Any) -> Path:
    spec = EvalSpec(
        data_path=str(problems),
        limit=LIMIT,
        samples=SAMPLES,
        temperature=0.8,
        top_p=0.95,
        top_k=None,
        out=out,
        limits=WITHIN,
    )
    recipe = with_values(recipe, values)
    folder = recipe.policy.model_name
    run_job(
        Job(
            kind="eval", run_dir=out.with_suffix(""), recipe=recipe, model=folder, init_weights=weights,
            limit=LIMIT, eval=spec,
        )
    )  # fmt: skip
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=["step_1", "hugging_face_folder"])
def measured(
    request: pytest.FixtureRequest, tiny_run: Any, problems: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path | None, Path]:
    """The weights that replace the folder's, and the summary of an evaluation by one rank."""
    weights = request.getfixturevalue("step_1") / WEIGHTS if request.param == "step_1" else None
    return weights, measure(tiny_run, problems, tmp_path_factory.mktemp("eval") / "tp1.json", weights)


def test_two_ranks_in_other_batches_write_the_bytes_of_one(
    measured: Any, tiny_run: Any, problems: Path, tmp_path: Path
) -> None:
    """The random streams follow from seed, problem and sample alone."""
    weights, one = measured
    two = measure(
        tiny_run, problems, tmp_path / "tp2.json", weights, **TP2, **{"policy.generation_batch_size": 7}
    )
    assert two.with_suffix(".jsonl").read_bytes() == one.with_suffix(".jsonl").read_bytes()
    assert two.read_bytes() == one.read_bytes()


def test_the_summary_follows_from_the_rows(measured: Any, tiny_run: Any, problems: Path) -> None:
    """Every number again, with no help from evaluation.stats."""
    weights, out = measured
    rows, summary = rows_of(out), json.loads(out.read_text())
    golds = {row["id"]: row for row in map(json.loads, problems.read_text().splitlines())}
    assert Counter(row["problem_id"] for row in rows) == dict.fromkeys(golds, SAMPLES)
    assert all(row["gold"] == str(golds[row["problem_id"]]["answer"]) for row in rows)
    right = [row["reason"] == "correct" for row in rows]
    tokens = [row["response_tokens"] for row in rows]
    cut = [row["stop_reason"] == "limit" for row in rows]
    total = len(rows)
    assert 0 < sum(right) < total and 0 < sum(cut) < total and max(tokens) == LIMIT
    assert all(count == LIMIT for count, was_cut in zip(tokens, cut, strict=True) if was_cut)
    assert summary["model"] == str(weights or tiny_run.policy.model_name)
    assert (summary["limit"], summary["samples"], summary["rows"]) == (LIMIT, SAMPLES, total)
    assert (summary["problems"], summary["temperature"], summary["top_p"]) == (PROBLEMS, 0.8, 0.95)
    assert summary["accuracy"] == pytest.approx(sum(right) / total, abs=1e-12)
    assert summary["mean_tokens"] == pytest.approx(sum(tokens) / total, abs=1e-9)
    assert summary["share_cut"] == pytest.approx(sum(cut) / total, abs=1e-12)
    assert summary["reasons"] == Counter(row["reason"] for row in rows)
    by_problem = [[float(x) for x in right[i : i + SAMPLES]] for i in range(0, total, SAMPLES)]
    means = [sum(group) / SAMPLES for group in by_problem]
    variance = sum((mean - summary["accuracy"]) ** 2 for mean in means) / (PROBLEMS - 1)
    assert summary["accuracy_se"] == pytest.approx(math.sqrt(variance / PROBLEMS), rel=1e-9)
    assert summary["pass_at_k"]["1"] == pytest.approx(summary["accuracy"])
    assert summary["pass_at_k"]["4"] == pytest.approx(sum(any(group) for group in by_problem) / PROBLEMS)


def test_accuracy_within_limits_counts_what_ended_in_time(measured: Any) -> None:
    _, out = measured
    rows, summary = rows_of(out), json.loads(out.read_text())
    for limit in WITHIN:
        hits = sum(
            row["reason"] == "correct" and row["stop_reason"] == "eos" and row["response_tokens"] <= limit
            for row in rows
        )
        assert summary["accuracy_at"][str(limit)] == pytest.approx(hits / len(rows), abs=1e-12)
    at = [summary["accuracy_at"][str(limit)] for limit in WITHIN]
    assert at == sorted(at) and at[0] < at[-1] == summary["accuracy"]


def aime_rows() -> list[dict[str, Any]]:
    """Competition problems in the columns of Eurus-2-RL-Data."""
    return [
        {
            "data_source": "numina_amc_aime",
            "prompt": [
                {
                    "role": "user",
                    "content": f"Let $p$ be the least prime greater than {n}. Find the remainder of "
                    f"$p^{{2}} + {3 * n}p$ on division by $1000$.\n\nPresent the answer in LaTex format: "
                    "\\boxed{Your answer}",
                }
            ],
            "ability": "math",
            "reward_model": {"ground_truth": f"{7 * n % 1000:03d}", "style": "rule"},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(10, 22)
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen2 and some problems."""
    folder = tmp_path_factory.mktemp("workplace")
    rows = aime_rows()
    (folder / "aime.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["prompt"][0]["content"] for row in rows]
    write_bpe_model(
        folder / "model", [*texts, "A conversation between User and Assistant. reasoning process"]
    )
    return folder


def thinkprune(folder: Path, *arguments: str) -> str:
    """Run the command line as a user does; its output."""
    done = subprocess.run(
        [sys.executable, "-c", "from nemo_thinkprune.cli import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_train_eval_and_report_from_the_command_line(workplace: Path) -> None:
    train = thinkprune(
        workplace, "train", "tiny-hf-cpu", "policy.model_name=model", "data.train.data_path=aime.jsonl",
        "thinkprune.limits=[12]", "--run-dir", "run",
    )  # fmt: skip
    run, step = workplace / "run", workplace / "run" / "checkpoints" / "step_2"
    assert "step_2" in train and "report.html" in train
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["response_tokens_mean"] <= 12 and math.isfinite(row["loss"]) for row in rows)
    rollouts = [json.loads(line) for line in (run / "rollouts" / "step_1.jsonl").read_text().splitlines()]
    assert len(rollouts) == 4 and all("least prime" in row["prompt"] for row in rollouts)
    assert not any("LaTex" in row["prompt"] for row in rollouts)  # the data's own instruction is replaced
    assert (step / "policy" / "tokenizer" / "tokenizer.json").is_file()
    for name in ("config.yaml", "ledger.jsonl", "summary.json", "report.html"):
        assert (run / name).stat().st_size > 0

    table = thinkprune(
        workplace,
        "eval",
        str(step),
        "--data",
        "aime.jsonl",
        "--limit",
        "8",
        "-n",
        "2",
        "--out",
        "numbers.json",
    )
    summary = json.loads((workplace / "numbers.json").read_text())
    assert (summary["problems"], summary["rows"], summary["limit"]) == (12, 24, 8)
    assert summary["mean_tokens"] <= 8 and "numbers.json" in table
    assert len((workplace / "numbers.jsonl").read_text().splitlines()) == 24

    (run / "report.html").unlink()
    assert str(Path("run") / "report.html") in thinkprune(workplace, "report", "run")
    page = (run / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and "least prime" in page
