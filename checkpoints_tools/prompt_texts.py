"""The texts around a question that a model is trained with, and is to be used with afterwards.

Source: UCSB-NLP-Chang/ThinkPrune, examples/data_preprocess/preprocess_past_aime_amc.py. They stand here, on the
lowest floor, because training builds its prompts from them and a model card tells its readers to.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DEEPSEEK_INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
QWEN_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with "
    "the answer. The reasoning process and answer are enclosed within <think></think> and <answer></answer> "
    "tags, respectively, i.e., <think> reasoning process here</think><answer> answer here</answer>."
)
LENGTH_HINT = " The output of the assistant should be within {limit} tokens."

# The instruction after the question; None: no system prompt either.
INSTRUCTIONS: Mapping[str, str | None] = MappingProxyType(
    {"deepseek": DEEPSEEK_INSTRUCTION, "qwen": QWEN_INSTRUCTION, "plain": None}
)


def chat(question: str, *, family: str, length_hint: int | None) -> list[dict[str, str]]:
    """The messages for a question; a `length_hint` in tokens is named in the system prompt.

    Raises:
        KeyError: The family is none of INSTRUCTIONS.
    """
    instruction = INSTRUCTIONS[family]
    if instruction is None:
        return [{"role": "user", "content": question}]
    hint = "" if length_hint is None else LENGTH_HINT.format(limit=length_hint)
    return [
        {"role": "system", "content": SYSTEM_PROMPT + hint},
        {"role": "user", "content": f"{question} {instruction}"},
    ]
