"""summary.json of a run: the numbers of each stage on the reporting set, beside the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_thinkprune.evaluation import stats
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.reporting.run_files import Evaluation, Json, RunFiles

_COPIED = (
    "accuracy",
    "accuracy_se",
    "mean_tokens",
    "mean_tokens_se",
    "share_cut",
    "pass_at_k",
    "accuracy_at",
)
_SETTINGS = ("model", "data", "limit", "samples", "temperature", "top_p", "problems")


def build_summary(run_dir: Path) -> Json:
    """The summary of the run in a folder; see summarise_run."""
    return summarise_run(run_files.read_run(run_dir))


def summarise_run(files: RunFiles) -> Json:
    """The summary of a run as far as it has come, from its files alone.

    Returns:
        ``{"schema": 1, "kind": "prune"|"train", "status": "finished"|"partial", "missing": [text, ...],
        "settings": {model, data, limit, samples, temperature, top_p, problems} of the evaluations,
        "baseline": stage, "rounds": [stage + {"round", "selected_step", "kept_start", "checkpoint"}],
        "control": stage or null}`` where a stage is ``{"name", "label", "limit", "accuracy", "accuracy_se",
        "accuracy_within_limit", "accuracy_within_limit_se" (for a round: at its own limit, else null),
        "mean_tokens", "mean_tokens_se", "share_cut", "pass_at_k", "accuracy_at", "tokens_change" (relative
        to the baseline, -0.5 is half), "accuracy_change", "accuracy_change_se" (paired by problem)}``.
        Accuracies are shares of 1; lengths are response tokens, the end token included.
        A train run has ``"train": {...}`` with its first and last steps instead of the stages.
    """
    if files.kind == "train":
        return _train_summary(files)
    start = files.evaluations.get(run_files.START)
    missing = missing_pieces(files)
    first = start or next(iter(files.evaluations.values()), None)
    return {
        "schema": 1,
        "kind": "prune",
        "status": "partial" if missing else "finished",
        "missing": missing,
        "settings": {k: first.summary.get(k) for k in _SETTINGS} if first else {},
        "baseline": _stage(start, label=start_label(files)) if start else None,
        "rounds": [entry for number in range(len(files.rounds)) if (entry := _round(files, number))],
        "control": _control(files),
    }


def start_label(files: RunFiles) -> str:
    """What the models began as: after the warm-up where one ran in this folder."""
    return "after warm-up" if files.warmup else "start"


def missing_pieces(files: RunFiles) -> list[str]:
    """What a finished run would have and this one has not (yet), each in words."""
    missing = [] if run_files.START in files.evaluations else ["evaluation of the start"]
    if not files.limits:
        missing.append("rounds")
    present = {r.limit: r for r in files.rounds}
    for number, limit in enumerate(files.limits, start=1):
        name = run_files.round_name(number, limit)
        found = present.get(limit)
        if found is None or found.decision is None:
            missing.append(f"round {number} (limit {limit})" + (", still training" if found else ""))
        elif name not in files.evaluations:
            missing.append(f"evaluation of round {number} (limit {limit})")
    if run_files.dig(files.config, "thinkprune", "control", "enabled"):
        if files.control is None:
            missing.append("control run")
        elif run_files.CONTROL not in files.evaluations:
            missing.append("evaluation of the control run")
    return missing


def _stage(evaluation: Evaluation, *, label: str, limit: int | None = None, start: Any = None) -> Json:
    measured = evaluation.summary
    key = str(limit)
    stage = {"name": evaluation.name, "label": label, "limit": limit, **{k: measured.get(k) for k in _COPIED}}
    stage["accuracy_within_limit"] = (measured.get("accuracy_at") or {}).get(key)
    stage["accuracy_within_limit_se"] = (measured.get("accuracy_at_se") or {}).get(key)
    if start is None:
        return stage | {"tokens_change": None, "accuracy_change": None, "accuracy_change_se": None}
    before = start.summary
    change = stats.paired_change(start.rows(), evaluation.rows())
    return stage | {
        "tokens_change": measured["mean_tokens"] / before["mean_tokens"] - 1
        if before["mean_tokens"]
        else None,
        "accuracy_change": change.mean if change else measured["accuracy"] - before["accuracy"],
        "accuracy_change_se": change.se if change else None,
    }


def _round(files: RunFiles, index: int) -> Json | None:
    found = files.rounds[index]
    evaluation = files.evaluations.get(found.name)
    parsed = run_files.parse_round(found.name)
    if found.decision is None or evaluation is None or parsed is None:
        return None
    number, limit = parsed
    stage = _stage(
        evaluation, label=f"L = {limit}", limit=limit, start=files.evaluations.get(run_files.START)
    )
    return stage | {
        "round": number,
        "selected_step": found.decision.get("selected_step"),
        "kept_start": found.decision.get("kept_start"),
        "checkpoint": found.decision.get("weights"),
    }


def _control(files: RunFiles) -> Json | None:
    evaluation = files.evaluations.get(run_files.CONTROL)
    if evaluation is None:
        return None
    return _stage(evaluation, label="control", start=files.evaluations.get(run_files.START))


def _train_summary(files: RunFiles) -> Json:
    steps = files.rounds[0].steps
    keep = ("step", "reward_mean", "accuracy", "response_tokens_mean", "truncated_share", "kl", "grad_norm")

    def edge(row: Json) -> Json:
        return {k: row.get(k) for k in keep}

    train = {"first": edge(steps[0]), "last": edge(steps[-1]), "steps": len(steps)} if steps else None
    planned = run_files.dig(files.config, "grpo", "max_num_steps")
    done = bool(steps) and isinstance(planned, int) and steps[-1]["step"] >= planned
    return {
        "schema": 1,
        "kind": "train",
        "status": "finished" if done else "partial",
        "missing": [] if steps else ["training steps"],
        "train": train,
        "validation": list(files.rounds[0].validation),
    }
