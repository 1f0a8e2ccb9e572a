"""The fixed work of the step benchmark, and how its two workers talk to the benchmark.

One optimizer step of GRPO on a random Qwen2 of 4,448,512 parameters in float32 and on one thread: 8 prompts of 32
tokens, 8 responses each of 128 tokens, no KL term, one update over all of them, AdamW. The end token is one that the
model has no logit for, so that every response has its full length; rewards are 0 and 1 in turns. Imports neither
trainer, so that it can be read by both.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

PROMPTS, SAMPLES, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 8, 32, 128
VOCABULARY = 1000
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "torch_dtype": "float32",
    "eos_token_id": VOCABULARY,
    "pad_token_id": 0,
}
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-5, 0.01, (0.9, 0.999)


def words() -> list[str]:
    """The vocabulary, a word for each token of the model, and the end token beyond it."""
    return [f"w{i}" for i in range(VOCABULARY)] + ["<end>"]


def prompts() -> list[list[int]]:
    """Token ids of the prompts, [PROMPTS][PROMPT_TOKENS]."""
    return [[(17 * p + 31 * t + 5) % VOCABULARY for t in range(PROMPT_TOKENS)] for p in range(PROMPTS)]


def reward(index: int) -> float:
    """The reward of the response with this number in its group."""
    return float(index % 2)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of one token a word, as tokenizer.json and its configuration."""
    vocabulary = {word: number for number, word in enumerate(words())}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    added = {"id": VOCABULARY, "content": "<end>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "post_processor", "decoder")
    )
    tokenizer = {
        "version": "1.0",
        **parts,
        "added_tokens": [{**added, **flags}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@dataclass(slots=True)
class Phases:
    """CPU seconds by phase of the step that is running."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the CPU seconds of the block to `name`."""
        start = time.process_time()
        try:
            yield
        finally:
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + time.process_time() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its CPU seconds added to `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call


class Line:
    """A worker's line to the benchmark: a row of JSON on what was standard output, for each word on its input."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print goes to standard error
        self.phases = Phases()
        self._cpu = self._wall = 0.0

    def say(self, row: dict[str, Any]) -> None:
        """Send a row."""
        self._out.write(json.dumps(row) + "\n")

    def wait(self) -> bool:
        """Wait until the next step is asked for and start its clocks; False when there is none."""
        asked = sys.stdin.readline().strip() == "step"
        self.phases.cpu_s.clear()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return asked

    def done(self, **facts: Any) -> None:
        """Send what the step took, with other facts about it."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        self.say(
            {"cpu_s": cpu, "wall_s": wall, "phases": dict(self.phases.cpu_s), "peak_rss_mib": peak, **facts}
        )
