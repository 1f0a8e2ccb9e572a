import json

import pytest

from nemo_thinkprune.data.tiny_model import model_config
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe, recipe_from_dict, with_values
from nemo_thinkprune.recipe.model_source import locate
from nemo_thinkprune.rounds.evaluate import evaluate_model
from nemo_thinkprune.training import models
from nemo_thinkprune.training.manifest import seal
from nemo_thinkprune.training.models import find_model, ready_model, starting_model

WEIGHTS = "policy/weights/iter_0000000"


@pytest.fixture
def hf_folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config()))
    return folder


def make_checkpoint(root, *, config=None, own_config=False):
    step = root / "round_1_L128" / "checkpoints" / "step_20"
    (step / WEIGHTS).mkdir(parents=True)
    (step / WEIGHTS / "metadata.json").write_text("{}")
    (step / "policy" / "tokenizer").mkdir()
    if own_config:
        (step / "policy" / "tokenizer" / "config.json").write_text(json.dumps(model_config()))
    if config is not None:
        (step / "config.yaml").write_text(json.dumps(config))
    return step


def recipe_of(model, **values):
    recipe = recipe_from_dict(
        {
            "policy": {"model_name": str(model)},
            "data": {"train": [{"data_path": "t.jsonl"}], "max_input_seq_length": 64},
            "thinkprune": {"limits": [100]},
        }
    )
    return with_values(recipe, {key.replace("__", "."): value for key, value in values.items()})


def test_a_hugging_face_folder_is_its_own_model(hf_folder):
    found = find_model(str(hf_folder))
    assert (found.folder, found.weights, found.step, found.name) == (str(hf_folder), None, None, "tiny")


@pytest.mark.parametrize("part", ["", WEIGHTS])
def test_a_checkpoint_of_ours_brings_its_configuration(tmp_path, part):
    step = make_checkpoint(tmp_path, own_config=True)
    found = find_model(str(step / part))
    assert found.folder == str(step / "policy" / "tokenizer")
    assert (found.weights, found.step) == (step / WEIGHTS, step)
    assert found.name == "round_1_L128_step_20"


def test_a_checkpoint_of_nemo_rl_points_to_its_model(tmp_path, hf_folder):
    step = make_checkpoint(tmp_path, config={"policy": {"model_name": str(hf_folder)}})
    assert find_model(str(step)).folder == str(hf_folder)
    (step / "config.yaml").write_text("policy: {model_name: Qwen/QwQ-32B}")
    assert locate(str(step)).folder == "Qwen/QwQ-32B"


