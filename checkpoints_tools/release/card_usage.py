"""The section of a model card that shows how to use the model, with the prompt it was trained with."""

from __future__ import annotations

import json

from checkpoints_tools.prompt_texts import INSTRUCTIONS, chat
from checkpoints_tools.release import card_text as md
from checkpoints_tools.release.run_facts import RunFacts

_EXAMPLE = "What is the sum of the first 100 positive integers?"
_ANY = "Your question."
_ROOM = 4096


def usage(run: RunFacts, repo: str | None, dtype: str | None = None) -> list[str]:
    """The lines of the section; `repo` is the model's hub id, without one the snippet reads the present folder.

    `dtype` is what the model must be loaded with (torch's name), None where config.json says it.
    """
    family = run.recipe.prompt_family if run.recipe else None
    known = family in INSTRUCTIONS
    hint = run.limit if known and run.recipe and run.recipe.length_hint else None
    question = _EXAMPLE if known and family != "plain" else _ANY
    prompt = [
        model_line(repo),
        f"question = {json.dumps(question)}",
        "messages = [",
        *_messages(family if known and family else "plain", hint),
        "]",
    ]
    return [
        _prompt_note(known, family, hint, _measured_limit(run)),
        "",
        "```python",
        *prompt,
        "```",
        "",
        "With Transformers:",
        "",
        "```python",
        *_transformers(run, dtype),
        "```",
        "",
        "With vLLM:",
        "",
        "```python",
        *_vllm(run, dtype),
        "```",
    ]


def model_line(repo: str | None) -> str:
    """The line of the snippet that says where the model is."""
    return f"model_id = {json.dumps(repo)}" if repo else 'model_id = "."  # this folder, or its id on the hub'


def _measured_limit(run: RunFacts) -> int | None:
    """The limit that prompts named when the final results were measured: that of the measurement."""
    return run.results.setting.limit if run.results and run.results.kind == "prune" else None


def _prompt_note(known: bool, family: str | None, hint: int | None, measured: int | None) -> str:
    if not known:
        return "The prompt it was trained with is not recorded; this asks the bare question."
    if family == "plain":
        return "The model was trained on the bare question in the tokenizer's chat template."
    note = "The model was trained with this system prompt and instruction, in the tokenizer's chat template."
    if hint is None:
        return note
    other = f"; in the measurements above it named {measured:,}" if measured and measured != hint else ""
    return f"{note} It names the limit of the training, {hint:,} tokens{other}."


def _messages(family: str, hint: int | None) -> list[str]:
    lines = []
    marker = "QUESTION"
    for message in chat(marker, family=family, length_hint=hint):
        role, content = json.dumps(message["role"]), message["content"]
        if message["role"] == "user":
            rest = content.removeprefix(marker)
            value = ["question" + (f" + {json.dumps(rest)}" if rest else "")]
        else:
            value = md.python_string(content, 4)
        lines += f'    {{"role": {role}, "content": {chr(10).join(value)}}},'.split("\n")
    return lines


def _sampling(run: RunFacts) -> tuple[int, float | None, float | None]:
    """Largest response in tokens, temperature and top-p that the model was measured with."""
    recipe, setting = run.recipe, run.results.setting if run.results else None
    limits = (setting and setting.limit, recipe and recipe.long_limit, run.limit)
    temperature, top_p = (setting.temperature, setting.top_p) if setting else (None, None)
    if recipe and temperature is None:
        temperature, top_p = recipe.validation_temperature, recipe.validation_top_p
    return next((limit for limit in limits if limit), _ROOM), temperature, top_p


def _transformers(run: RunFacts, dtype: str | None) -> list[str]:
    room, temperature, top_p = _sampling(run)
    options = [f"max_new_tokens={room}"]
    if temperature == 0:
        options.append("do_sample=False")
    elif temperature is not None:
        options += ["do_sample=True", f"temperature={float(temperature)}"]
        options += [f"top_p={float(top_p)}"] if top_p is not None else []
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "tokenizer = AutoTokenizer.from_pretrained(model_id)",
        f'model = AutoModelForCausalLM.from_pretrained(model_id, dtype="{dtype or "auto"}", device_map="auto")',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ").to(model.device)",
        f"output = model.generate(**inputs, {', '.join(options)})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _vllm(run: RunFacts, dtype: str | None) -> list[str]:
    room, temperature, top_p = _sampling(run)
    options = [f"temperature={float(temperature)}"] if temperature is not None else []
    options += [f"top_p={float(top_p)}"] if top_p is not None and temperature != 0 else []
    named = f', dtype="{dtype}"' if dtype else ""
    return [
        "from vllm import LLM, SamplingParams",
        "",
        f"sampling = SamplingParams({', '.join([*options, f'max_tokens={room}'])})",
        f"llm = LLM(model=model_id{named})",
        "print(llm.chat(messages, sampling)[0].outputs[0].text)",
    ]
