"""In the places of vLLM and of NeMo-RL's policy, the two parts of a NeMo-RL run that need a GPU.

Names and signatures are those that NeMo-RL's `setup` and trainers call; what they are given is kept in `made`.
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import torch
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from torch import Tensor

from checkpoints_tools.torch_dist.index import Chunk, DistIndex, DistTensor
from checkpoints_tools.torch_dist.write import common_pt, metadata_json, write_metadata

LIMIT = 8
VOCABULARY = 62
TABLE = "__0_0.distcp"
# Text, whether it ends by itself, and what it earns under truncation zero and score_cut_text; every answer is 7.
RESPONSES = {
    "right": ("\\boxed{ 7 }", True, 1, 1),
    "right at the limit": ("<think> 3 wait </think> \\boxed{ 7 }", True, 1, 1),
    "wrong": ("<think> </think> \\boxed{ 6 }", True, 0, 0),
    "cut before the box": ("<think> 3 wait 3 wait 3 wait 3", False, 0, 0),
    "cut after the box": ("\\boxed{ 7 } wait wait wait wait wait", False, 0, 1),
    "nothing but the end": ("", True, 0, 0),
    "nothing": ("", False, 0, 0),
}
KINDS = list(RESPONSES)


class Recorded:
    """Remembers the last one made, and the names of the methods that were called on it."""

    made: list[Any] = []  # noqa: RUF012 - emptied by the tests

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.calls: list[str] = []
        type(self).made.append(self)


class CannedVllm(Recorded):
    """Answers the n-th sample of a prompt with the n-th response of `RESPONSES`, over and over."""

    made: list[Any] = []  # noqa: RUF012

    def __init__(self, *, cluster: Any, config: dict[str, Any]) -> None:
        super().__init__(cluster=cluster)
        self.cfg = config
        self._asked: dict[tuple[int, ...], int] = {}
        self._responses: list[list[int]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"given": {}}  # as vLLM's: a handle, which is sent to actors

    def generate(self, data: Any, greedy: bool = False) -> Any:
        _asked(self.cfg).touch()
        lengths = data["input_lengths"].tolist()
        prompts = [row[:length] for row, length in zip(data["input_ids"].tolist(), lengths, strict=True)]
        rows = [prompt + self._next(tuple(prompt)) for prompt in prompts]
        width = max(len(row) for row in rows)
        pad, [end] = self.cfg["_pad_token_id"], self.cfg["stop_token_ids"]
        output = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        whole = torch.tensor([len(row) for row in rows])
        return BatchedDataDict(
            output_ids=output,
            generation_lengths=whole - data["input_lengths"],
            unpadded_sequence_lengths=whole,
            logprobs=torch.full(output.shape, -math.log(VOCABULARY)),
            truncated=torch.tensor(
                [row[-1] != end for row in rows]  # a prompt does not end in it
            ),
        )

    async def generate_async(self, data: Any, greedy: bool = False) -> Any:
        assert self.cfg["vllm_cfg"]["async_engine"] and len(data["input_lengths"]) == 1
        yield 0, self.generate(data, greedy)

    def _next(self, prompt: tuple[int, ...]) -> list[int]:
        if self._responses is None:
            self._responses = responses(self.cfg["model_name"])
        number = self._asked.get(prompt, 0)
        self._asked[prompt] = number + 1
        return self._responses[number % len(self._responses)]

    def init_collective(self, ip: str, port: int, world_size: int, *, train_world_size: int) -> list[Any]:
        self.given["collective"] = (world_size, train_world_size)
        return []

    def update_weights_via_ipc_zmq(self) -> list[Any]:
        self.calls.append("refit colocated")
        return []

    def update_weights_from_collective(self) -> list[Any]:
        self.calls.append("refit")
        return []

    def get_logger_metrics(self) -> dict[str, Any]:
        return {}

    def shutdown(self) -> bool:
        self.calls.append("shutdown")
        return True

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Memory, counters and caches that the stand-in does not have."""

    prepare_for_generation = finish_generation = prepare_refit_info = clear_logger_metrics = _nothing
    invalidate_kv_cache = _nothing


