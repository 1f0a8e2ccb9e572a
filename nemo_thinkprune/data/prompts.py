"""The prompts of the released ThinkPrune code, built by one function for training and for evaluation.

Their texts are those of checkpoints_tools/prompt_texts.py.  The families differ in the instruction after the
question only; `plain` is the bare question, for tasks that need no instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints_tools.prompt_texts import INSTRUCTIONS, chat
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.recipe.errors import UserError

FAMILIES = tuple(INSTRUCTIONS)


def messages(problem: Problem, *, family: str, length_hint: int | None) -> list[dict[str, str]]:
    """Return the chat for a problem.

    Args:
        problem: its question is used as it stands.
        family: deepseek, qwen or plain.
        length_hint: the response limit in tokens to name in the system prompt, or None for no such sentence.

    Raises:
        UserError: unknown family, or a length hint for `plain`, which has no system prompt to put it in.
    """
    if family not in INSTRUCTIONS:
        raise UserError(f"unknown thinkprune.prompt_family {family!r}: choose one of {', '.join(FAMILIES)}")
    if INSTRUCTIONS[family] is None and length_hint is not None:
        raise UserError(f"prompt family {family!r} has no system prompt: set thinkprune.length_hint=false")
    return chat(problem.question, family=family, length_hint=length_hint)


def render_prompt(tokenizer: Any, problem: Problem, *, family: str, length_hint: int | None) -> str:
    """Return the prompt as text: the tokenizer's own chat template with the generation prompt appended.

    Raises:
        UserError: as `messages`, or when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the model's tokenizer has no chat template: use a chat model or add one to its tokenizer"
        )
    turns = messages(problem, family=family, length_hint=length_hint)
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def encode_prompt(tokenizer: Any, problem: Problem, *, family: str, length_hint: int | None) -> list[int]:
    """Return the token ids of the prompt: the one function that training and evaluation both call.

    `tokenizer` is a transformers tokenizer.  The template already writes the special tokens, so none are
    added.

    Raises:
        UserError: as `render_prompt`.
    """
    text = render_prompt(tokenizer, problem, family=family, length_hint=length_hint)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem with the token ids of its prompt."""

    problem: Problem
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Problems that fit, their prompts in the same order, and the ids of those that do not fit."""

    problems: list[Problem]
    prompt_ids: list[list[int]]
    dropped: list[str]


def encode_prompts(
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    family: str,
    length_hint: int | None,
    max_input_seq_length: int,
) -> EncodedPrompts:
    """Encode all problems and drop those whose prompt has more than `max_input_seq_length` tokens.

    The caller reports `dropped`: a training set that shrinks silently is not the one that was asked for.

    Raises:
        UserError: as `encode_prompt`, or when no prompt fits.
    """
    kept: list[Problem] = []
    encoded: list[list[int]] = []
    dropped: list[str] = []
    shortest: int | None = None
    for problem in problems:
        ids = encode_prompt(tokenizer, problem, family=family, length_hint=length_hint)
        shortest = len(ids) if shortest is None else min(shortest, len(ids))
        if len(ids) > max_input_seq_length:
            dropped.append(problem.id)
        else:
            kept.append(problem)
            encoded.append(ids)
    if not kept:
        raise UserError(
            f"none of {len(problems)} prompts has at most {max_input_seq_length} tokens (the shortest has "
            f"{shortest}): raise data.max_input_seq_length"
        )
    return EncodedPrompts(kept, encoded, dropped)
