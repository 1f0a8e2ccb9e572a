import json

import pytest

from nemo_thinkprune.evaluation.run import evaluate_model, find_model
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict


@pytest.fixture
def hf_folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def make_checkpoint(root, *, config=None, own_config=False):
    step = root / "round_1_L128" / "checkpoints" / "step_20"
    (step / "policy" / "weights" / "iter_0000000").mkdir(parents=True)
    (step / "policy" / "tokenizer").mkdir()
    if own_config:
        (step / "policy" / "tokenizer" / "config.json").write_text("{}")
    if config is not None:
        (step / "config.yaml").write_text(json.dumps(config))
    return step


def test_a_hugging_face_folder_is_its_own_model(hf_folder):
    found = find_model(str(hf_folder))
    assert (found.folder, found.weights, found.name) == (str(hf_folder), None, "tiny")


def test_a_checkpoint_of_ours_brings_its_configuration(tmp_path):
    step = make_checkpoint(tmp_path, own_config=True)
    found = find_model(str(step))
    assert found.folder == str(step / "policy" / "tokenizer")
    assert found.weights == step / "policy" / "weights" / "iter_0000000"
    assert found.name == "round_1_L128_step_20"


def test_a_checkpoint_of_nemo_rl_points_to_its_model(tmp_path, hf_folder):
    step = make_checkpoint(tmp_path, config={"policy": {"model_name": str(hf_folder)}})
    assert find_model(str(step)).folder == str(hf_folder)


def test_what_cannot_be_evaluated_is_said(tmp_path, hf_folder):
    with pytest.raises(UserError, match="no folder"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="neither a Hugging Face folder"):
        find_model(str(tmp_path))
    step = make_checkpoint(tmp_path, config={"policy": {"model_name": str(tmp_path / "gone")}})
    with pytest.raises(UserError, match=r"step_20 was trained from .*gone"):
        find_model(str(step))
    (step / "config.yaml").write_text("policy: 3")
    with pytest.raises(UserError, match="does not name the model"):
        find_model(str(step))
    (step / "policy" / "tokenizer" / "config.json").write_text("{}")
    (step / "policy" / "weights" / "iter_0000000").rmdir()
    with pytest.raises(UserError, match="incomplete"):
        find_model(str(step))


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B_aime", "Qwen2.5-0.5B_aime.json"])
def test_the_job_says_everything_and_the_summary_comes_back(tmp_path, hf_folder, name):
    jobs = []

    def run(job):
        jobs.append(job)
        job.eval.out.with_suffix(".json").write_text('{"accuracy": 0.5, "mean_tokens": 9}')

    recipe = recipe_from_dict(
        {"policy": {"model_name": "other"}, "data": {"train": [{"data_path": "t.jsonl"}]}}
    )
    summary = evaluate_model(
        str(hf_folder), data="p.jsonl", limit=100, samples=4, temperature=0.6, top_p=0.9, top_k=5, limits=[10, 20],
        recipe=recipe, out=tmp_path / name, run=run,
    )  # fmt: skip
    assert summary["accuracy"] == 0.5
    assert (tmp_path / "Qwen2.5-0.5B_aime.json").exists()
    (job,) = jobs
    assert (job.kind, job.model, job.init_weights, job.limit) == ("eval", str(hf_folder), None, 100)
    assert job.recipe.policy.model_name == job.recipe.policy.tokenizer.name == str(hf_folder)
    spec = job.eval
    assert job.run_dir == tmp_path / "Qwen2.5-0.5B_aime"
    assert spec.out.with_suffix(".jsonl").name == "Qwen2.5-0.5B_aime.jsonl"  # how the worker names the rows
    assert (spec.data_path, spec.limit, spec.samples, spec.limits) == ("p.jsonl", 100, 4, (10, 20))
    assert (spec.temperature, spec.top_p, spec.top_k) == (0.6, 0.9, 5)