class BigramPolicy(Recorded):
    """A policy of one matrix, the log-odds of the next token after a token, under NeMo-RL's own loss function."""

    made: list[Any] = []  # noqa: RUF012
    sharding_annotations = type("Axes", (), {"get_axis_size": staticmethod(lambda name: 1)})

    def __init__(self, *, cluster: Any, config: dict[str, Any], weights_path: Any, **given: Any) -> None:
        super().__init__(cluster=cluster, config=config, weights_path=weights_path, **given)
        _asked(config).unlink(missing_ok=True)
        self._table = torch.zeros(VOCABULARY, VOCABULARY, requires_grad=True)
        self._reference = torch.zeros(VOCABULARY, VOCABULARY) if given["init_reference_model"] else None
        if weights_path is not None:
            file = Path(weights_path) / "iter_0000000" / TABLE
            self._table = torch.load(file, weights_only=True).requires_grad_()
        self._optimizer = torch.optim.SGD([self._table], lr=1.0)

    def get_logprobs(self, data: Any, timer: Any = None) -> Any:
        with torch.no_grad():
            return {"logprobs": _from_first(_next_logprobs(self._table, data["input_ids"]))}

    def get_reference_policy_logprobs(self, data: Any, timer: Any = None) -> Any:
        assert self._reference is not None, "the trainer asks for a reference that setup did not ask for"
        return {"reference_logprobs": _from_first(_next_logprobs(self._reference, data["input_ids"]))}

    def train(self, data: Any, loss_fn: Any, timer: Any = None) -> dict[str, Any]:
        self._wait_for_generation()
        self.given["loss_fn"], self.given["batch"] = loss_fn, data
        mask = data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)
        current = _next_logprobs(self._table, data["input_ids"])
        loss, metrics = loss_fn(current, data, data["sample_mask"].sum(), mask.sum())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        shown = {key: [float(item)] for key, item in metrics.items()}
        return {
            "loss": loss.detach().view(1),
            "grad_norm": self._table.grad.norm().view(1),
            "all_mb_metrics": shown
            | {"lr": [1e-6], "wd": [0.0], "global_valid_seqs": [float(len(current))]}
            | {"global_valid_toks": [float(mask.sum())]},
        }

    def _wait_for_generation(self) -> None:
        """Be slower than the start of the actor that asks for responses, as any real training step is.

        NeMo-RL's asynchronous trainer waits for ever where it goes on from a checkpoint's replay buffer and makes
        a step before its collector has begun: nobody then asks for the responses to the next step.
        """
        asked, deadline = _asked(self.given["config"]), time.monotonic() + 120
        while not asked.exists():
            assert time.monotonic() < deadline, "nobody asks for responses"
            time.sleep(0.05)

    def save_checkpoint(self, weights_path: str, **_: Any) -> None:
        folder = Path(weights_path) / "iter_0000000"
        folder.mkdir(parents=True)
        record = io.BytesIO()
        torch.save(self._table.detach(), record)
        size, shape = len(record.getvalue()), tuple(self._table.shape)
        chunk = Chunk((0, 0), shape, TABLE, record=0, record_bytes=size, payload=-1)
        index = DistIndex(folder, {"table": DistTensor("table", "F32", shape, (chunk,))})
        files = {".metadata": write_metadata(index), TABLE: record.getvalue()}
        for name, content in (files | {"common.pt": common_pt(), "metadata.json": metadata_json()}).items():
            (folder / name).write_bytes(content)

    def init_collective(self, ip: str, port: int, world_size: int, *, train_world_size: int) -> list[Any]:
        return []

    def stream_weights_via_ipc_zmq(self, buffer_size_bytes: int) -> list[Any]:
        return []

    def broadcast_weights_for_collective(self, kv_scales: Any = None) -> list[Any]:
        return []

    def get_free_memory_bytes(self) -> int:
        return 1 << 30

    def shutdown(self) -> bool:
        self.calls.append("shutdown")
        return True

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Memory of a GPU."""

    prepare_for_training = prepare_for_lp_inference = offload_before_refit = offload_after_refit = _nothing
    prepare_refit_info = print_node_ip_and_gpu_id = _nothing


def responses(model: str) -> list[list[int]]:
    """Token ids of the canned responses in the words of the tiny tokenizer in folder `model`."""
    from nemo_thinkprune.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    return [
        tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ended
        for text, ended, *_ in RESPONSES.values()
    ]


def _asked(config: dict[str, Any]) -> Path:
    """Stands once responses are asked for."""
    return Path(config["model_name"]).parent / "asked"


def _next_logprobs(table: Tensor, ids: Tensor) -> Tensor:
    """[B, S - 1]: of each token but the first."""
    return table.log_softmax(-1)[ids[:, :-1]].gather(-1, ids[:, 1:, None]).squeeze(-1)


def _from_first(logprobs: Tensor) -> Tensor:
    """[B, S]: each at its own token, 0 at the first."""
    return torch.nn.functional.pad(logprobs, (1, 0))
