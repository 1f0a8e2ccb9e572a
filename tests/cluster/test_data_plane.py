"""The data-plane trainer's rollout actor with our tokenizer and environment; its queue is a stand-in."""

from __future__ import annotations

import pytest
from support.nemo_rl import require_nemo_rl
from support.ray_here import ray_here

from nemo_thinkprune.cluster.names import ENVIRONMENT
from nemo_thinkprune.cluster.responses import ResponseTokenizer

SETTINGS = {"workers": 1, "deadline_s": 20.0, "memory_mb": 1024}


@pytest.fixture(scope="module", autouse=True)
def nemo_rl():
    if not require_nemo_rl().version.startswith("0.7"):
        pytest.skip("the stand-ins have the methods that NeMo-RL 0.7 calls")
    with ray_here():
        from nemo_thinkprune.cluster.register import register

        register()
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from nemo_thinkprune.data.tiny_model import write_model_folder
    from nemo_thinkprune.data.tokenizer import load_tokenizer

    folder = write_model_folder(tmp_path_factory.mktemp("model") / "tiny")
    loaded = load_tokenizer(str(folder))
    return ResponseTokenizer(loaded, [loaded.eos_token_id]), str(folder)


class Queue:
    """What the actor writes to."""

    def __init__(self):
        self.fields = None

    def put_samples(self, *, sample_ids, partition_id, fields, tags):
        assert len(sample_ids) == len(fields) == len(set(sample_ids))
        self.fields = fields

    def close(self):
        """Nothing is open."""


@pytest.mark.parametrize("rule", ["zero", "score_cut_text"])
@pytest.mark.parametrize("engine", ["synchronous", "asynchronous"])
def test_rewards_and_cuts_reach_the_queue_and_the_driver(tokenizer, monkeypatch, rule, engine):
    import ray
    import torch
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict
    from nemo_rl.environments.utils import create_env
    from nemo_rl.experience import sync_rollout_actor
    from support.gpu_stand_ins import KINDS, RESPONSES, CannedVllm, responses

    tokenizer, model = tokenizer
    generation = {
        "backend": "vllm",
        "vllm_cfg": {"async_engine": engine == "asynchronous"},
        "model_name": model,
        "stop_token_ids": [tokenizer.eos_token_id],
        "_pad_token_id": tokenizer.pad_token_id,
    }
    queue = Queue()
    monkeypatch.setattr("nemo_rl.data_plane.build_data_plane_client", lambda dp_cfg, bootstrap: queue)
    environment = create_env(ENVIRONMENT, SETTINGS | {"truncation": rule})
    prompt = tokenizer("start 3 ; a +4 ; result ?", add_special_tokens=False).input_ids
    group = len(KINDS)
    batch = BatchedDataDict(
        message_log=[
            [{"role": "user", "content": "start 3", "token_ids": torch.tensor(prompt)}] for _ in KINDS
        ],
        length=torch.full((group,), len(prompt)),
        extra_env_info=[{"problem_id": "p", "question": "start 3", "ground_truth": "7"}] * group,
        task_name=["thinkprune"] * group,
        idx=list(range(group)),
        loss_multiplier=torch.ones(group),
    )
    body = sync_rollout_actor.SyncRolloutActor.__ray_metadata__.modified_class
    actor = body(
        policy_generation=CannedVllm(cluster=None, config=generation),
        tokenizer=tokenizer,
        task_to_env={"thinkprune": environment},
        master_config=Settings(generation),
        dp_cfg={"enabled": True},
    )
    meta, carried, told, _ = actor.rollout_to_tq(batch, partition_id="train", group_size=group)

    earned = [response[2 if rule == "zero" else 3] for response in RESPONSES.values()]
    assert carried["total_reward"].tolist() == earned
    assert carried["truncated"].tolist() == [not ended for _, ended, *_ in RESPONSES.values()]
    assert carried["loss_multiplier"].tolist() == [1] * group
    lengths = [len(ids) for ids in responses(model)]
    assert carried["response_token_lengths"].tolist() == lengths
    assert queue.fields["token_mask"].sum(1).tolist() == lengths and len(meta.sample_ids) == group
    assert told["mean_gen_tokens_per_sample"] == sum(lengths) / group
    rows = ray.get(environment.drain.remote())
    assert sorted((row["response_tokens"], row["reward"]) for row in rows) == sorted(
        zip(lengths, earned, strict=True)
    )


class Settings:
    """The parts of MasterConfig that a rollout reads."""

    grpo = {"max_rollout_turns": 1}  # noqa: RUF012
    env: dict = {}  # noqa: RUF012

    def __init__(self, generation):
        self.policy = {
            "generation": generation,
            "max_total_sequence_length": 512,
            "make_sequence_length_divisible_by": 1,
        }


def test_the_trainer_and_its_policy_are_chosen(monkeypatch):
    from types import SimpleNamespace

    from nemo_rl.algorithms.grpo_sync import grpo_train_sync
    from nemo_rl.models.policy import tq_policy

    from nemo_thinkprune.cluster.trainers import _synchronous, policy_factory

    plane = {"enabled": True, "impl": "transfer_queue"}
    config = SimpleNamespace(data_plane=plane)
    assert _synchronous(config) is grpo_train_sync
    given = {}
    monkeypatch.setattr(tq_policy.Policy, "__init__", lambda self, **values: given.update(values))
    monkeypatch.setattr(tq_policy, "build_data_plane_client", lambda cfg, bootstrap: (cfg, bootstrap))
    monkeypatch.setattr(tq_policy.ray, "get", lambda done: done)
    told = []

    def everywhere(method, **values):
        told.append((method, values))

    class Annotations:
        get_axis_size = staticmethod({"data_parallel": 2}.get)

    monkeypatch.setattr(tq_policy.TQPolicy, "sharding_annotations", Annotations, raising=False)
    monkeypatch.setattr(tq_policy.TQPolicy, "cfg", {}, raising=False)
    workers = SimpleNamespace(run_all_workers_single_data=everywhere, shutdown=lambda **_: True)
    monkeypatch.setattr(tq_policy.TQPolicy, "worker_group", workers, raising=False)
    policy = policy_factory(config)(cluster="cluster", config="config")
    assert isinstance(policy, tq_policy.TQPolicy) and given == {"cluster": "cluster", "config": "config"}
    assert policy.dp_cfg is plane and policy.dp_client == (plane, True)
    assert told == [("setup_data_plane", {"cfg": plane})]
    assert policy_factory(SimpleNamespace(data_plane=None)) is None
