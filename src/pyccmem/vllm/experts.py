# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts over encrypted weights: each expert's matrices stay apart, and those of a
batch's experts alone are opened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.utils import set_weight_attrs

from .. import errors
from .weights import LayerWeights, placeholder

__all__ = ["EncryptedExperts"]

_ACTIVATIONS: dict[Any, Any] = {
    MoEActivation.SILU: torch.nn.functional.silu,
    MoEActivation.GELU: torch.nn.functional.gelu,
}


class EncryptedExperts(FusedMoEMethodBase):  # type: ignore[misc]
    """The method of vLLM's RoutedExperts. Raises ArgumentError for experts that it has no encrypted
    form of."""

    def __init__(self, config: Any, prefix: str, layer: Any) -> None:
        super().__init__(layer.moe_config)
        self.config, self.prefix = config, prefix
        moe, parallel = layer.moe_config, layer.moe_config.moe_parallel_config
        swiglu = (layer.swiglu_limit, layer.swiglu_alpha, layer.swiglu_beta)
        for found, what in (
            (parallel.tp_size > 1 or parallel.ep_size > 1, "in several processes"),
            (moe.has_bias, "with biases"),
            (not moe.is_act_and_mul or layer.activation not in _ACTIVATIONS, "without a gate"),
            (any(one is not None for one in swiglu), "with a bounded gate"),
        ):
            if found:
                raise errors.ArgumentError(
                    f"Layer {prefix!r} has experts {what}, which pyccmem.vllm has no encrypted "
                    f"form of; serve this model without pyccmem."
                )

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        return None

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        inner = intermediate_size_per_partition
        into, out = (inner, hidden_size), (hidden_size, inner)
        config = self.config
        layer.pyccmem_experts = weights = {
            name: LayerWeights(
                f"{self.prefix}.{name}",
                [rows] * num_experts,
                columns,
                params_dtype,
                config.memory_key,
                lambda number, tensor: tensor,
                config.formats(),
            )
            for name, (rows, columns) in {"w1": into, "w3": into, "w2": out}.items()
        }

        def load(
            param: Any,
            loaded_weight: Tensor,
            weight_name: str,
            shard_id: str,
            expert_id: int,
            return_success: bool = False,
        ) -> bool | None:
            weights[shard_id].load(expert_id, loaded_weight)
            return True if return_success else None

        load.supports_moe_loading = True  # type: ignore[attr-defined]
        for name, rows, columns in (
            ("w13_weight", 2 * inner, hidden_size),
            ("w2_weight", hidden_size, inner),
        ):
            weight = placeholder([num_experts, rows, columns], params_dtype)
            layer.register_parameter(name, weight)
            set_weight_attrs(weight, {"weight_loader": load})

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any = None,
        shared_experts_input: Tensor | None = None,
    ) -> Tensor:
        """Returns the sum of what the chosen experts make of each row of x. A changed page fails
        the requests whose rows its expert was chosen for. vLLM adds the shared experts itself."""
        gate, up, down = (layer.pyccmem_experts[name] for name in ("w1", "w3", "w2"))
        activate = _ACTIVATIONS[layer.activation]
        found = torch.zeros_like(x, dtype=torch.float32)
        for expert in sorted(set(topk_ids.flatten().tolist())):
            rows, place = (topk_ids == expert).nonzero(as_tuple=True)
            share = topk_weights[rows, place].unsqueeze(-1)
            given = x[rows]
            if layer.apply_router_weight_on_input:
                given, share = (given * share).to(x.dtype), torch.ones_like(share)
            inner = activate(gate.of_part(expert, given, rows)) * up.of_part(expert, given, rows)
            found.index_add_(0, rows, down.of_part(expert, inner, rows).float() * share)
        return found.to(x.dtype)
