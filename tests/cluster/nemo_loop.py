"""NeMo-RL's trainers as the recorder sees them: what they log and save, in their order, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools.torch_dist.index import Chunk, DistIndex, DistTensor
from checkpoints_tools.torch_dist.write import common_pt, metadata_json, write_metadata

Json = dict[str, Any]
WEIGHTS = Path("policy/weights/iter_0000000")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class FakeLogger:
    """Collects what reaches NeMo-RL's backends."""

    base_log_dir = "logs"

    def __init__(self) -> None:
        self.logged: list[tuple[str | None, int, Json, bool]] = []

    def log_metrics(
        self, metrics: Json, step: int, prefix: str | None = "", step_metric: str | None = None,
        step_finished: bool = False,
    ) -> None:  # fmt: skip
        self.logged.append((prefix, step, dict(metrics), step_finished))

    def log_batched_dict_as_jsonl(self, to_log: Json, filename: str) -> None:
        self.logged.append((filename, 0, {}, False))

    def log_histogram(self, histogram: Sequence[float], step: int, name: str) -> None:
        self.logged.append((name, step, {}, False))


class FakeEnvironment:
    """The rows that an environment actor has scored."""

    def __init__(self) -> None:
        self._rows: list[Json] = []

    def score(self, problem: str, number: int, *, tokens: int, cut: bool = False, right: bool = True) -> None:
        reason = "truncated" if cut else "correct" if right else "wrong"
        self._rows.append(
            {
                "problem_id": problem,
                "prompt": f"question of {problem}",
                "response": f"answer {number}",
                "response_tokens": tokens,
                "stop_reason": "limit" if cut else "eos",
                "reward": float(reason == "correct"),
                "reason": reason,
                "answer": "1",
                "gold": "1",
            }
        )

    def drain(self) -> list[Json]:
        rows, self._rows = self._rows, []
        return rows


def train_metrics(step: int) -> Json:
    """As the loop makes them: NumPy scalars among Python's numbers, and things that are no numbers."""
    return {
        "loss": np.sum([0.25, 0.25]).item() * step,
        "grad_norm": np.float32(1.5),
        "reward": 0.5,
        "lr": 1e-6,
        "kl_penalty": 0.125,
        "gen_kl_error": 0.001,
        "token_mult_prob_error": 1.001,
        "global_valid_toks": 40.0,
        "mean_gen_tokens_per_sample": 7.5,
        "truncation_rate": 0.25,
        "generation_logger_metrics": {},
    }


def timers(*, saved: bool, validated: bool) -> Json:
    own = {"generation": 4.0, "policy_training": 3.0, "policy_and_reference_logprobs": 2.0}
    own |= {"prepare_for_generation/total": 1.0, "valid_tokens_per_sec_per_gpu": 9.0}
    return (
        own
        | ({"checkpointing": 5.0} if saved else {})
        | {"total_step_time": 10.0 + 5 * saved + 6 * validated}
    )


def save(folder: Path, step: int, **info: Any) -> None:
    """A checkpoint as NeMo-RL leaves it, with one small tensor for weights."""
    aside = folder / f"tmp_step_{step}"
    (aside / WEIGHTS).mkdir(parents=True)
    (aside / "training_info.json").write_text(json.dumps({"total_steps": step, **info}))
    chunk = Chunk((0,), (64,), "__0_0.distcp", record=0, record_bytes=256, payload=-1)
    key = "optimizer.state.exp_avg.weight"
    index = DistIndex(aside / WEIGHTS, {key: DistTensor(key, "F32", (64,), (chunk,))})
    weights = {".metadata": write_metadata(index), chunk.file: b"x" * chunk.record_bytes}
    weights |= {"common.pt": common_pt(), "metadata.json": metadata_json()}
    for name, content in weights.items():
        (aside / WEIGHTS / name).write_bytes(content)
    (aside / "train_dataloader.pt").write_bytes(common_pt(iteration=step))  # an archive of torch.save's too
    aside.rename(folder / f"step_{step}")


class Loop:
    """`grpo_train` from step `done`: logs, saves, and calls `at(step, moment)` on the way."""

    def __init__(self, logger: Any, checkpointing: Json, *, steps: int, validate_every: int) -> None:
        self.logger, self.checkpointing = logger, checkpointing
        self.steps, self.validate_every = steps, validate_every

    def run(
        self,
        done: int,
        *,
        rollout: Callable[[int], None],
        validate: Callable[[int], None],
        at: Callable[[int, str], None] = lambda step, moment: None,
    ) -> None:
        if done == 0:
            validate(0)
            self.logger.log_metrics({"accuracy": 0.0, "avg_length": 1.0}, 0, prefix="validation")
            self.logger.log_metrics({"total_validation_time": 6.0}, 0, prefix="timing/validation")
        for step in range(done + 1, self.steps + 1):
            rollout(step)
            self.logger.log_metrics({"mean_gen_tokens_per_sample": 7.5}, step, prefix="train")
            at(step, "rollout")
            self.logger.log_histogram([0.0], step, "train/advantages/histogram")
            if validated := step % self.validate_every == 0:
                validate(step)
                self.logger.log_metrics({"total_validation_time": 6.0}, step, prefix="timing/validation")
                self.logger.log_metrics({"accuracy": 0.0}, step, prefix="validation")
            at(step, "train")
            if saved := step == self.steps or step % self.checkpointing["save_period"] == 0:
                save(Path(self.checkpointing["checkpoint_dir"]), step)
            at(step, "saved")
            self.logger.log_metrics(train_metrics(step), step, prefix="train")
            self.logger.log_metrics({"tokens_per_sec": 1.0}, step, prefix="performance")
            self.logger.log_metrics(
                timers(saved=saved, validated=validated), step, prefix="timing/train", step_finished=True
            )
            at(step, "logged")

    def run_asynchronously(self, *, rollout: Callable[[int], None]) -> None:
        """`async_grpo_train`: one call of "train" a step, and errors are kept to itself."""
        try:
            for step in range(1, self.steps + 1):
                rollout(step)
                self.logger.log_metrics({"tokens_per_sec": 1.0}, step, prefix="performance")
                self.logger.log_metrics(train_metrics(step), step, prefix="train")
                timing = {"exposed_generation": 2.0, "total_step_time": 8.0}
                self.logger.log_metrics(timing, step, prefix="timing/train", step_finished=True)
        except Exception as error:
            print(f"Error in async loop: {error}")
