"""Our problems through NeMo-RL's own loading, processing and batching."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.nemo_rl import require_nemo_rl
from support.problem_files import LIMIT, local_plan, make_recipe, validation_rows, write_parquet

from nemo_thinkprune.cluster.data_plan import data_plan, training_entry, validation_entry
from nemo_thinkprune.cluster.names import DATASET
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values

HUB_ID = "PRIME-RL/Eurus-2-RL-Data"


@pytest.fixture(scope="module", autouse=True)
def nemo_rl() -> None:
    require_nemo_rl()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_recipe(tmp_path_factory.mktemp("dataset"))


def tokenizer_of(recipe: Any) -> Any:
    """As NeMo-RL's get_tokenizer loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(recipe.policy.model_name)


def data_config(recipe: Any, *, limit: int = LIMIT, num_workers: int = 0) -> dict[str, Any]:
    """NeMo-RL's section `data` for the recipe."""
    name = recipe.policy.model_name
    return {
        "max_input_seq_length": recipe.data.max_input_seq_length,
        "shuffle": False,
        "num_workers": num_workers,
        "train": training_entry(recipe, tokenizer=name, limit=limit, env_name="thinkprune"),
        "validation": validation_entry(recipe, tokenizer=name, limit=limit, env_name="thinkprune"),
        "default": {
            "prompt_file": "examples/prompts/cot.txt",
            "processor": "math_hf_data_processor",
        },
    }


def datasets(recipe: Any, **values: Any) -> Any:
    from nemo_rl.data.utils import setup_response_data

    return setup_response_data(tokenizer_of(recipe), data_config(recipe, **values), None)


def loader(recipe: Any, *, num_workers: int = 0) -> Any:
    """The training loader as NeMo-RL's setup makes it."""
    from nemo_rl.data.collate_fn import rl_collate_fn
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(
        datasets(recipe)[0],
        batch_size=recipe.grpo.num_prompts_per_step,
        shuffle=False,
        collate_fn=rl_collate_fn,
        drop_last=True,
        num_workers=num_workers,
    )


def ids_of(batch: Any) -> list[str]:
    return [info["problem_id"] for info in batch["extra_env_info"]]


def local_steps(recipe: Any) -> list[list[str]]:
    plan, _ = local_plan(recipe)
    steps = range(1, plan.last_step + 1)
    return [[plan.train[index].problem.id for index in plan.ledger.take(step)] for step in steps]


def test_every_step_trains_what_the_local_engine_trains(recipe: Any) -> None:
    from nemo_thinkprune.data.prompts import render_prompt
    from nemo_thinkprune.data.tokenizer import load_tokenizer

    plan, _ = local_plan(recipe)
    tokenizer = load_tokenizer(recipe.policy.model_name)
    batches = list(loader(recipe))
    assert len(batches) == plan.last_step == 8
    for step, batch in enumerate(batches, 1):
        prompts = [plan.train[index] for index in plan.ledger.take(step)]
        assert [len(log) for log in batch["message_log"]] == [1, 1, 1]
        messages = [log[0] for log in batch["message_log"]]
        assert [message["token_ids"].tolist() for message in messages] == [p.token_ids for p in prompts]
        texts = [render_prompt(tokenizer, p.problem, family="deepseek", length_hint=LIMIT) for p in prompts]
        assert [message["content"] for message in messages] == texts
        assert {message["role"] for message in messages} == {"user"}
        assert batch["length"].tolist() == [len(p.token_ids) for p in prompts]
        assert batch["extra_env_info"] == [
            {"problem_id": p.problem.id, "question": p.problem.question, "ground_truth": p.problem.answer}
            for p in prompts
        ]
        assert batch["loss_multiplier"].tolist() == [1.0, 1.0, 1.0]
        assert batch["task_name"] == ["thinkprune"] * 3


def test_prompts_are_those_of_the_tokenizers_file(recipe: Any) -> None:
    """The one NeMo-RL loads splits numbers in another way: it would train other prompts."""
    message = datasets(recipe)[0][0]["message_log"][0]
    ids, text = message["token_ids"].tolist(), message["content"]
    assert ids != tokenizer_of(recipe)(text, add_special_tokens=False)["input_ids"]
    assert ids == local_plan(recipe)[0].train[local_plan(recipe)[0].ledger.take(1)[0]].token_ids


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_processes_do_not_change_the_order(recipe: Any, num_workers: int) -> None:
    assert [ids_of(b) for b in loader(recipe, num_workers=num_workers)] == local_steps(recipe)


