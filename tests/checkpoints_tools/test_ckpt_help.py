"""The help: at once, since it loads nothing it does not need, and readable on a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = ("import", "export", "reshard", "verify", "inspect", "release", "plan",
         "plan import", "plan export", "plan reshard")  # fmt: skip
HEAVY = ("numpy", "rich", "yaml", "huggingface_hub", "torch", "transformers", "checkpoints_tools.weight_map")
SCRIPT = """
import contextlib, io, json, sys
from checkpoints_tools.cli import app
texts = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app([*words.split(), "--help"], prog_name="thinkprune-ckpt")
    texts[words] = out.getvalue()
print(json.dumps({"texts": texts, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def answer() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(["", *VERBS])],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "80"},
    )
    return json.loads(done.stdout)


def test_help_loads_nothing_heavy(answer: dict) -> None:
    assert "typer" in answer["modules"] and "checkpoints_tools.cli" in answer["modules"]
    assert [module for module in HEAVY if module in answer["modules"]] == []


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns_and_explains_every_option(answer: dict, verb: str) -> None:
    text = answer["texts"][verb]
    assert text.startswith(f"Usage: {' '.join(['thinkprune-ckpt', *verb.split()])} [OPTIONS]")
    assert max(map(len, text.splitlines())) <= 80
    assert "range>" not in text and "<str>" not in text  # types of the program, not of its user


def test_the_arguments_of_verify_are_called_as_in_its_answer(answer: dict) -> None:
    usage = answer["texts"]["verify"].splitlines()[0].replace("{A}", "A")
    assert usage.endswith("[OPTIONS] A [B]")
