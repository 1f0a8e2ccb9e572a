from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training import evaluate as module
from nemo_thinkprune.training.job import EvalSpec


class Sampled(Exception):
    """The evaluation got as far as sampling."""


def session(*, positions: int, scaled: bool) -> Any:
    model = SimpleNamespace(
        max_position_embeddings=positions, rope_scaling=SimpleNamespace() if scaled else None
    )
    spec = EvalSpec(
        data_path="p.jsonl",
        limit=90,
        samples=1,
        temperature=0.6,
        top_p=1.0,
        top_k=None,
        out=Path("o.json"),
    )
    return SimpleNamespace(
        job=SimpleNamespace(eval=spec),
        policy=SimpleNamespace(model=model),
        recipe=SimpleNamespace(grpo=SimpleNamespace(seed=0)),
    )


@pytest.fixture(autouse=True)
def _prompts_of_ten_and_eleven_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [SimpleNamespace(token_ids=[1] * count) for count in (11, 10)]
    monkeypatch.setattr(module, "load_problems", lambda path: [])
    monkeypatch.setattr(module, "encode", lambda *args, **keys: prompts)

    def collect(*args: object, **keys: object) -> None:
        raise Sampled

    monkeypatch.setattr(module, "collect", collect)


def test_prompt_and_response_must_fit_the_models_positions() -> None:
    with pytest.raises(UserError, match=r"prompt of 11 tokens .* lower the limit to 89 or less"):
        module.evaluate(session(positions=100, scaled=False))


@pytest.mark.parametrize(("positions", "scaled"), [(101, False), (100, True)])
def test_what_fits_or_is_stretched_is_sampled(positions: int, scaled: bool) -> None:
    with pytest.raises(Sampled):
        module.evaluate(session(positions=positions, scaled=scaled))