@pytest.mark.parametrize(("num_workers", "done"), [(0, 3), (0, 5), (2, 4)])
def test_a_resumed_loader_goes_on_with_the_ledgers_next_step(
    recipe: Any, tmp_path: Path, num_workers: int, done: int
) -> None:
    first = loader(recipe, num_workers=num_workers)
    batches = iter(first)
    for _ in range(done):
        next(batches)
    again = resumed(recipe, first, tmp_path, num_workers)
    assert [ids_of(b) for b in again] == local_steps(recipe)[done:]


def test_a_finished_run_goes_on_when_it_may_take_more_steps(recipe: Any, tmp_path: Path) -> None:
    short = with_values(recipe, {"grpo.max_num_steps": 4})
    first = loader(short)
    batches = iter(first)
    for _ in range(4):
        next(batches)
    again = resumed(recipe, first, tmp_path, 0)
    assert [ids_of(b) for b in again] == local_steps(recipe)[4:]


def resumed(recipe: Any, first: Any, folder: Path, num_workers: int) -> Any:
    """A new loader in the state of `first`, by NeMo-RL's own files."""
    import torch
    from nemo_rl.data.utils import load_dataloader_state

    config = data_config(recipe)
    torch.save(first.state_dict(), folder / "train_dataloader.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": config}))
    again = loader(recipe, num_workers=num_workers)
    load_dataloader_state(again, str(folder), config)
    return again


def test_the_asynchronous_trainer_gets_more_than_it_should_need(recipe: Any) -> None:
    """It drops a batch now and then, and waits for ever when the data are at an end."""
    asynchronous = with_values(recipe, {"grpo.async_grpo.enabled": True})
    steps = [ids_of(batch) for _, batch in zip(range(12), loader(asynchronous), strict=False)]
    assert steps[:8] == local_steps(recipe)
    assert (
        steps[8:]
        == local_steps(with_values(recipe, {"grpo.max_num_steps": 12, "grpo.max_num_epochs": 4}))[8:]
    )
    assert len(loader(asynchronous)) == 8 + 1000


def test_validation_samples_each_problem_as_often_as_asked(recipe: Any) -> None:
    _, validation = datasets(recipe)
    rows = [validation[i] for i in range(len(validation))]
    names = ["AIME22-0", "AIME22-1", "AIME23-2", "AIME23-3"]
    assert [row["extra_env_info"]["problem_id"] for row in rows] == [name for name in names for _ in range(4)]
    prompts = [p.token_ids for p in local_plan(recipe)[0].validation for _ in range(4)]
    assert [row["message_log"][0]["token_ids"].tolist() for row in rows] == prompts
    assert {row["task_name"] for row in rows} == {"thinkprune_validation"}


def test_fewer_validation_problems(recipe: Any) -> None:
    changed = with_values(recipe, {"grpo.max_val_samples": 3})
    _, validation = datasets(changed)
    plan = data_plan(changed, tokenizer=recipe.policy.model_name, limit=LIMIT)
    assert len(validation) == plan.validation_rows == 12


def test_the_prompt_names_the_rounds_limit(recipe: Any) -> None:
    for limit in (4000, 2000):
        train, validation = datasets(recipe, limit=limit)
        plan, _ = local_plan(recipe, limit)
        for message in (train[0]["message_log"][0], validation[0]["message_log"][0]):
            assert f"{limit} tokens" in message["content"]
        assert (
            train[0]["message_log"][0]["token_ids"].tolist() == plan.train[plan.ledger.take(1)[0]].token_ids
        )


