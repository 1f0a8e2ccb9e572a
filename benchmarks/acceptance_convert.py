"""Prove the converter on this machine: a random model to Megatron and back, with Megatron and Transformers as judges.

    python benchmarks/acceptance_convert.py [--shape 1.5b|tiny] [--folder DIR]

Writes a random Qwen2 in bfloat16 (norms and biases random too), imports it, lets megatron-core load the result
with gloo on TP x PP of 1x1, 2x1, 1x2 and 2x2 in float32 and compares every parameter with the source and the
logits of random tokens with Transformers'. Then it exports, compares every tensor's bytes by the safetensors
library, and runs `verify`. Exit code 1 when anything differs. The 1.5b shape needs 10 GB of disk and 16 GB of
memory. Everything written is removed at the end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import SHAPES, make_model, model_bytes

TOKENS = 96
TOLERANCE = 1e-4  # of logits in float32, absolute
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))


def main() -> None:
    """Prints one line for each proof; exits with 1 when one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("1.5b", "tiny"), default="1.5b")
    parser.add_argument("--model", type=Path, help="use this Hugging Face folder instead of making one")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    need = 3.1 * model_bytes(SHAPES[options.shape])
    options.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.folder).free < need:
        sys.exit(f"{options.folder} has less than {need / 1e9:.1f} GB free")
    work = Path(tempfile.mkdtemp(prefix="thinkprune-acceptance-", dir=options.folder))
    try:
        proved = _prove(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if proved else 1)


