"""What a checkpoint's run says about it: how it was trained and what was measured.

A checkpoint `step_N` lies in the checkpoint folder of a train run, which may be a round (`round_2_L3000`) or the
control of a prune run. Read are `training_info.json` and `config.yaml` of the step and `summary.json` of the run,
as this project and NeMo-RL write them. All of it is optional; nothing is made up for what is absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.release.run_stages import Results, read_results
from checkpoints_tools.small_files import Json, Reader, read_json, read_yaml

_STEP = re.compile(r"step_(\d{1,12})")
_ROUND = re.compile(r"round_(\d{1,4})_L(\d{1,12})")
_CONTROL = "control"
# step_N, checkpoints, round_1_L4000, the prune run; checkpoint_dir may have one folder more.
_LEVELS = 5
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the model was trained; None where config.yaml does not say. Lengths in tokens."""

    limits: tuple[int, ...] = ()
    max_new_tokens: int | None = None
    long_limit: int | None = None
    truncation: str | None = None
    prompt_family: str | None = None
    length_hint: bool | None = None
    length_reward: str | None = None
    max_relative_drop: float | None = None
    estimator: str | None = None
    prompts: int | None = None
    generations: int | None = None
    max_steps: int | None = None
    lr: float | None = None
    lr_decay: str | None = None
    weight_decay: float | None = None
    adam_beta1: float | None = None
    adam_beta2: float | None = None
    clip_min: float | None = None
    clip_max: float | None = None
    kl_penalty: float | None = None
    kl_type: str | None = None
    max_grad_norm: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    validation_temperature: float | None = None
    validation_top_p: float | None = None
    precision: str | None = None
    seed: int | None = None
    data: tuple[str, ...] = ()
    pretrained: str | None = None
    warmup_steps: int | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A checkpoint's place in its run. `limit` is the response limit it was trained with, in tokens.

    `base_model` is the hub id of the model that training began from, `base_folder` its folder on this machine;
    `selection_accuracy` (share of 1) and `selection_tokens` were measured on the selection problems.
    """

    step: int | None = None
    round: int | None = None
    is_control: bool = False
    limit: int | None = None
    base_model: str | None = None
    base_folder: Path | None = None
    selection_accuracy: float | None = None
    selection_tokens: float | None = None
    recipe: Recipe | None = None
    results: Results | None = None

    @property
    def limits(self) -> tuple[int, ...]:
        """Limits of the rounds up to this checkpoint's, in tokens; empty where no falling limit is known."""
        if self.is_control or self.recipe is None or not self.recipe.limits:
            return ()
        if self.round is not None:
            return self.recipe.limits[: self.round]
        return () if self.limit is None else (self.limit,)


def read_run_facts(checkpoint: Path) -> RunFacts:
    """What the run that `checkpoint` (a step_N folder or a folder in it) belongs to says.

    Raises:
        CheckpointError: A file of the run is damaged, or holds a value of the wrong type; the message names it.
    """
    step = find_step(checkpoint)
    if step is None:
        return RunFacts()
    info_file = step / "training_info.json"
    info = Reader(read_json(info_file) or {}, str(info_file))
    folders = list(step.parents)[:_LEVELS]
    train = next(
        (f for f in folders[:2] if (f / "config.yaml").exists() or (f / "metrics.jsonl").exists()), None
    )
    config_file, config = _config([step, *([train] if train else [])])
    recipe = None if config is None else _recipe(Reader(config, str(config_file)))
    found = _ROUND.fullmatch(train.name) if train else None
    model = Reader(config or {}, str(config_file)).text("policy.model_name")
    return RunFacts(
        step=step_number(step),
        round=int(found[1]) if found else None,
        is_control=bool(train and train.name == _CONTROL),
        limit=info.count("limit") or (int(found[2]) if found else recipe.max_new_tokens if recipe else None),
        base_model=base_model_id(info.text("model"), model),
        base_folder=_folder(info.text("model")) or _folder(model),
        selection_accuracy=info.share("val:accuracy"),
        selection_tokens=info.number("val:mean_tokens", low=0),
        recipe=recipe,
        results=_results(step, folders),
    )


def find_step(checkpoint: Path) -> Path | None:
    """The step_N folder that `checkpoint` is or lies in, None outside of any."""
    path = checkpoint.expanduser().resolve()
    above = [path, *path.parents][:_LEVELS]
    return next(
        (p for p in above if _STEP.fullmatch(p.name) and (p == path or path.is_relative_to(p / "policy"))),
        None,
    )


