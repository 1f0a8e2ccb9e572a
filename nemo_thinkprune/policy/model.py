"""The policy network: a Megatron-Core `GPTModel` described by a Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt import gpt_layer_specs as specs
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from checkpoints_tools.model_config import ModelConfig, RopeScaling
from checkpoints_tools.weight_map import padded_vocab_size
from nemo_thinkprune.policy.device import SdpaCoreAttention
from nemo_thinkprune.policy.local_layers import RmsNorm, SwiGlu
from nemo_thinkprune.policy.parallel import Layout
from nemo_thinkprune.policy.prompt_groups import PromptGroups
from nemo_thinkprune.recipe.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How to hold and run the network: NeMo-RL's `policy.precision` and `policy.megatron_cfg` choices."""

    dtype: torch.dtype = torch.float32
    sequence_parallel: bool = False
    activation_checkpointing: bool = False
    recompute_granularity: str = "full"
    recompute_modules: tuple[str, ...] = ("core_attn",)
    layers_in_first_stage: int | None = None
    layers_in_last_stage: int | None = None
    grad_reduce_in_fp32: bool = True


class PolicyModel(GPTModel):
    """A `GPTModel` whose last stage returns hidden states; log-probs are computed from them in chunks."""

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    def _preprocess(
        self, *args: Any, packed_seq_params: PackedSeqParams | None = None, **kwargs: Any
    ) -> tuple:
        """As Megatron's; the rows of prompt groups get the rotary angles of their own positions."""
        found = super()._preprocess(*args, packed_seq_params=packed_seq_params, **kwargs)
        if isinstance(packed_seq_params, PromptGroups):
            found = (found[0], found[1][packed_seq_params.position_ids], *found[2:])
        return found

    def output_weight(self) -> Tensor:
        """The output projection on the last stage: [padded vocabulary / TP, hidden]."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight

    def output_hidden(self, hidden: Tensor) -> Tensor:
        """Final hidden states as the output projection's input: [t, hidden], gradients summed over TP."""
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        return hidden.squeeze(1)


def transformer_config(
    model: ModelConfig, options: ModelOptions, layout: Layout, device: torch.device
) -> TransformerConfig:
    """Translate the architecture and this run's options into Megatron-Core's terms."""
    on_gpu = device.type == "cuda"
    has_te = on_gpu and specs.HAVE_TE  # then its layers are built, see `block_spec`
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn,
        num_attention_heads=model.num_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=options.dtype,
        pipeline_dtype=options.dtype,
        bf16=options.dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        num_layers_in_first_pipeline_stage=options.layers_in_first_stage,
        num_layers_in_last_pipeline_stage=options.layers_in_last_stage,
        sequence_parallel=options.sequence_parallel and layout.tp > 1,
        variable_seq_lengths=layout.pp > 1,  # packed micro-batches differ in length
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths, even without experts
        calculate_per_token_loss=True,  # our loss is normalised over the whole step already
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,  # every weight is loaded
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=has_te,
        use_te_activation_func=not has_te,  # what it means: the module that the layer spec names
        apply_rope_fusion=has_te,
        **_recompute(options),
    )


def _recompute(options: ModelOptions) -> dict[str, Any]:
    if not options.activation_checkpointing:
        return {}
    if options.recompute_granularity == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "selective", "recompute_modules": list(options.recompute_modules)}


def block_spec(
    model: ModelConfig, config: TransformerConfig, device: torch.device
) -> ModuleSpec | TransformerBlockSubmodules:
    """TransformerEngine's layers where they are installed and a GPU is there, Megatron's own elsewhere."""
    if specs.HAVE_TE and device.type == "cuda":
        return specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm)
    layer = specs.get_gpt_layer_local_spec(qk_layernorm=model.qk_norm, normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
    parts.mlp.submodules.activation_func = SwiGlu
    attention = parts.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    return TransformerBlockSubmodules([layer] * get_num_layers_to_build(config), layer_norm=RmsNorm)


def build_model(
    model: ModelConfig, options: ModelOptions, *, layout: Layout, device: torch.device
) -> PolicyModel:
    """This rank's part of the network with unset weights; load them with `policy.weights`.

    Raises:
        UserError: The rotary scaling is one that Megatron-Core does not compute.
    """
    _check_rope(model.rope_scaling)
    config = transformer_config(model, options, layout, device)
    network = PolicyModel(
        config=config,
        transformer_layer_spec=block_spec(model, config, device),
        vocab_size=padded_vocab_size(model.vocab_size, layout.tp),
        max_sequence_length=model.max_position_embeddings,
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
        share_embeddings_and_output_weights=model.tied,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
        rope_scaling=model.rope_scaling is not None,
        rope_scaling_factor=model.rope_scaling.factor if model.rope_scaling else 1.0,
    )
    _mark_tensor_parallel(network)
    return network.to(device=device, dtype=options.dtype)


def _check_rope(scaling: RopeScaling | None) -> None:
    # megatron/core/models/common/embeddings/rotary_pos_embedding.py takes the factor only and fixes the rest.
    fixed = (1.0, 4.0, 8192)
    if scaling is None:
        return
    given = (scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings)
    if given != fixed:
        raise UserError(
            f"rope scaling with (low, high, original length) = {given}: Megatron-Core computes {fixed} only"
        )


def _mark_tensor_parallel(network: PolicyModel) -> None:
    # Megatron marks split weights only while it initialises them; unmarked, the gradient norm counts rank 0's alone.
    split = {VocabParallelEmbedding: 0, ColumnParallelLinear: 0, RowParallelLinear: 1}
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if type(module) in split and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, True, split[type(module)], 1)
