"""The card: what it states, that it states nothing else, and that no value can break out of its place."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.models import small_config

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.prompt_texts import SYSTEM_PROMPT
from checkpoints_tools.proof.digest import TensorDigest
from checkpoints_tools.proof.manifest import Manifest
from checkpoints_tools.release import card_text as md
from checkpoints_tools.release.license import License, find_license
from checkpoints_tools.release.model_card import CardFacts, is_unedited, model_card
from checkpoints_tools.release.notes import dtype_to_name
from checkpoints_tools.release.run_facts import Recipe, RunFacts
from checkpoints_tools.release.run_stages import Results, Setting, Stage

MANIFEST = Manifest(
    {"w": TensorDigest("BF16", (2000, 3), "0" * 64)}, "keep", "step_20", "torch_dist", "thinkprune-ckpt 0.1.0"
)
BEFORE = Stage("start", None, 0.289, 0.012, 9824.2, 310.0)
AFTER = Stage("L = 3000", 3000, 0.301, 0.011, 4310.5, 150.2, 0.012, 0.008, -0.5612, round=2, is_this=True)
RECIPE = Recipe(
    limits=(4000, 3000, 2000), truncation="zero", prompt_family="deepseek", length_hint=True, estimator="grpo",
    prompts=128, generations=16, max_steps=190, lr=1e-6, lr_decay="constant", kl_penalty=0.001, kl_type="k3",
    clip_min=0.2, clip_max=0.2, temperature=1.0, top_p=1.0, seed=42, data=("train.jsonl",), max_relative_drop=0.1,
)  # fmt: skip
SETTING = Setting("data/aime24.jsonl", 30, 16, 32768, 0.6, 0.95)
RUN = RunFacts(
    step=20, round=2, limit=3000, base_model="Lab/Base-1B", recipe=RECIPE,
    results=Results("prune", SETTING, BEFORE, (AFTER,), None, ()),
)  # fmt: skip
FACTS = CardFacts(
    "Base-1B-ThinkPrune", "Lab/Base-1B-ThinkPrune", "Lab/Base-1B", License("mit", stated_in="the base model's card"),
    RUN, small_config("Qwen2ForCausalLM"), MANIFEST,
)  # fmt: skip
EVIL = (
    "`x` | y\n---\n# Owned\n<script>alert(1)</script> [a](javascript:b) ![c](d) \u202e\x1b[31m license: mit"
)


def head_and_body(card: str) -> tuple[dict, str]:
    _, head, body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(head), body


def code_blocks(body: str) -> list[str]:
    return re.findall(r"```python\n(.*?)\n```", body, flags=re.DOTALL)


def without_results() -> CardFacts:
    return replace(FACTS, run=replace(RUN, results=None))


def test_the_front_matter_is_what_the_hub_reads() -> None:
    head, _ = head_and_body(model_card(FACTS))
    assert head == {
        "base_model": "Lab/Base-1B",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["reasoning", "thinkprune", "grpo"],
    }


def test_the_table_has_accuracy_and_length_before_and_after() -> None:
    _, body = head_and_body(model_card(FACTS))
    rows = [line for line in body.splitlines() if line.startswith("|")][:4]
    assert rows[2:] == [
        "| before training | – | 28.9 ± 1.2 | – | 9,824 ± 310 | – |",
        "| **round 2: this model** | 3,000 | 30.1 ± 1.1 | +1.2 ± 0.8 | 4,310 ± 150 | −56% |",
    ]
    assert "Measured on `aime24.jsonl`, 30 problems × 16 samples, responses of up to 32,768 tokens" in body
    assert "temperature 0.6, top-p 0.95" in body and "4,000 → 3,000 tokens" in body


def test_the_snippets_are_python_and_hold_the_very_prompt() -> None:
    _, body = head_and_body(model_card(FACTS))
    prompt, transformers, vllm = code_blocks(body)
    for block in (transformers, vllm):
        ast.parse(block)
        assert "0.6" in block and "0.95" in block and "32768" in block
    names: dict = {}
    exec(prompt, names)  # our own text
    assert "limit of the training, 3,000 tokens; in the measurements above it named 32,768." in body
    assert names["model_id"] == "Lab/Base-1B-ThinkPrune"
    system, user = names["messages"]
    assert system["content"] == SYSTEM_PROMPT + " The output of the assistant should be within 3000 tokens."
    assert user["content"] == names["question"] + (
        " Let's think step by step and output the final answer within \\boxed{}."
    )


@pytest.mark.parametrize("family", ["deepseek", "qwen", "plain"])
@pytest.mark.parametrize("hint", [True, False])
def test_the_prompt_is_that_of_training(family: str, hint: bool) -> None:
    from nemo_thinkprune.data.problems import Problem
    from nemo_thinkprune.data.prompts import messages

    recipe = replace(RECIPE, prompt_family=family, length_hint=hint)
    _, body = head_and_body(model_card(replace(FACTS, run=replace(RUN, recipe=recipe))))
    names: dict = {}
    exec(code_blocks(body)[0], names)
    problem = Problem("p", names["question"], "1", "s")
    limit = 3000 if hint and family != "plain" else None
    assert names["messages"] == messages(problem, family=family, length_hint=limit)


def test_greedy_decoding_is_said_as_transformers_wants_it() -> None:
    setting = replace(SETTING, temperature=0.0)
    results = Results("prune", setting, BEFORE, (AFTER,), None, ())
    _, body = head_and_body(model_card(replace(FACTS, run=replace(RUN, results=results))))
    _, transformers, vllm = code_blocks(body)
    assert "do_sample=False" in transformers and "top_p" not in transformers + vllm


@pytest.mark.parametrize(
    ("stored", "configured", "named"),
    [
        ({"F32"}, "bfloat16", "float32"),
        ({"BF16"}, "float32", "bfloat16"),
        ({"BF16"}, "bfloat16", None),
        ({"BF16", "F32"}, "bfloat16", None),
        ({"BF16", "F32"}, "float16", "float32"),
        ({"F64", "F32"}, "float16", "float64"),
        ({"I64"}, "float16", None),
    ],
)
def test_the_snippets_load_the_stored_type(stored: set[str], configured: str, named: str | None) -> None:
    assert dtype_to_name(stored, configured) == named
    tensors = {kind: TensorDigest(kind, (2,), "0" * 64) for kind in stored}
    facts = replace(
        FACTS, manifest=replace(MANIFEST, tensors=tensors), config=replace(FACTS.config, dtype=configured)
    )
    _, transformers, vllm = code_blocks(head_and_body(model_card(facts))[1])
    assert f'dtype="{named or "auto"}"' in transformers
    assert (f'LLM(model=model_id, dtype="{named}")' if named else "LLM(model=model_id)") in vllm
    ast.parse(transformers + "\n" + vllm)


def test_what_was_not_measured_is_said_and_not_invented() -> None:
    _, body = head_and_body(model_card(without_results()))
    assert "not measured on held-out problems" in body and "%" not in body.split("## Use")[0]
    bare = CardFacts("Model", None, None, License(), RunFacts(), FACTS.config, MANIFEST)
    head, body = head_and_body(model_card(bare))
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["reasoning"]}
    assert "licence of the base model was not found" in body and "recipe (config.yaml) was not found" in body
    assert "ThinkPrune]" not in body and "prompt it was trained with is not recorded" in body
    assert "None" not in body


def test_the_numbers_a_checkpoint_was_selected_by_are_called_that() -> None:
    run = replace(RUN, results=None, selection_accuracy=0.41, selection_tokens=3011.0)
    _, body = head_and_body(model_card(replace(FACTS, run=run)))
    assert "accuracy was 41.0% at 3,011 tokens" in body and "selected by flatter it" in body


def test_an_unfinished_run_and_a_control_are_told() -> None:
    control = Stage("control", None, 0.3, 0.01, 9000.0, 300.0, 0.01, 0.01, -0.08)
    results = Results("prune", SETTING, BEFORE, (AFTER,), control, ("round 3 (limit 2000)",))
    _, body = head_and_body(model_card(replace(FACTS, run=replace(RUN, results=results))))
    assert "| control | – | 30.0 ± 1.0 |" in body and "without the falling limit" in body
    assert "Missing: round 3 (limit 2000)." in body


def test_the_released_control_is_not_called_thinkprune() -> None:
    run = replace(RUN, round=None, is_control=True, limit=32768)
    head, body = head_and_body(model_card(replace(FACTS, run=run)))
    assert head["tags"] == ["reasoning", "grpo"] and "It is the control of a ThinkPrune run" in body
    assert "4,000" not in body.split("## Results")[0]


def test_the_seal_shows_an_edit() -> None:
    card = model_card(FACTS)
    assert is_unedited(card) and is_unedited(model_card(replace(FACTS, title="-->\n\n<!--")))
    without_seal = card[: card.rindex("<!--")]
    edits = [card.replace("round 2", "round 9"), card.replace("\n", "\r\n"), card + "\n", card + "More.\n",
             card[:-1], without_seal, f"{without_seal}More.\n", f"\n{card}", ""]  # fmt: skip
    assert not any(is_unedited(edited) for edited in edits)


def test_that_the_checkpoint_has_the_same_digest_is_said_only_of_unconverted_tensors() -> None:
    said = "the checkpoint has the same"
    assert said in model_card(FACTS)
    assert said not in model_card(replace(FACTS, manifest=replace(MANIFEST, dtype_policy="fp32")))


def test_the_digest_and_how_to_check_it() -> None:
    _, body = head_and_body(model_card(FACTS))
    assert f"sha256:{MANIFEST.digest}" in body
    assert "thinkprune-ckpt verify . --manifest thinkprune-manifest.json" in body
    assert "6,000 parameters (BF16)" in body


def test_no_value_breaks_out_of_its_place() -> None:
    evil = EVIL
    recipe = replace(RECIPE, prompt_family=evil, estimator=evil, kl_type=evil, lr_decay=evil, data=(evil,),
                     precision=evil, pretrained=evil, length_reward=evil, truncation=evil)  # fmt: skip
    stage = replace(AFTER, label=evil, round=None)
    results = Results("prune", replace(SETTING, data=evil), BEFORE, (stage,), None, (evil,))
    run = replace(RUN, recipe=recipe, results=results)
    license = License("other", evil, None, "the base model's card")
    head, body = head_and_body(model_card(replace(FACTS, title=evil, run=run, license=license)))
    assert head["license"] == "other" and head["license_name"] == evil and "Owned" not in head
    assert set(head) <= {"base_model", "base_model_relation", "library_name", "pipeline_tag", "license",
                         "license_name", "tags"}  # fmt: skip
    assert not re.search(r"^#+ Owned|^---", body, flags=re.MULTILINE)
    assert "\u202e" not in body and "\x1b" not in body
    # Outside of code nothing is HTML or a link; in code it does not count.
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[a\]|(?<!\\)!\\?\[c", prose)
    tables = [line for line in body.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths == {7, 3}, "a value added a column"


@pytest.mark.parametrize(
    "text", ["a b", " lead", "x" * 300, "word " * 60, "a\n\tb", 'quote " and \\ back', "é…"]
)
def test_a_python_string_is_the_very_text(text: str) -> None:
    assert ast.literal_eval("\n".join(md.python_string(text, 4))) == text


def test_numbers_as_they_are_read() -> None:
    assert (md.share(0.968, 0.005), md.share(None), md.points(-0.02)) == ("96.8 ± 0.5", "–", "−2.0")
    assert (md.length(999.94), md.length(12345.6, 7.2), md.percent(-0.5)) == ("999.9", "12,346 ± 7", "−50%")


def license_of(folder: Path, card: str | None, **kwargs) -> License:
    if card is not None:
        (folder / "README.md").write_text(card)
    return find_license(
        None, [folder], carried=kwargs.get("carried", []), base_model=kwargs.get("base_model")
    )


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", ("apache-2.0", None, None)),
        ("---\r\nlicense: MIT\r\n---\r\n", ("mit", None, None)),
        ("---\nlicense: [llama3.1]\n---\n", ("llama3.1", None, None)),
        (
            "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://a.org/L?x=1\n---\n",
            ("other", "qwen-research", "https://a.org/L?x=1"),
        ),
        (
            "---\nlicense: other\nlicense_link: LICENSE\n---\n",
            ("other", None, "https://huggingface.co/Lab/B/blob/main/LICENSE"),
        ),
        ("---\nlicense: mit\nlicense_link: 'javascript:x'\n---\n", ("mit", None, None)),
        ("---\nlicense: mit\nlicense_link: ../../x\n---\n", ("mit", None, None)),
        ("---\nlicense: 'a b'\n---\n", (None, None, None)),
        ("---\nlicense: {x: y}\n---\n", (None, None, None)),
        ("---\n[\n---\n", (None, None, None)),
        ("---\n- a\n---\n", (None, None, None)),
        ("# no front matter, license: mit", (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_the_licence_in_the_base_models_card(tmp_path: Path, card: str | None, found: tuple) -> None:
    license = license_of(tmp_path, card, base_model="Lab/B")
    assert (license.id, license.name, license.link) == found


def test_a_licence_file_alone_is_named_and_not_interpreted(tmp_path: Path) -> None:
    license = license_of(tmp_path, None, carried=["LICENSE", "config.json"])
    assert (license.id, license.name, license.link) == ("other", "base-model-license", "LICENSE")
    inside = license_of(tmp_path, "---\nlicense: other\nlicense_link: LICENSE\n---\n", carried=["LICENSE"])
    assert inside.link == "LICENSE"


def test_a_given_licence_goes_before_all(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_license("gemma", [tmp_path], carried=[], base_model=None).id == "gemma"
    with pytest.raises(CheckpointError, match="not a licence identifier"):
        find_license("mit\nx: y", [], carried=[], base_model=None)


def test_the_architecture_is_named() -> None:
    from checkpoints_tools.hf_config import config_to_dict

    config = config_from_dict(config_to_dict(small_config("Qwen3ForCausalLM")))
    assert "architecture Qwen3ForCausalLM" in model_card(replace(FACTS, config=config))