def base_model_id(*names: str | None) -> str | None:
    """The hub id among the names a run has for its model: an id, or a folder in the hub's cache.

    The first name that is given decides whether `organisation/model` is an id: the local engine writes down the
    folder it read, so that a relative path is not taken for an id.
    """
    for name in filter(None, names):
        cached = next((m for part in Path(name).parts if (m := _CACHED.fullmatch(part))), None)
        if cached:
            return f"{cached[1]}/{cached[2]}"
        if is_hub_id(name) and not Path(name).is_dir():
            return name
        if Path(name).is_absolute():
            return None
    return None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form organisation/model."""
    return bool(_HUB_ID.fullmatch(name)) and not any(part.startswith(".") for part in name.split("/"))


def _folder(name: str | None) -> Path | None:
    return Path(name) if name and "\0" not in name and Path(name).is_dir() else None


def _config(folders: list[Path]) -> tuple[Path | None, Json | None]:
    for folder in folders:
        file = folder / "config.yaml"
        content = read_yaml(file)
        if content is not None:
            return file, content
    return None, None


def _results(step: Path, folders: list[Path]) -> Results | None:
    for folder in folders:
        file = folder / "summary.json"
        content = read_json(file) if file.is_file() else None
        # Another program's file of that name, in a folder above, says nothing about this checkpoint.
        if content is not None and "schema" in content and "kind" in content:
            relative = step.relative_to(folder).as_posix()
            return read_results(Reader(content, str(file)), relative, newest=_is_newest(step))
    return None


def _is_newest(step: Path) -> bool:
    others = [step_number(path) for path in step.parent.iterdir()]
    return step_number(step) == max(number for number in others if number is not None)


def step_number(folder: Path) -> int | None:
    """N of a folder step_N, None for any other."""
    found = _STEP.fullmatch(folder.name)
    return int(found[1]) if found else None


def _recipe(config: Reader) -> Recipe:
    megatron, loss = "policy.megatron_cfg", "loss_fn"
    return Recipe(
        limits=config.counts("thinkprune.limits"),
        max_new_tokens=config.count("policy.generation.max_new_tokens"),
        long_limit=config.count("thinkprune.long_limit"),
        truncation=config.text("thinkprune.truncation"),
        prompt_family=config.text("thinkprune.prompt_family"),
        length_hint=config.flag("thinkprune.length_hint"),
        length_reward=config.text("thinkprune.length_reward.name"),
        max_relative_drop=config.share("thinkprune.selection.max_relative_drop"),
        estimator=config.text("grpo.adv_estimator.name"),
        prompts=config.count("grpo.num_prompts_per_step"),
        generations=config.count("grpo.num_generations_per_prompt"),
        max_steps=config.count("grpo.max_num_steps"),
        lr=config.number(f"{megatron}.optimizer.lr"),
        lr_decay=config.text(f"{megatron}.scheduler.lr_decay_style"),
        weight_decay=config.number(f"{megatron}.optimizer.weight_decay"),
        adam_beta1=config.number(f"{megatron}.optimizer.adam_beta1"),
        adam_beta2=config.number(f"{megatron}.optimizer.adam_beta2"),
        clip_min=config.number(f"{loss}.ratio_clip_min"),
        clip_max=config.number(f"{loss}.ratio_clip_max"),
        kl_penalty=config.number(f"{loss}.reference_policy_kl_penalty"),
        kl_type=config.text(f"{loss}.reference_policy_kl_type"),
        max_grad_norm=config.number("policy.max_grad_norm"),
        temperature=config.number("policy.generation.temperature"),
        top_p=config.number("policy.generation.top_p"),
        validation_temperature=config.number("thinkprune.validation.temperature"),
        validation_top_p=config.number("thinkprune.validation.top_p"),
        precision=config.text("policy.precision"),
        seed=config.count("grpo.seed"),
        data=_data(config),
        pretrained=config.text("policy.pretrained_checkpoint.path"),
        warmup_steps=config.count("thinkprune.warmup.steps"),
    )


def _data(config: Reader) -> tuple[str, ...]:
    """The last part of each training data path: a hub id as it is, of a local file only its name."""
    train = config.value("data.train")
    entries = config.readers("data.train") if isinstance(train, list) else [config.section("data.train")]
    paths = [path for entry in entries if entry is not None and (path := entry.text("data_path"))]
    return tuple(shown_path(path) for path in paths)


def shown_path(path: str) -> str:
    """A hub id as it is; of a local path the last part alone, since a card is public."""
    return path if is_hub_id(path) and not Path(path).suffix else Path(path).name
