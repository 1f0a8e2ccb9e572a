"""What a CPU can do at most: the best of many matrix products of the recipe's type, with the threads of a rank."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

SIZES = (256, 512, 1024)
SECONDS = 0.1


def best_flops_per_s(dtype: torch.dtype, *, seconds: float = SECONDS) -> float:
    """FLOP/s of the quickest product of two [size, size] matrices, for any of SIZES and by either library.

    Of the quickest, because whatever else runs on the machine only ever makes a product slower.  Takes `seconds`
    for each size and library: torch's BLAS and, where it is there, oneDNN.
    """
    products: list[Callable[[Tensor, Tensor], Tensor]] = [torch.mm]
    if _onednn_multiplies(dtype):
        products.append(_by_onednn)
    return max(_best(product, dtype, size, seconds) for product in products for size in SIZES)


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    # it has no bfloat16 products for processors without AVX-512
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _by_onednn(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


def _best(
    product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, size: int, seconds: float
) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        product(left, right)
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
