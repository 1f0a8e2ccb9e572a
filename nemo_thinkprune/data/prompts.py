"""The prompts of the released ThinkPrune code, built by one function for training and for evaluation.

Source: UCSB-NLP-Chang/ThinkPrune, examples/data_preprocess/preprocess_past_aime_amc.py.  The families differ
in the instruction after the question only; `plain` is the bare question, for tasks that need no instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nemo_thinkprune.data.problems import DEEPSEEK_INSTRUCTION, QWEN_INSTRUCTION, Problem
from nemo_thinkprune.recipe.errors import UserError

SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with "
    "the answer. The reasoning process and answer are enclosed within <think></think> and <answer></answer> "
    "tags, respectively, i.e., <think> reasoning process here</think><answer> answer here</answer>."
)
LENGTH_HINT = " The output of the assistant should be within {limit} tokens."

# The instruction after the question; None: no system prompt either.
_INSTRUCTIONS: Mapping[str, str | None] = MappingProxyType(
    {"deepseek": DEEPSEEK_INSTRUCTION, "qwen": QWEN_INSTRUCTION, "plain": None}
)
FAMILIES = tuple(_INSTRUCTIONS)


def messages(problem: Problem, *, family: str, length_hint: int | None) -> list[dict[str, str]]:
    """Return the chat for a problem.

    Args:
        problem: its question is used as it stands.
        family: deepseek, qwen or plain.
        length_hint: the response limit in tokens to name in the system prompt, or None for no such sentence.

    Raises:
        UserError: unknown family, or a length hint for `plain`, which has no system prompt to put it in.
    """
    if family not in _INSTRUCTIONS:
        raise UserError(f"unknown thinkprune.prompt_family {family!r}: choose one of {', '.join(FAMILIES)}")
    instruction = _INSTRUCTIONS[family]
    if instruction is None:
        if length_hint is not None:
            raise UserError(
                f"prompt family {family!r} has no system prompt: set thinkprune.length_hint=false"
            )
        return [{"role": "user", "content": problem.question}]
    hint = "" if length_hint is None else LENGTH_HINT.format(limit=length_hint)
    return [
        {"role": "system", "content": SYSTEM_PROMPT + hint},
        {"role": "user", "content": f"{problem.question} {instruction}"},
    ]


def render_prompt(tokenizer: Any, problem: Problem, *, family: str, length_hint: int | None) -> str:
    """Return the prompt as text: the tokenizer's own chat template with the generation prompt appended.

    Raises:
        UserError: as `messages`, or when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the model's tokenizer has no chat template: use a chat model or add one to its tokenizer"
        )
    chat = messages(problem, family=family, length_hint=length_hint)
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


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
