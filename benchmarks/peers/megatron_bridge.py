"""Megatron-Bridge 0.3.1's own conversion: `python megatron_bridge.py import HF OUT | export CKPT OUT --base HF`.

Exit code 3: not installed. On a machine without a GPU Bridge does not run as it is; what is changed there:

- stand-ins for modules that it imports and a dense model does not use (`_cpu.STAND_INS`), CUDA calls that do nothing;
- Megatron-Core's own layers instead of TransformerEngine's, and with them the names of two norms in Bridge's map;
- kernel fusions switched off, because they are TransformerEngine's or Apex's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cpu


def _import(source: Path, out: Path) -> None:
    bridge = _bridge(source)
    model = _model(bridge, load_weights=True)
    bridge.save_megatron_model(model, out)


def _export(source: Path, out: Path, base: Path) -> None:
    from megatron.bridge.training.checkpointing import _load_model_weights_from_checkpoint

    bridge = _bridge(base)
    model = _model(bridge, load_weights=False)
    _load_model_weights_from_checkpoint(str(_cpu.iteration_folder(source)), model)
    out.mkdir()
    bridge.save_hf_weights(model, out)


def _bridge(folder: Path) -> Any:
    from megatron.bridge import AutoBridge
    from megatron.bridge.training import checkpointing

    # ModelOpt's state, which a model that was not quantised does not have.
    for name in ("save_modelopt_state", "save_sharded_modelopt_state", "restore_modelopt_state"):
        setattr(checkpointing, name, lambda *args, **kwargs: None)
    return AutoBridge.from_hf_pretrained(folder)


def _model(bridge: Any, *, load_weights: bool) -> list[Any]:
    provider = bridge.to_megatron_provider(load_weights=load_weights)
    provider.transformer_layer_spec = _cpu.local_layers(qk_layernorm=provider.qk_layernorm)
    for fusion in _cpu.FUSIONS:
        setattr(provider, fusion, False)
    _name_the_local_norms()
    provider.perform_initialization = False  # the weights are read: to draw them first would be unfair
    provider.finalize()
    return provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True)


def _name_the_local_norms() -> None:
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.param_mapping import AutoMapping
    from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge
    from megatron.bridge.models.qwen.qwen3_bridge import Qwen3Bridge

    for kind in (Qwen2Bridge, Qwen3Bridge):

        def registry(self: Any, stock: Any = kind.mapping_registry) -> Any:
            more = [
                AutoMapping(f"decoder.layers.*.{local}.weight", f"model.layers.*.{theirs}.weight")
                for local, theirs in _cpu.LOCAL_NORMS.items()
            ]
            return MegatronMappingRegistry(*stock(self).mappings, *more)

        kind.mapping_registry = registry


if __name__ == "__main__":
    _cpu.run_peer(__doc__, "megatron.bridge", _import, _export)
