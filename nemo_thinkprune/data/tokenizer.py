"""Loading a model's tokenizer, and reading responses with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> Any:
    """Return the transformers tokenizer of a model folder or hub id, just as its tokenizer.json says.

    AutoTokenizer of transformers 5 rebuilds the tokenizer of some architectures, Qwen2 among them, from the
    vocabulary and a fixed pre-tokenizer, whatever tokenizer.json says; training and sampling must not depend
    on that.  The generic class keeps the file's own rules.

    Raises:
        UserError: when there is no tokenizer.json, or the hub cannot be reached.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer.json: save the model's fast tokenizer there with save_pretrained"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            str(folder if folder.is_dir() else model), revision=revision or "main"
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {model}: {str(error).splitlines()[0]}. Give a folder with "
            "tokenizer.json, or check the hub id and the connection"
        ) from error


def response_text(tokenizer: Any, ids: Sequence[int], *, finished: bool) -> str:
    """The response of token ids as text: without its end token (the last one if `finished`), others kept."""
    text: str = tokenizer.decode(list(ids[:-1] if finished else ids), skip_special_tokens=False)
    return text


def end_tokens(recipe: Recipe, model: Path, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end a response: the recipe's, else generation_config.json's, else the tokenizer's.

    Raises:
        UserError: There is none, or generation_config.json is damaged.
    """
    if recipe.policy.generation.stop_token_ids:
        return tuple(recipe.policy.generation.stop_token_ids)
    config = model / "generation_config.json"
    ids = None
    if config.is_file():
        try:
            ids = json.loads(config.read_text(encoding="utf-8"))["eos_token_id"]
        except KeyError:
            pass
        except (ValueError, TypeError) as error:
            raise UserError(f"{config} cannot be read: {error}") from error
    ids = tokenizer.eos_token_id if ids is None else ids
    ends = ids if isinstance(ids, list) else [ids]
    if not ends or not all(isinstance(end, int) for end in ends):
        raise UserError(f"{model} names no end token: set policy.generation.stop_token_ids")
    return tuple(ends)
