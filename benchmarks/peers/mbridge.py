"""mbridge 0.15.1's own conversion: `python mbridge.py import HF OUT | export CKPT OUT --base HF`.

mbridge fills Megatron models and has no checkpoints of its own; as verl does, Megatron-Core's dist_checkpointing
writes and reads them here. Exit code 3: not installed. What a machine without a GPU needs in addition: stand-ins for
modules (`_cpu.STAND_INS`), CUDA calls that do nothing, Megatron-Core's own layers with the names of their norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _cpu


def _import(source: Path, out: Path) -> None:
    from megatron.core import dist_checkpointing

    bridge = _bridge(source)
    model = bridge.get_model(weight_path=str(source))
    folder = out / "iter_0000000"
    folder.mkdir(parents=True)
    dist_checkpointing.save(_sharded(model), str(folder))
    (out / "latest_checkpointed_iteration.txt").write_text("0")


def _export(source: Path, out: Path, base: Path) -> None:
    from megatron.core import dist_checkpointing

    bridge = _bridge(base)
    model = bridge.get_model()
    loaded = dist_checkpointing.load(_sharded(model), str(_cpu.iteration_folder(source)))
    model[0].module.load_state_dict(loaded["model"])
    bridge.safetensor_io = bridge._get_safetensor_io(str(base))
    bridge.save_weights(model, str(out))


def _bridge(folder: Path) -> Any:
    from mbridge import AutoBridge

    bridge = AutoBridge.from_pretrained(str(folder))
    bridge._get_transformer_layer_spec = lambda vp_stage=None: _cpu.local_layers(
        qk_layernorm=bridge.config.qk_layernorm
    )
    # The weights are read: to draw them first would be unfair.
    bridge.set_extra_args(
        use_cpu_initialization=True, perform_initialization=False, **dict.fromkeys(_cpu.FUSIONS, False)
    )
    stock = bridge._weight_name_mapping_mcore_to_hf

    def names(name: str) -> list[str]:
        parts = name.split(".")  # decoder.layers.N.NORM.weight
        norm = _cpu.LOCAL_NORMS.get(parts[-2])
        return [f"model.layers.{parts[2]}.{norm}.weight"] if norm else stock(name)

    bridge._weight_name_mapping_mcore_to_hf = names
    return bridge


def _sharded(model: list[Any]) -> dict[str, Any]:
    """Layers stacked on a leading axis, as Megatron-Core saves them by default."""
    return {"model": model[0].module.sharded_state_dict(metadata={"singleton_local_shards": False})}


if __name__ == "__main__":
    _cpu.run_peer(__doc__, "mbridge", _import, _export)
