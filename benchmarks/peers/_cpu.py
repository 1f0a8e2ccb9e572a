"""What a machine without a GPU needs before other converters can be imported and run: stand-ins, stated openly.

None of this is needed where CUDA and the converters' own dependencies are installed; nothing here does any part
of a conversion.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3


def run_peer(
    usage: str | None,
    module: str,
    do_import: Callable[[Path, Path], None],
    do_export: Callable[[Path, Path, Path], None],
) -> None:
    """Command line of a peer's script: one conversion by `module`, exit code 3 where that is not installed."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("import", "export"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--base", type=Path, help="export: the Hugging Face folder that names shards and config"
    )
    options = parser.parse_args()
    require(module)
    use_cpu()
    with one_process():
        if options.verb == "import":
            do_import(options.source, options.out)
        else:
            do_export(options.source, options.out, options.base)


# Imported by the converters at module level, not used by a conversion of a dense model.
STAND_INS = (
    "transformer_engine", "wandb", "triton", "modelopt", "nvidia_resiliency_ext", "mamba_ssm", "causal_conv1d",
    "fla", "timm", "open_clip", "qwen_vl_utils", "mlflow", "flashinfer",
)  # fmt: skip


class _Name(type):
    """A class any attribute of which is such a class again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (_Anything,), {})


class _Anything(metaclass=_Name):
    """Stands for any class, function or decorator of a module that is not there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "2.10.0"
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (_Anything,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for the modules named, after everything that is installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.partition(".")[0] in self._names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def require(name: str) -> None:
    """Leave with exit code 3 unless the module is installed."""
    # The scripts are named after what they run: their folder comes last, so that they are not what is imported.
    # It stays there, since Megatron-Core's writer starts Python again, which imports the script.
    here = str(Path(__file__).parent)
    sys.path.sort(key=lambda entry: entry == here)
    try:
        spec = importlib.util.find_spec(name)
        found = spec is not None and Path(spec.origin or "").parent != Path(here)
    except ModuleNotFoundError:
        found = False
    if not found:
        print(f"{name} is not installed", file=sys.stderr)
        raise SystemExit(NOT_INSTALLED)


def use_cpu() -> None:
    """Let modules that are absent be imported, and calls to CUDA do nothing. Does nothing where CUDA is."""
    # Megatron-Core decides at import which of its parts exist, and torch whether triton does: before stand-ins do.
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401
    import torch
    import torch._inductor.runtime.triton_heuristics

    if torch.cuda.is_available():
        return
    sys.meta_path.append(_Finder([name for name in STAND_INS if importlib.util.find_spec(name) is None]))
    cuda: Any = torch.cuda
    # A function for each: torch's compiler refuses one that stands in two places.
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.current_device = lambda: "cpu"
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    movable: Any = (torch.Tensor, torch.nn.Module)
    for kind in movable:
        kind.cuda = lambda self, *args, **kwargs: self


# TransformerEngine's or Apex's kernels: off where these are not.
FUSIONS = (
    "apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion",
    "gradient_accumulation_fusion", "persist_layer_norm",
)  # fmt: skip
# Megatron-Core's own layers call two norms by other names than TransformerEngine's do: here, and in Hugging Face's.
LOCAL_NORMS = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}


def local_layers(*, qk_layernorm: bool) -> Any:
    """Megatron-Core's own layers, in place of TransformerEngine's."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    return get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=qk_layernorm)


def iteration_folder(checkpoint: Path) -> Path:
    """The checkpoint's only iteration."""
    (folder,) = checkpoint.glob("iter_*")
    return folder


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """A process group of one, with Megatron's parallel state."""
    import tempfile

    import torch.distributed as dist
    from megatron.core import parallel_state

    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", init_method=f"file://{store.name}_gloo", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