def test_what_cannot_be_used_is_said_with_what_to_give_instead(tmp_path, hf_folder):
    with pytest.raises(UserError, match="no folder"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"no folder .*: pass policy\.model_name=FOLDER"):
        starting_model(recipe_of(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"no folder model, .*: run `thinkprune quickstart`, then this in"):
        starting_model(load_recipe("quickstart"))
    with pytest.raises(UserError, match=r"has no config\.json and no policy/weights"):
        find_model(str(tmp_path))
    step = make_checkpoint(tmp_path, config={"policy": {"model_name": str(tmp_path / "gone")}})
    with pytest.raises(UserError, match=r"step_20 was trained from .*gone"):
        find_model(str(step))
    for text in ("policy: 3", "a: [1", ""):
        (step / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"pretrained_checkpoint\.path={step}/{WEIGHTS}"):
            find_model(str(step))
    alone = tmp_path / "imported" / "iter_0000000"
    alone.mkdir(parents=True)
    with pytest.raises(UserError, match=r"weights without their model: give .*pretrained_checkpoint\.path"):
        find_model(str(alone))
    (step / "policy" / "tokenizer" / "config.json").write_text("{}")
    (step / WEIGHTS / "metadata.json").unlink()
    (step / WEIGHTS).rmdir()
    with pytest.raises(UserError, match="incomplete"):
        find_model(str(step))


def test_a_recipe_may_start_from_a_checkpoint_and_is_checked_against_its_model(tmp_path):
    step = make_checkpoint(tmp_path, own_config=True)
    for start in (step, step / WEIGHTS):
        placed, source = ready_model(recipe_of(start))
        assert placed.policy.model_name == str(step / "policy" / "tokenizer")
        assert source.weights == step / WEIGHTS
    wide = {
        "policy__megatron_cfg__tensor_model_parallel_size": 4,
        "policy__make_sequence_length_divisible_by": 4,
        "cluster__gpus_per_node": 4,
    }
    with pytest.raises(UserError, match="num_key_value_heads = 2"):
        ready_model(recipe_of(step, **wide))


def test_weights_given_beside_the_model_replace_its_own(tmp_path, hf_folder):
    step = make_checkpoint(tmp_path)
    for given in (step, step / WEIGHTS):
        recipe = recipe_of(hf_folder, policy__pretrained_checkpoint={"path": str(given)})
        source = starting_model(recipe)
        assert (source.folder, source.weights) == (str(hf_folder), step / WEIGHTS)
    gone = recipe_of(hf_folder, policy__pretrained_checkpoint={"path": str(tmp_path / "gone")})
    with pytest.raises(UserError, match="there is no such folder"):
        starting_model(gone)


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_refused_by_name_wherever_it_is_given(tmp_path, hf_folder, damage):
    step = make_checkpoint(tmp_path, own_config=True)
    seal(step)
    assert find_model(str(step)).step == step
    file = step / WEIGHTS / "metadata.json"
    if damage == "changed":
        file.write_text("[]")
    elif damage == "missing":
        file.unlink()
    else:
        (step / "manifest.json").write_text("{")
    named = "manifest.json" if damage == "manifest" else "metadata.json"
    for model in (step, step / WEIGHTS):
        with pytest.raises(UserError, match=f"step_20 is not whole and is not used: .*{named}"):
            find_model(str(model))
    with pytest.raises(UserError, match="step_20 is not whole"):
        starting_model(recipe_of(hf_folder, policy__pretrained_checkpoint={"path": str(step / WEIGHTS)}))


def test_a_model_from_the_hub_is_checked_once_it_is_there(monkeypatch, hf_folder):
    monkeypatch.setattr(models, "_download", lambda name, weights: hf_folder)
    wide = {
        "policy__megatron_cfg__tensor_model_parallel_size": 4,
        "policy__make_sequence_length_divisible_by": 4,
        "cluster__gpus_per_node": 4,
    }
    with pytest.raises(UserError, match="num_key_value_heads = 2"):
        ready_model(recipe_of("org/tiny", **wide))
    (hf_folder / "config.json").write_text(json.dumps(model_config() | {"model_type": "mamba"}))
    with pytest.raises(UserError, match="model_type 'mamba'"):
        ready_model(recipe_of("org/tiny"))


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B_aime", "Qwen2.5-0.5B_aime.json"])
def test_the_job_says_everything_and_the_summary_comes_back(tmp_path, hf_folder, name):
    jobs = []

    def run(job):
        jobs.append(job)
        job.eval.out.with_suffix(".json").write_text('{"accuracy": 0.5, "mean_tokens": 9}')

    recipe = recipe_from_dict(
        {"policy": {"model_name": "other"}, "data": {"train": [{"data_path": "t.jsonl"}]}}
    )
    done = evaluate_model(
        str(hf_folder), data="p.jsonl", limit=100, samples=4, temperature=0.6, top_p=0.9, top_k=5, limits=[10, 20],
        recipe=recipe, out=tmp_path / name, run=run,
    )  # fmt: skip
    assert done.summary["accuracy"] == 0.5
    assert done.path == tmp_path / "Qwen2.5-0.5B_aime.json" and done.path.exists()
    assert done.rows == tmp_path / "Qwen2.5-0.5B_aime.jsonl"
    (job,) = jobs
    assert (job.kind, job.model, job.init_weights, job.limit) == ("eval", str(hf_folder), None, 100)
    assert job.recipe.policy.model_name == job.recipe.policy.tokenizer.name == str(hf_folder)
    spec = job.eval
    assert job.run_dir == tmp_path / "Qwen2.5-0.5B_aime"
    assert spec.out.with_suffix(".jsonl").name == "Qwen2.5-0.5B_aime.jsonl"  # how the worker names the rows
    assert (spec.data_path, spec.limit, spec.samples, spec.limits) == ("p.jsonl", 100, 4, (10, 20))
    assert (spec.temperature, spec.top_p, spec.top_k) == (0.6, 0.9, 5)


def test_results_of_two_runs_do_not_share_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []
    for run in ("a", "b"):
        step = make_checkpoint(tmp_path / run, own_config=True)
        step.parents[1].rename(tmp_path / run / f"run_{run}")
        paths.append(evaluated(tmp_path / run / f"run_{run}" / "checkpoints" / "step_20").path)
    assert [str(path) for path in paths] == ["eval/run_a_step_20_p_100.json", "eval/run_b_step_20_p_100.json"]


def evaluated(model, *, limit=100, out=None, **values):
    def run(job):
        (job.eval.out).parent.mkdir(parents=True, exist_ok=True)
        job.eval.out.write_text('{"accuracy": 0.5}')

    return evaluate_model(
        str(model), data="p.jsonl", limit=limit, samples=1, temperature=0.6, top_p=0.9, out=out, run=run,
        recipe=recipe_of("other", **values),
    )  # fmt: skip


def test_training_settings_do_not_stand_in_the_way_of_an_evaluation(hf_folder, tmp_path):
    training_only = {
        "thinkprune__limits": [4000],
        "grpo__num_prompts_per_step": 3,
        "cluster__gpus_per_node": 2,
    }
    assert evaluated(hf_folder, out=tmp_path / "o", **training_only).path == tmp_path / "o.json"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"policy__megatron_cfg__tensor_model_parallel_size": 2}, "use a multiple of 2 ranks"),
        (
            {"policy__megatron_cfg__tensor_model_parallel_size": 4, "cluster__gpus_per_node": 4},
            "num_key_value_heads = 2",
        ),
        (
            {"policy__megatron_cfg__pipeline_model_parallel_size": 3, "cluster__gpus_per_node": 3},
            "do not divide over 3 pipeline stages",
        ),
        ({"policy__megatron_cfg__context_parallel_size": 2, "cluster__gpus_per_node": 2}, "context_parallel"),
        ({"limit": 100_000}, "--limit 100000: the model knows"),
    ],
)
def test_an_evaluation_that_cannot_run_is_refused_before_it_starts(hf_folder, values, says):
    with pytest.raises(UserError, match=says):
        evaluated(hf_folder, **values)


def test_a_result_cannot_replace_a_folder(hf_folder, tmp_path):
    (tmp_path / "o.json").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        evaluated(hf_folder, out=tmp_path / "o")
