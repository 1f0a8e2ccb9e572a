"""report.html: one self-contained page about a run, finished or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_folder, write_atomic
from nemo_thinkprune.reporting import figures, run_files, svg, table, thoughts
from nemo_thinkprune.reporting.environment import environment
from nemo_thinkprune.reporting.run_files import Json, RunFiles, dig
from nemo_thinkprune.reporting.summary import summarise_run


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from the files of a prune or train run and return its path.

    The page makes no request, runs no script and escapes all text of models and data. Pieces that are not
    there yet are named on the page.

    Raises:
        UserError: ``run_dir`` is no folder, holds nothing of a run, or cannot be written.
    """
    files = _read(run_dir)
    path = run_dir / "report.html"
    _write(path, render(files, summarise_run(files)))
    return path


def write_results(run_dir: Path) -> Json:
    """Write ``summary.json`` and ``report.html`` of a prune or train run; returns the summary.

    Raises:
        UserError: as write_report.
    """
    files = _read(run_dir)
    summary = summarise_run(files)
    _write(run_dir / "report.html", render(files, summary))
    _write(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _write(path: Path, text: str) -> None:
    try:
        # Half a character pair, which JSON can escape, must not keep the page from being written.
        write_atomic(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _read(run_dir: Path) -> RunFiles:
    if not is_folder(run_dir):
        raise UserError(f"{run_dir} is not a folder: give the folder of a train or prune run")
    files = run_files.read_run(run_dir)
    if files.kind == "train" and not files.rounds[0].steps and not files.rounds[0].validation:
        raise UserError(
            f"{run_dir} holds no metrics.jsonl and no rounds: give the folder of a train or prune run"
        )
    return files


def render(files: RunFiles, summary: Json) -> str:
    """The page as a string."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    jinja = Environment(
        loader=PackageLoader("nemo_thinkprune.reporting", "."),
        autoescape=True,  # model output is untrusted: nothing but our own SVG is marked safe
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = jinja.get_template("report.html.jinja")
    length = figures.length_figure(files)
    recorded = bool(files.environment)
    return page.render(
        title=_title(files),
        lead=lead(summary),
        status=summary["status"],
        missing=summary["missing"],
        tiles=tiles(summary),
        head=table.results_head(dig(summary, "settings", "limit")),
        rows=table.results_rows(summary) if files.kind == "prune" else [],
        results=figures.result_figures(summary, files) if files.kind == "prune" else [],
        length=length,
        curves=[*figures.warmup_figures(files.warmup), *figures.training_figures(files)],
        decisions=[_decision(r.decision) for r in files.rounds if r.decision],
        pairs=_pairs(files),
        facts=facts(files),
        config=files.config_text,
        environment=files.environment or environment(),
        environment_recorded=recorded,
        kind=files.kind,
        chart_style=svg.STYLE,
        share=table.share,
        tokens=table.tokens,
    )


def lead(summary: Json) -> str:
    """What happened, in two sentences with the numbers."""
    if summary["kind"] == "train":
        return _train_lead(summary)
    start, rounds, control = summary["baseline"], summary["rounds"], summary["control"]
    if not start or not rounds:
        return "No round has been trained and evaluated yet."
    last = rounds[-1]
    text = (
        f"The mean response went from {table.tokens(start['mean_tokens'])} to "
        f"{table.tokens(last['mean_tokens'])} tokens ({table.signed(last['tokens_change'], unit='%')}), "
        f"accuracy from {table.share(start['accuracy'])} to {table.share(last['accuracy'])} % "
        f"({table.signed(last['accuracy_change'], last['accuracy_change_se'])} points, paired)."
    )
    if control:
        text += (
            f" The control, trained for as many steps without the limits, ended at "
            f"{table.tokens(control['mean_tokens'])} tokens "
            f"({table.signed(control['tokens_change'], unit='%')}) and {table.share(control['accuracy'])} %: "
            "the gap between the two is the limits' part."
        )
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _train_lead(summary: Json) -> str:
    train = summary.get("train")
    if not train:
        return "No training step has been recorded yet."
    first, last = train["first"], train["last"]
    return (
        f"{train['steps']} steps: mean reward {_plain(first['reward_mean'])} → "
        f"{_plain(last['reward_mean'])}, "
        f"mean response {table.tokens(first['response_tokens_mean'])} → "
        f"{table.tokens(last['response_tokens_mean'])} tokens in training rollouts."
    )


def tiles(summary: Json) -> list[Tile]:
    """The headline numbers of a prune run; none before there is something to compare."""
    if summary["kind"] == "train" or not summary["baseline"] or not summary["rounds"]:
        return []
    start, last, control = summary["baseline"], summary["rounds"][-1], summary["control"]
    limit = dig(summary, "settings", "limit")
    found = [
        Tile(
            "mean response",
            table.signed(last["tokens_change"], unit="%"),
            f"{table.tokens(start['mean_tokens'])} → {table.tokens(last['mean_tokens'])} tokens",
        ),
        Tile(
            f"accuracy at {limit:,} tokens" if limit else "accuracy",
            f"{table.share(last['accuracy'])} %",
            f"{table.signed(last['accuracy_change'], last['accuracy_change_se'])} points, paired",
        ),
        Tile(
            f"accuracy within L = {last['limit']}",
            f"{table.share(last['accuracy_within_limit'])} %",
            f"was {table.share((start['accuracy_at'] or {}).get(str(last['limit'])))} % at the start",
        ),
    ]
    if control:
        found.append(
            Tile(
                "control, no limit",
                table.signed(control["tokens_change"], unit="%"),
                f"{table.tokens(control['mean_tokens'])} tokens, {table.share(control['accuracy'])} %",
            )
        )
    return found


_FACTS = (
    ("model", ("policy", "model_name")),
    ("limits", ("thinkprune", "limits")),
    ("long limit", ("thinkprune", "long_limit")),
    ("truncation", ("thinkprune", "truncation")),
    ("length reward", ("thinkprune", "length_reward", "name")),
    ("prompt family", ("thinkprune", "prompt_family")),
    ("prompts per step", ("grpo", "num_prompts_per_step")),
    ("responses per prompt", ("grpo", "num_generations_per_prompt")),
    ("steps per run", ("grpo", "max_num_steps")),
    ("seed", ("grpo", "seed")),
    ("learning rate", ("policy", "megatron_cfg", "optimizer", "lr")),
    ("KL coefficient", ("loss_fn", "reference_policy_kl_penalty")),
    ("clip", ("loss_fn", "ratio_clip_min")),
    ("max relative drop", ("thinkprune", "selection", "max_relative_drop")),
    ("tensor parallel", ("policy", "megatron_cfg", "tensor_model_parallel_size")),
    ("pipeline parallel", ("policy", "megatron_cfg", "pipeline_model_parallel_size")),
    ("devices per node", ("cluster", "gpus_per_node")),
    ("nodes", ("cluster", "num_nodes")),
)


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
    found = [(name, dig(files.config, *path)) for name, path in _FACTS]
    inside = f"{files.root.resolve()}/"
    found = [(name, v.removeprefix(inside) if isinstance(v, str) else v) for name, v in found]
    return [
        (name, " > ".join(map(str, v)) if isinstance(v, list) else str(v))
        for name, v in found
        if v is not None
    ]


def _pairs(files: RunFiles) -> Sequence[thoughts.Pair]:
    named = {colour: evaluation for _, colour, evaluation in figures.named_evaluations(files)}
    shortest = min(files.limits, default=None) if files.kind == "prune" else None
    if figures.BEFORE in named and figures.PRUNED in named:
        before, after = named[figures.BEFORE].rows(), named[figures.PRUNED].rows()
        return thoughts.choose_pairs(before, after, limit=shortest)
    if files.kind != "train":
        return []
    first, before = run_files.rollout_rows(files.root, last=False)
    last, after = run_files.rollout_rows(files.root, last=True)
    if first == last:
        return []
    pairs = thoughts.choose_pairs(before, after, limit=None)
    return pairs or thoughts.unrelated_pairs(before, after, limit=None)


def _decision(found: Json) -> Json:
    """The decision with None for whatever is not in the file."""
    keys = ("step", "accuracy", "mean_tokens", "accuracy_at_limit", "share_cut", "qualifies")

    def row(entry: Json) -> Json:
        drop = entry.get("relative_drop")
        change = table.DASH if drop is None else f"{-100 * drop:+.1f}%".replace("-", "−")
        return {**{key: entry.get(key) for key in keys}, "relative_change": change}

    return {
        **{key: found.get(key) for key in ("round", "limit", "reason", "selected_step")},
        "baseline": row(found.get("baseline") or {}),
        "candidates": [row(c) for c in found.get("candidates") or ()],
    }


def _title(files: RunFiles) -> str:
    return f"{files.root.resolve().name}: {'prune' if files.kind == 'prune' else 'train'} report"


def _plain(value: Any) -> str:
    return table.DASH if value is None else f"{value:.3g}"
