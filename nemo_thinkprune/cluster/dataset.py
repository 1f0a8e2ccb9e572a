"""Our problems as a data set of NeMo-RL; imported by NeMo-RL's processes only.

`cluster/settings.py` writes the entries of a run (see `cluster/data_plan.py`).  In a recipe of NeMo-RL's own:

    data:
      train:
        dataset_name: nemo_thinkprune.cluster.dataset.ThinkPruneProblems
        data_path: PRIME-RL/Eurus-2-RL-Data     # or a .jsonl, .json or .parquet file
        sources: [numina_amc_aime]
        prompt_family: deepseek
        length_hint: 4000
        tokenizer: ${policy.model_name}
        max_input_seq_length: ${data.max_input_seq_length}
        processor: thinkprune
        env_name: math

Only dataset_name and data_path are needed.  Such a set has each problem once, in the order of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nemo_rl.data.datasets.raw_dataset import RawDataset
from nemo_rl.data.interfaces import DatumSpec, TaskDataSpec

from nemo_thinkprune.cluster.names import PROCESSOR, TRAINING_TASK
from nemo_thinkprune.cluster.rows import LedgerOrder, RepeatedOrder, Row, Rows
from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import encode_prompt, render_prompt
from nemo_thinkprune.data.recipe_prompts import ProblemSet, encode, load_sets
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError

# What NeMo-RL itself reads in an entry, or adds to it from data.default.
_NEMO_RL_KEYS = ("dataset_name", "env_name", "processor", "seed")


class ThinkPruneProblems(RawDataset):
    """Problems from files or the hub with the prompts of `prompt_family`, for training or validation.

    Args:
        datasets: data sets with the keys data_path, split, input_key, output_key, sources and max_samples; or
            these keys themselves for a single one.
        prompt_family: deepseek, qwen or plain.
        length_hint: response limit in tokens that the system prompt names; None: no such sentence.
        tokenizer: the model's folder or hub id; prompts are encoded by it as the local engine does, once.
            None: by the tokenizer that NeMo-RL gives the processor.
        max_input_seq_length: longest prompt in tokens; longer ones are left out.  None: they are an error.
        prompts_per_step: training in the ledger's order, step by step; needs `epochs`, `max_steps` and
            `ledger_seed`, and data.shuffle = false.
        spare_steps: the ledger goes on for so many steps past the last, for a trainer that may lose batches.
        repeats: rows for each problem, one after the other, when there is no ledger.
        max_problems: at most so many problems, counted after the too long ones are left out.
        task_name: NeMo-RL's name for the set.

    Raises:
        UserError: unreadable data, an unknown key, or settings that contradict each other.
    """

    def __init__(
        self,
        *,
        datasets: Sequence[Mapping[str, Any]] | None = None,
        data_path: str | None = None,
        split: str | None = None,
        input_key: str | None = None,
        output_key: str | None = None,
        sources: Sequence[str] | None = None,
        max_samples: int | None = None,
        prompt_family: str = "deepseek",
        length_hint: int | None = None,
        tokenizer: str | None = None,
        max_input_seq_length: int | None = None,
        prompts_per_step: int | None = None,
        epochs: int = 1,
        max_steps: int = sys.maxsize,
        ledger_seed: int = 42,
        spare_steps: int = 0,
        repeats: int = 1,
        max_problems: int | None = None,
        task_name: str = TRAINING_TASK,
        **others: Any,
    ) -> None:
        _refuse_others(others)
        single = {
            "data_path": data_path,
            "split": split,
            "input_key": input_key,
            "output_key": output_key,
            "sources": sources,
            "max_samples": max_samples,
        }
        problems = load_sets(_problem_sets(datasets, single))
        rows = _rows(problems, tokenizer, prompt_family, length_hint, max_input_seq_length)[:max_problems]
        order: LedgerOrder | RepeatedOrder
        if prompts_per_step is None:
            order = RepeatedOrder(len(rows), repeats)
        else:
            ledger = Ledger(len(rows), prompts_per_step, ledger_seed)
            last = ledger.last_step(epochs=epochs, max_steps=max_steps)
            order = LedgerOrder(ledger, last + spare_steps)
        self.task_name = task_name
        self.dataset = Rows(task_name, rows, order, prompt_family, length_hint)
        self.val_dataset = None

    def set_processor(self) -> None:
        """Use `process_problem`, registered or not.

        Raises:
            UserError: the entry names another one.
        """
        named = self.data_config.get("processor") or PROCESSOR
        if named != PROCESSOR:
            raise UserError(
                f"processor = {named!r}: the prompts are built by prompt_family; set processor: {PROCESSOR}"
            )
        self.processor = process_problem


def process_problem(
    datum_dict: dict[str, Any],
    task_data_spec: TaskDataSpec,
    tokenizer: Any,
    max_seq_length: int | None,
    idx: int,
) -> DatumSpec:
    """Return a row as NeMo-RL trains it: one user message that is the whole prompt, token ids int64 [length].

    Raises:
        UserError: the prompt is longer than `max_seq_length`: nothing is ever cut.
    """
    row: Row = datum_dict["row"]
    how = {"family": datum_dict["family"], "length_hint": datum_dict["length_hint"]}
    text, ids = row.text, row.token_ids
    if text is None or ids is None:
        text, ids = render_prompt(tokenizer, row.problem, **how), encode_prompt(tokenizer, row.problem, **how)
    if max_seq_length is not None and len(ids) > max_seq_length:
        raise UserError(
            f"the prompt of problem {row.problem.id} has {len(ids)} tokens, more than data.max_input_seq_length = "
            f"{max_seq_length}: give the data set tokenizer and max_input_seq_length, so that it is left out"
        )
    return {
        "message_log": [{"role": "user", "content": text, "token_ids": torch.tensor(ids, dtype=torch.int64)}],
        "length": len(ids),
        "extra_env_info": {
            "problem_id": row.problem.id,
            "question": row.problem.question,
            "ground_truth": row.problem.answer,
        },
        "loss_multiplier": 1.0,
        "idx": idx,
        "task_name": datum_dict["task_name"],
    }


def _problem_sets(
    datasets: Sequence[Mapping[str, Any]] | None, single: Mapping[str, Any]
) -> list[ProblemSet]:
    given = [key for key, value in single.items() if value is not None]
    if datasets is not None and given:
        raise UserError(f"give either datasets or {', '.join(given)}, not both")
    entries = [single] if datasets is None else list(datasets)
    known = ProblemSet.__dataclass_fields__
    for entry in entries:
        if unknown := sorted(set(entry) - set(known)):
            raise UserError(f"a data set has no key {unknown[0]!r}; it has {', '.join(known)}")
        if not entry.get("data_path"):
            raise UserError("a data set needs data_path: a .jsonl, .json or .parquet file, or a hub id")
    return [ProblemSet(**entry) for entry in entries]


def _rows(
    problems: Sequence[Problem],
    tokenizer: str | None,
    family: str,
    length_hint: int | None,
    max_input_seq_length: int | None,
) -> list[Row]:
    """Encode once, in this process: loader processes and actors get the ids, not a tokenizer."""
    if tokenizer is None:
        if max_input_seq_length is not None:
            raise UserError("max_input_seq_length of a data set needs its tokenizer: give the model's folder")
        return [Row(problem) for problem in problems]
    loaded = load_tokenizer(tokenizer)
    found = encode(
        loaded,
        problems,
        family=family,
        length_hint=length_hint,
        max_input_seq_length=sys.maxsize if max_input_seq_length is None else max_input_seq_length,
        what="the data set",
    )
    return [
        Row(
            prompt.problem,
            render_prompt(loaded, prompt.problem, family=family, length_hint=length_hint),
            prompt.token_ids,
        )
        for prompt in found.prompts
    ]


def _refuse_others(others: Mapping[str, Any]) -> None:
    """A key that would change nothing is a mistake, unless it is empty or NeMo-RL's own."""
    unknown = [key for key, value in others.items() if value and key not in _NEMO_RL_KEYS]
    if unknown:
        raise UserError(
            f"{', '.join(unknown)}: this data set has no such key; its prompts come from prompt_family, and its "
            f"keys are in the documentation of {ThinkPruneProblems.__name__}"
        )
