"""What a CPU can do at most: the best of many matrix products of the recipe's type, with the threads of a rank."""

from __future__ import annotations

import argparse
import time

import torch

SIZES = (512, 768, 1024)
SECONDS = 0.2


def best_flops_per_s(dtype: torch.dtype, *, seconds: float = SECONDS) -> float:
    """FLOP/s of the quickest product of two [size, size] matrices for any of SIZES, `seconds` for each.

    Of the quickest, because whatever else runs on the machine only ever makes a product slower.
    """
    return max(_best_of_size(dtype, size, seconds) for size in SIZES)


def _best_of_size(dtype: torch.dtype, size: int, seconds: float) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty(size, size, dtype=dtype)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def main() -> None:
    """Print the number: for engines whose processes are not ours."""
    parser = argparse.ArgumentParser(description="FLOP/s of matrix products on this CPU.")
    parser.add_argument("dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("threads", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(best_flops_per_s(getattr(torch, args.dtype)))


if __name__ == "__main__":
    main()
