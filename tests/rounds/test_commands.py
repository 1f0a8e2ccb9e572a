import json
import math
from pathlib import Path

import pytest

from nemo_thinkprune.algorithms.losses import LossConfig
from nemo_thinkprune.data.tiny_model import model_config
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe
from nemo_thinkprune.reporting import report
from nemo_thinkprune.rewards.length_rewards import LENGTH_REWARDS, Group, length_reward
from nemo_thinkprune.rounds import commands, prune
from nemo_thinkprune.rounds import evaluate as evaluation
from nemo_thinkprune.rounds.length_reward_formula import FORMULAS, length_reward_formula
from nemo_thinkprune.training import start

MEASURED = {"accuracy": 0.5, "mean_tokens": 41.5}


@pytest.fixture
def evaluated(monkeypatch):
    """The arguments of the evaluation that a command asks for."""
    seen = {}
    done = evaluation.Evaluation(MEASURED, Path("eval/name_aime_50.json"))
    monkeypatch.setattr(
        evaluation, "evaluate_model", lambda model, **keys: seen.update(keys, model=model) or done
    )
    return seen


def evaluate(model, *overrides, recipe=None, out=None):
    return commands.evaluate(
        str(model), overrides, data="d/aime.jsonl", limit=50, samples=2, temperature=0.6, top_p=1.0, top_k=None,
        within=[20], recipe=recipe, out=out,
    )  # fmt: skip


def test_an_evaluation_of_any_model_takes_the_defaults_and_overrides(evaluated):
    table = evaluate("org/name", "thinkprune.prompt_family=qwen")
    assert "50.0" in table and "41.5" in table
    assert "eval/name_aime_50.json\n" in table and "eval/name_aime_50.jsonl" in table
    assert evaluated["limits"] == [20]
    assert evaluated["model"] == "org/name"
    assert evaluated["recipe"].thinkprune.prompt_family == "qwen"
    assert evaluated["out"] is None


def test_an_evaluation_of_a_checkpoint_takes_the_recipe_it_was_trained_with(evaluated, tmp_path):
    step = tmp_path / "step_5"
    weights = step / "policy" / "weights" / "iter_0000000"
    weights.mkdir(parents=True)
    (step / "policy" / "tokenizer").mkdir()
    (step / "policy" / "tokenizer" / "config.json").write_text("{}")
    (step / "config.yaml").write_text(dump_yaml(load_recipe("quickstart")))
    for model in (step, weights):
        evaluate(model)
        assert evaluated["recipe"] == load_recipe("quickstart")
    evaluate(step, "grpo.seed=3", recipe="tiny-hf-cpu", out=tmp_path / "o.json")
    assert evaluated["recipe"] == load_recipe("tiny-hf-cpu", ["grpo.seed=3"])
    assert evaluated["out"] == tmp_path / "o.json"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config() | {"max_position_embeddings": 9999}))
    return folder


def test_prune_gives_the_rounds_a_local_model_and_the_weights_to_start_from(monkeypatch, model, tmp_path):
    seen = {}
    (tmp_path / "iter_0000000").mkdir()
    monkeypatch.setattr(
        prune, "prune", lambda recipe, run_dir, **keys: seen.update(keys, recipe=recipe, dir=run_dir)
    )
    overrides = [f"policy.model_name={model}", f"policy.pretrained_checkpoint.path={tmp_path}/iter_0000000"]
    with pytest.raises(UserError, match=r"thinkprune\.report_data = 'data/aime24\.jsonl': nothing at /"):
        commands.prune("thinkprune", overrides, None, say=print)
    assert not seen
    overrides.append("thinkprune.report_data=null")
    commands.prune("thinkprune", overrides, None, say=print)
    assert seen["recipe"].policy.model_name == str(model)
    assert seen["recipe"].policy.tokenizer.name == str(model)
    assert seen["start"] == tmp_path / "iter_0000000"
    assert str(seen["dir"]) == "runs/thinkprune"