def test_environments_are_bound_to_the_tasks(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_rl.data import utils

    made: list[tuple[str, Any]] = []

    def create_env(env_name: str, env_config: Any) -> str:
        made.append((env_name, env_config))
        return f"actor of {env_name}"

    monkeypatch.setattr(utils, "create_env", create_env)
    config = data_config(recipe)
    config["validation"]["env_name"] = "thinkprune_validation"
    settings = {"thinkprune": {"workers": 1}, "thinkprune_validation": {"workers": 2}}
    _, _, train, validation = utils.setup_response_data(tokenizer_of(recipe), config, settings)
    assert sorted(made) == sorted(settings.items())
    assert train == {"thinkprune": "actor of thinkprune"}
    assert validation == {"thinkprune_validation": "actor of thinkprune_validation"}


def test_the_data_travel_to_another_process(recipe: Any) -> None:
    """The asynchronous trainer sends the loader, data set and all, to an actor."""
    train, _ = datasets(recipe)
    again = pickle.loads(pickle.dumps(train))
    assert [again[i]["extra_env_info"] for i in range(len(again))] == [
        train[i]["extra_env_info"] for i in range(len(train))
    ]


def test_no_key_of_an_entry_is_ignored(recipe: Any) -> None:
    from nemo_thinkprune.cluster.dataset import ThinkPruneProblems

    taken = set(inspect.signature(ThinkPruneProblems).parameters) - {"others"}
    read_by_nemo_rl = {"dataset_name", "env_name", "processor", "prompt_file", "system_prompt_file"}
    entries = data_config(recipe)
    for entry in (entries["train"], entries["validation"]):
        assert set(entry) <= taken | read_by_nemo_rl
    with pytest.raises(UserError, match="prompt_famly: this data set has no such key"):
        ThinkPruneProblems(**entries["train"], prompt_famly="qwen")


def test_the_hub_serves_what_a_local_copy_serves(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    copy = recipe.data.train[0].data_path
    info = SimpleNamespace(
        sha="0" * 40, siblings=[SimpleNamespace(rfilename="data/train-00000-of-00001.parquet")]
    )
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, repo, revision: info if repo == HUB_ID else None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, **_: copy)
    hub = with_values(recipe, {"data.train": [{"data_path": HUB_ID, "sources": ["numina_amc_aime"]}]})
    assert data_config(hub)["train"]["datasets"][0]["data_path"] == HUB_ID
    here, there = datasets(recipe)[0], datasets(hub)[0]
    assert [here[i]["extra_env_info"] for i in range(len(here))] == [
        there[i]["extra_env_info"] for i in range(len(there))
    ]


def plain(**values: Any) -> Any:
    """A set as somebody writes it into a recipe of NeMo-RL's own."""
    from nemo_rl.data.datasets.response_datasets import load_response_dataset

    return load_response_dataset({"dataset_name": DATASET, **values})


@pytest.fixture
def aime(tmp_path: Path) -> str:
    return str(write_parquet(tmp_path / "aime.parquet", validation_rows()))


def processed(one: Any, tokenizer: Any, max_seq_length: int | None = None) -> Any:
    from nemo_rl.data.datasets import AllTaskProcessedDataset

    processors = {one.task_name: (one.task_spec, one.processor)}
    return AllTaskProcessedDataset(one.dataset, tokenizer, None, processors, max_seq_length=max_seq_length)


def test_a_set_in_a_plain_recipe_has_each_problem_once(recipe: Any, aime: str) -> None:
    one = plain(data_path=aime, prompt_family="qwen", env_name="math")
    tokenizer = tokenizer_of(recipe)
    rows = processed(one, tokenizer)
    names = ["AIME22-0", "AIME22-1", "AIME23-2", "AIME23-3", "AIME24-4", "AIME24-5"]
    assert [rows[i]["extra_env_info"]["problem_id"] for i in range(len(rows))] == names
    message = rows[0]["message_log"][0]
    assert (
        message["token_ids"].tolist() == tokenizer(message["content"], add_special_tokens=False)["input_ids"]
    )
    assert "22 number 1: find x." in message["content"]
    assert one.val_dataset is None


def test_a_prompt_is_never_cut(recipe: Any, aime: str) -> None:
    tokenizer = tokenizer_of(recipe)
    length = processed(plain(data_path=aime), tokenizer)[0]["length"]
    assert processed(plain(data_path=aime), tokenizer, length)[0]["length"] == length
    with pytest.raises(
        UserError, match=f"has {length} tokens, more than data.max_input_seq_length = {length - 1}"
    ):
        processed(plain(data_path=aime), tokenizer, length - 1)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"promt_family": "qwen"}, "promt_family: this data set has no such key"),
        ({"prompt_file": "cot.txt"}, "prompt_file: this data set has no such key; its prompts come from"),
        ({"split_validation_size": 0.1}, "split_validation_size: this data set has no such key"),
        ({"processor": "math_hf_data_processor"}, "set processor: thinkprune"),
        ({"datasets": [{"data_path": "x.jsonl"}]}, "give either datasets or data_path"),
        ({"data_path": None}, "a data set needs data_path"),
        ({"data_path": None, "datasets": [{"path": "x.jsonl"}]}, "a data set has no key 'path'"),
        ({"max_input_seq_length": 9}, "needs its tokenizer"),
        ({"prompts_per_step": 7}, "6 training problems cannot fill a step of 7"),
    ],
)
def test_what_would_be_ignored_or_contradicts_itself_is_refused(
    aime: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plain(**{"data_path": aime, **values})