def _prove(options: argparse.Namespace, work: Path) -> bool:
    source, checkpoint, exported = options.model or work / "hf", work / "checkpoint", work / "exported"
    if not options.model:
        make_model(options.shape, source)
    _ckpt("import", source, checkpoint)
    folder = next(checkpoint.rglob(".metadata")).parent
    _in_processes(_transformers_logits, (source, work / "expected.npy"), world=1)
    results = []
    for tp, pp in LAYOUTS:
        start = time.perf_counter()
        rendezvous = work / f"rendezvous_{tp}_{pp}"
        arguments = (tp, pp, rendezvous, source, folder, work / "result.txt", work / "expected.npy")
        _in_processes(_load_and_compare, arguments, world=tp * pp)
        count, wrong, difference = (work / "result.txt").read_text().split()
        results.append(wrong == "0" and float(difference) <= TOLERANCE)
        print(
            f"megatron-core TP={tp} PP={pp}: {count} tensors, {wrong} differ; logits of {TOKENS} random tokens "
            f"within {float(difference):.1e} of Transformers' ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    _ckpt("export", checkpoint, exported)
    wrong = _differing(source, exported)
    print(f"export: {len(wrong)} tensors differ from the source {wrong[:3] or ''}")
    results.append(not wrong)
    for left, right in ((source, checkpoint), (checkpoint, exported)):
        results.append(_ckpt("verify", left, right) == 0)
    return all(results)


def _ckpt(verb: str, *paths: Path) -> int:
    command = [str(Path(sys.executable).with_name("thinkprune-ckpt")), verb, *map(str, paths)]
    start = time.perf_counter()
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    print(f"{verb}: exit code {code} ({time.perf_counter() - start:.1f} s)", flush=True)
    if code and verb != "verify":
        sys.exit(1)
    return code


def _differing(a: Path, b: Path) -> list[str]:
    import torch

    left, right = _stored(a), _stored(b)
    wrong = sorted(set(left) ^ set(right))
    for name in sorted(set(left) & set(right)):
        x, y = left[name].get_tensor(name), right[name].get_tensor(name)
        same = x.dtype == y.dtype and x.shape == y.shape
        if not same or not torch.equal(x.view(torch.uint8), y.view(torch.uint8)):
            wrong.append(name)
    return wrong


def _stored(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    files = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _in_processes(function: Any, arguments: tuple, *, world: int) -> None:
    """Run `function(rank, *arguments)` on each rank, in processes that give their memory back."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=function, args=(rank, *arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"{function.__name__}: a rank failed")


def _tokens(vocab_size: int) -> Any:
    import torch

    return torch.randint(vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(7))


def _transformers_logits(_: int, source: Path, out: Path) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        np.save(out, model(_tokens(model.config.vocab_size)[None]).logits[0].numpy())


def _load_and_compare(
    rank: int,
    tp: int,
    pp: int,
    rendezvous: Path,
    source: Path,
    folder: Path,
    result: Path,
    expected: Path,
) -> None:
    import numpy as np
    import torch

    from nemo_thinkprune.policy.device import megatron_device
    from nemo_thinkprune.policy.parallel import model_parallel

    device = torch.device("cpu")
    with (
        megatron_device(device, threads=1),
        model_parallel(
            rank=rank, world=tp * pp, rendezvous=rendezvous, tp=tp, pp=pp, device=device
        ) as layout,
        torch.no_grad(),
    ):
        policy = _loaded(layout, source, folder)
        count, wrong = _compare(policy, source)
        logits = _logits(policy, torch.from_numpy(np.load(expected)))
        if layout.is_main:
            result.write_text(f"{count} {wrong} {logits}")


def _loaded(layout: Any, source: Path, folder: Path) -> Any:
    """A network in float32 that was all NaN before megatron-core loaded the checkpoint."""
    import torch

    from checkpoints_tools.hf_config import read_hf_config
    from nemo_thinkprune.policy.checkpoint import load_torch_dist
    from nemo_thinkprune.policy.model import ModelOptions
    from nemo_thinkprune.policy.policy import BatchOptions, Policy

    policy = Policy(
        read_hf_config(source),
        layout=layout,
        device=torch.device("cpu"),
        options=ModelOptions(dtype=torch.float32),
        batch=BatchOptions(max_tokens=TOKENS),
        optimizer=None,
    )
    for parameter in policy.network.parameters():
        parameter.fill_(float("nan"))
    load_torch_dist(policy, folder, with_optimizer=False)
    return policy


def _compare(policy: Any, source: Path) -> tuple[int, int]:
    """(tensors, tensors that differ from the source) on rank 0; bfloat16 in float32 is exact."""
    import torch

    from nemo_thinkprune.policy.weights import iter_hf_tensors

    stored = _stored(source)
    count = wrong = 0
    for name, tensor in iter_hf_tensors([policy.network], policy.model):
        if tensor is not None:
            count += 1
            wrong += not torch.equal(tensor, stored[name].get_tensor(name).float())
    return count, wrong + len(stored) - count if policy.layout.is_main else 0


def _logits(policy: Any, expected: Any) -> float:
    """Largest absolute difference of the logits [tokens, vocabulary] to `expected`, the same on every rank."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from nemo_thinkprune.policy.batch import packed_params

    ends = torch.tensor([0, TOKENS], dtype=torch.int32)

    def step(_: Any, network: Any) -> tuple:
        tokens = _tokens(policy.model.vocab_size)[None]
        hidden = network(
            input_ids=tokens,
            position_ids=None,
            attention_mask=None,
            packed_seq_params=packed_params(ends, TOKENS),
        )
        return hidden, lambda states: (
            states.sum(),
            torch.ones([], dtype=torch.int),
            {"states": policy.network.output_hidden(states)},
        )

    outputs = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(()),
        model=[policy.network],
        num_microbatches=1,
        seq_length=TOKENS,
        micro_batch_size=1,
        forward_only=True,
    )
    worst = torch.zeros([])
    if policy.layout.is_last_stage:
        weight = policy.network.output_weight()
        first = len(weight) * mpu.get_tensor_model_parallel_rank()
        theirs = expected[:, first : first + len(weight)]  # padding rows of the vocabulary are left out
        ours = outputs[0]["states"] @ weight[: theirs.shape[1]].T
        worst = (ours - theirs).abs().max() if theirs.numel() else worst
        worst = worst.nan_to_num(nan=float("inf"))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)


if __name__ == "__main__":
    main()