def test_training_and_warmup_get_the_recipe_and_the_run_folder(monkeypatch, tmp_path):
    seen, said, written = [], [], []
    for name in ("train", "warmup"):
        monkeypatch.setattr(
            start, name, lambda recipe, run_dir, **_: seen.append((recipe, run_dir)) or run_dir
        )
    monkeypatch.setattr(report, "write_results", written.append)
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints" / "step_20").mkdir(parents=True)
    (run_dir / "checkpoints" / "step_3").mkdir()
    commands.train("thinkprune", ["grpo.seed=1"], run_dir, say=said.append)
    commands.warmup("quickstart", [], tmp_path)
    assert [(recipe.grpo.seed, folder) for recipe, folder in seen] == [(1, run_dir), (0, tmp_path)]
    assert written == [run_dir]
    assert f"thinkprune eval {run_dir}/checkpoints/step_20 " in said[-2]
    assert said[-1].endswith(f"thinkprune-ckpt release {run_dir}/checkpoints/step_20 OUT")


def test_the_run_folder_has_a_default(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "train", lambda recipe, run_dir, **_: run_dir)
    written = []
    monkeypatch.setattr(report, "write_results", written.append)
    commands.train("thinkprune", [], None, say=print)
    assert written == [Path("runs/thinkprune")]


@pytest.mark.parametrize("verb", [commands.prune, commands.quickstart])
def test_a_recipe_is_checked_before_anything_starts(verb, tmp_path):
    with pytest.raises(UserError, match="overlong_filtering"):
        verb("quickstart", ["grpo.overlong_filtering=true"], tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["check", "train", "prune", "warmup", "quickstart"])
@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("{target: 100, alfa: 1}", "thinkprune.length_reward: .*unknown 'alfa'"),
        ("{}", "thinkprune.length_reward: .*missing 'target'"),
        ("{target: abc}", "thinkprune.length_reward: .*target must be a number"),
        ("{target: -5}", "thinkprune.length_reward: .*target must be positive"),
    ],
)
def test_settings_of_the_length_reward_are_checked_before_anything_starts(verb, params, says, tmp_path):
    overrides = ["thinkprune.length_reward.name=l1_exact", f"thinkprune.length_reward.params={params}"]
    calls = {
        "check": lambda: commands.check("quickstart", overrides),
        "warmup": lambda: commands.warmup("quickstart", overrides, tmp_path / "run"),
    }
    run = calls.get(
        verb, lambda: getattr(commands, verb)("quickstart", overrides, tmp_path / "run", say=print)
    )
    with pytest.raises(UserError, match=says):
        run()
    assert not (tmp_path / "run").exists()


REWARDS = {
    "arora_zanette": {"alpha": 0.25},
    "l1_exact": {"target": 50, "alpha": 0.01},
    "l1_max": {"target": 50, "alpha": 0.01},
    "dapo_overlong": {"max_length": 100, "buffer": 30},
}


def test_every_length_reward_has_a_formula_and_a_case_here():
    assert set(REWARDS) == set(FORMULAS) == set(LENGTH_REWARDS) - {"none"}


@pytest.mark.parametrize("name", REWARDS)
def test_the_formula_that_check_shows_is_the_reward(name):
    overrides = [
        f"thinkprune.length_reward.name={name}",
        f"thinkprune.length_reward.params={json.dumps(REWARDS[name])}",
    ]
    formula = length_reward_formula(load_recipe("thinkprune", overrides))
    assert f"\n  {formula}\n    correct: 1 for a correct" in commands.check("thinkprune", overrides)
    reward = length_reward(name, REWARDS[name])
    group = Group(correct=(True, True, False), lengths=(40, 95, 70))
    fixed = {"mean": 67.5, "std": 27.5, "sigmoid": lambda x: 1 / (1 + math.exp(-x))}
    for correct in (True, False):
        for finished in (True, False):
            for length in (20, 60, 95, 120):
                values = {**fixed, "correct": correct, "finished": finished, "L": length}
                shown = eval(formula.removeprefix(f"{name}: "), {}, values)
                assert shown == pytest.approx(reward(correct, length, finished, group))


def test_check_says_which_gradient_the_kl_term_has():
    assert LossConfig().kl_score_function is True
    said = "times p / stop_gradient(p), NeMo-RL's score-function factor: the gradient of KL(p || ref)"
    assert said in commands.check("thinkprune", [])
    without = commands.check("thinkprune", ["loss_fn.reference_policy_kl_penalty=0"])
    assert "stop_gradient" not in without


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "/no/such/folder", ""], ids=range(4))
def test_a_model_that_cannot_be_one_is_refused_before_it_is_looked_for(name, evaluated):
    with pytest.raises(UserError, match="MODEL "):
        evaluate(name)
    with pytest.raises(UserError, match=r"policy\.model_name "):
        commands.warmup("quickstart", [f'policy.model_name="{name}"'.replace("\0", "\\0")], None)
    assert not evaluated
