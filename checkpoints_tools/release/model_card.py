"""The README.md of a released model: what it is, what was measured, how to use, check and license it.

Only what the run's files say is stated; what they do not say is called not measured or not known.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.proof.manifest import MANIFEST_FILE, Manifest
from checkpoints_tools.release import card_text as md
from checkpoints_tools.release.card_training import limits_text, training
from checkpoints_tools.release.card_usage import usage
from checkpoints_tools.release.license import License
from checkpoints_tools.release.notes import dtype_to_name
from checkpoints_tools.release.run_facts import RunFacts, shown_path
from checkpoints_tools.release.run_stages import Results, Stage

CARD_FILE = "README.md"
_PAPER = "[ThinkPrune](https://arxiv.org/abs/2504.01296)"
_SOURCE_FORMATS = {
    "torch_dist": "a Megatron-Core distributed checkpoint",
    "huggingface": "a safetensors folder",
}
_STORED = {
    "keep": "byte for byte",
    "bf16": "converted to bfloat16",
    "fp32": "converted to float32",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that goes into a card. `base_model` is a hub id, `repo` the id the model will have there, if known."""

    title: str
    repo: str | None
    base_model: str | None
    license: License
    run: RunFacts
    config: ModelConfig
    manifest: Manifest


def model_card(facts: CardFacts) -> str:
    """The content of README.md: front matter for the hub, Markdown, and a seal that shows whether it was edited."""
    sections = [
        [f"# {md.text(facts.title)}"],
        [_what_it_is(facts)],
        ["## Results", "", *_results(facts.run)],
        ["## Use", "", *usage(facts.run, facts.repo, _load_dtype(facts))],
        ["## Training", "", *training(facts.run, facts.base_model)],
        ["## Verification", "", *_verification(facts.manifest)],
        ["## Licence", "", _license(facts)],
        ["## Limitations", "", *_limitations(facts)],
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    text = f"---\n{front_matter(facts)}---\n\n{body}\n"
    return f"{text}\n{_seal(text)}\n"


def is_unedited(card: str) -> bool:
    """Whether a README.md is, to the byte, one that `model_card` made, for whatever facts."""
    text, _, seal = card.removesuffix("\n").rpartition("\n\n")
    return f"{seal}\n" == f"{_seal(text + chr(10))}\n" and card.endswith("\n")


def _seal(text: str) -> str:
    return f"<!-- thinkprune-ckpt {hashlib.sha256(text.encode()).hexdigest()} -->"


def front_matter(facts: CardFacts) -> str:
    """The YAML that the hub reads."""
    import yaml

    values: dict[str, object] = {}
    if facts.base_model:
        values |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    values |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    license = facts.license
    named = {"license": license.id, "license_name": license.name, "license_link": license.link}
    values |= {key: value for key, value in named.items() if value}
    tags = ["reasoning"] + (["thinkprune"] if facts.run.limits else [])
    if facts.run.recipe and facts.run.recipe.estimator == "grpo":
        tags.append("grpo")
    return yaml.safe_dump(values | {"tags": tags}, sort_keys=False, allow_unicode=True)


def _dtypes(facts: CardFacts) -> set[str]:
    """Safetensors dtypes of the stored tensors."""
    return {tensor.dtype for tensor in facts.manifest.tensors.values()}


def _load_dtype(facts: CardFacts) -> str | None:
    return dtype_to_name(_dtypes(facts), facts.config.dtype)


def _what_it_is(facts: CardFacts) -> str:
    run, base = facts.run, facts.base_model
    kind = f"A fine-tune of [{base}](https://huggingface.co/{base})" if base else "A language model"
    method = f", trained with {_PAPER} to reach its answers with shorter reasoning" if run.limits else ""
    parts = [f"{kind}{method}."]
    if run.limits:
        falls = " that falls from round to round" if len(run.limits) > 1 else ""
        limit = f"a limit on the response's length{falls}: {limits_text(run.limits)}"
        parts.append(f"The method is reinforcement learning under {limit}.")
    if run.is_control:
        parts.append("It is the control of a ThinkPrune run: as many steps, without the falling limit.")
    if run.step is not None:
        round_ = f" of round {run.round}" if run.round else ""
        parts.append(f"This is the checkpoint of step {run.step:,}{round_}.")
    dtypes = " and ".join(sorted(_dtypes(facts)))
    parts.append(
        f"{facts.manifest.parameters:,} parameters ({dtypes}), architecture {facts.config.architecture}."
    )
    return " ".join(parts)


def _results(run: RunFacts) -> list[str]:
    results = run.results
    measured = (
        [] if results is None else [s for s in (results.baseline, *results.rounds, results.control) if s]
    )
    if results is None or not measured:
        return ["Accuracy and response length were not measured on held-out problems.", *_selection(run)]
    head = ("Model", "Limit in training", "Accuracy, %", "Change, points", "Mean response, tokens", "Change")
    lines = [*md.table(head, [_row(stage) for stage in measured]), "", _setting(results)]
    if results.this is None:
        lines += ["", "This checkpoint itself was not measured on these problems.", *_selection(run)]
    if any(stage.kept_start for stage in results.rounds):
        lines += ["", "Start kept: no checkpoint of that round met the selection rule, so its start went on."]
    if results.control is not None:
        lines += [
            "",
            "The control trained for as many steps as all rounds together, without the falling limit.",
        ]
    if results.missing:
        missing = "; ".join(md.text(item) for item in results.missing)
        lines += ["", f"The run was not finished when this card was written. Missing: {missing}."]
    return lines


def _row(stage: Stage) -> tuple[str, ...]:
    kept = " (start kept)" if stage.kept_start else ""
    if stage.round:
        name = f"round {stage.round}{kept}"
    elif stage.label in ("", "start", "after warm-up"):
        name = "before training" + (" (after a supervised warm-up)" if stage.label == "after warm-up" else "")
    else:
        name = md.text(stage.label)
    return (
        f"**{name}: this model**" if stage.is_this else name,
        f"{stage.limit:,}" if stage.limit and stage.round else md.DASH,
        md.share(stage.accuracy, stage.accuracy_se),
        md.points(stage.accuracy_change, stage.accuracy_change_se),
        md.length(stage.tokens, stage.tokens_se),
        md.percent(stage.tokens_change),
    )


def _setting(results: Results) -> str:
    setting = results.setting
    parts = []
    if setting.data:
        parts.append(f"on {md.code(shown_path(setting.data))}")
    elif results.kind == "train":
        parts.append("on the problems that the run was validated on during training")
    if setting.problems:
        samples = f" × {setting.samples} samples" if setting.samples and setting.samples > 1 else ""
        parts.append(f"{setting.problems:,} problems{samples}")
    if setting.limit:
        parts.append(f"responses of up to {setting.limit:,} tokens")
    parts += [f"{name} {value:g}" for name, value in (("temperature", setting.temperature), ("top-p", setting.top_p))
              if value is not None]  # fmt: skip
    stages = (results.baseline, *results.rounds)
    error = " ± is one standard error over problems." if any(s and s.accuracy_se for s in stages) else ""
    where = f"Measured {', '.join(parts)}." if parts else ""
    return f"{where}{error} Changes are against the first row.".strip()


def _selection(run: RunFacts) -> list[str]:
    if run.selection_accuracy is None or run.selection_tokens is None:
        return []
    return [
        "",
        f"On the problems that checkpoints are selected with, its accuracy was {md.share(run.selection_accuracy)}% "
        f"at {md.length(run.selection_tokens)} tokens on average; numbers a model is selected by flatter it.",
    ]


def _verification(manifest: Manifest) -> list[str]:
    how = _STORED.get(manifest.dtype_policy, "")
    same = ["It depends neither on the format nor on the sharding: the checkpoint has the same.", ""]
    if manifest.dtype_policy != "keep":
        same = []  # the checkpoint's types may be others
    return [
        f"The weights were copied from {_SOURCE_FORMATS.get(manifest.source_format, 'a checkpoint')}, {how}, and read "
        f"back. `{MANIFEST_FILE}` holds the SHA-256 of each of the {len(manifest.tensors):,} tensors; the digest of "
        "the whole model is",
        "",
        "```",
        f"sha256:{manifest.digest}",
        "```",
        "",
        *same,
        "To check a downloaded copy, in its folder:",
        "",
        "```bash",
        f"thinkprune-ckpt verify . --manifest {MANIFEST_FILE}",
        "```",
    ]


def _license(facts: CardFacts) -> str:
    license = facts.license
    if license.id is None:
        return "The licence of the base model was not found when this card was written. Ask before you use the model."
    name = md.code(license.name or license.id)
    text = (
        f"{name}, as stated by {license.stated_in}"
        if license.name is None
        else f"{name} ({md.code(license.id)})"
    )
    return f"{text}: see [{md.text(license.link)}]({license.link})." if license.link else f"{text}."


def _limitations(facts: CardFacts) -> list[str]:
    run = facts.run
    lines = []
    if run.results is not None and run.results.this is not None:
        lines.append("- The numbers above come from one training run and one set of problems.")
    if run.recipe and run.recipe.data:
        names = ", ".join(md.code(name) for name in run.recipe.data)
        lines.append(
            f"- The training above used only {names}; accuracy and length on other tasks were not measured."
        )
    else:
        lines.append("- Accuracy and length on tasks other than those it was trained on were not measured.")
    if run.limit:
        lines.append(
            f"- The model was rewarded for ending within {run.limit:,} tokens; problems that need longer "
            "reasoning may suffer."
        )
    lines.append("- Whatever holds for the base model's safety, biases and knowledge was not examined again.")
    return lines
