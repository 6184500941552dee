# SPDX-License-Identifier: Apache-2.0
"""The quantization method "pyccmem": vLLM's linear layers and embeddings over encrypted weights.

vLLM asks the method for the parameters of each layer, hands it the tensors of the checkpoint, and
then calls it in the place of its own product.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.utils import set_weight_attrs

from .. import errors
from ..directories.marks import METHOD
from ..keys import Key
from ..torch._quantize import Formats
from .engine import patch_engine
from .experts import EncryptedExperts
from .logs import hide_prompts
from .process import protect_process
from .settings import encrypts_cache
from .start import check_config
from .steps import patch_runner
from .weights import LayerWeights, layer_linear, layer_rows, placeholder

__all__ = ["EncryptedMethod", "PyccmemQuantization", "adopt_layers", "weights_of"]

#: The block format for weights that are plain in their files, as in q4_k; or by patterns of names,
#: as in lm_head*=q6_k,*=q4_k.
QUANTIZE = "PYCCMEM_VLLM_QUANTIZE"

_NUMBERS = {"q": 0, "k": 1, "v": 2}


class PyccmemQuantization(QuantizationConfig):  # type: ignore[misc]
    """What vLLM makes for `--quantization pyccmem`, and for the config.json of a sealed directory.
    It goes to other processes without a key."""

    def __init__(self, sealed: bool = False) -> None:
        super().__init__()
        #: config.json says that the files are sealed.
        self.sealed = sealed
        #: vLLM's layers with a cache, by their names, while a model is made.
        self.layers: dict[str, Any] = {}
        #: Keys and values are encrypted, too.
        self.with_cache = True
        self._key: Key | None = None
        self._formats: Formats | None = None
        patch_engine()
        hide_prompts()
        protect_process()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Comes to a process of vLLM's."""
        self.__dict__.update(state)
        hide_prompts()
        protect_process()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_key": None, "_formats": None, "layers": {}}

    def memory_key(self) -> Key:
        """Returns the key of what is encrypted in memory and stored nowhere."""
        if self._key is None:
            self._key = Key.generate()
        return self._key

    def formats(self) -> Formats:
        """Returns which weights of plain files become blocks of which format. Raises ArgumentError
        for an unknown one, ConfigError for a pattern that comes twice, and where the files are
        sealed, and have the type they have."""
        if self._formats is None:
            text = os.environ.get(QUANTIZE, "")
            if text and self.sealed:
                raise errors.ConfigError(
                    f"{QUANTIZE} is for plain directories; quantise this one when it is sealed: "
                    f"pyccmem encrypt --quantize {text}."
                )
            self._formats = Formats(_rules(text))
        return self._formats

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PyccmemQuantization:
        return cls(sealed=True)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Returns the method of a layer; None for what has no matrices. Raises ArgumentError for
        layers that would be computed in the clear."""
        config = get_current_vllm_config()
        check_config(config)
        patch_runner()
        protect_process()
        self.layers = config.compilation_config.static_forward_context
        self.with_cache = encrypts_cache(config)
        if isinstance(layer, LinearBase):
            return EncryptedLinear(self, prefix)
        if isinstance(layer, VocabParallelEmbedding):
            return EncryptedEmbedding(self, prefix)
        if isinstance(layer, RoutedExperts):
            return EncryptedExperts(self, prefix, layer)
        if isinstance(layer, Attention):
            return None
        raise errors.ArgumentError(
            f"Layer {prefix!r} is a {type(layer).__name__}, which pyccmem.vllm has no encrypted "
            f"form of; serve this model without pyccmem, or with pyccmem.transformers."
        )


def _rules(text: str) -> dict[str, str]:
    """Returns the formats by patterns of names that PYCCMEM_VLLM_QUANTIZE says."""
    rules: dict[str, str] = {}
    for rule in text.split(","):
        name, _, format = (part.strip() for part in rule.rpartition("="))
        if not name and not format:
            continue
        name = name or "*"
        if name in rules:
            raise errors.ConfigError(
                f"{QUANTIZE} is {text!r}, which says twice what {name} becomes; write FORMAT, or "
                f"PATTERN=FORMAT,PATTERN=FORMAT."
            )
        rules[name] = format
    return rules


class EncryptedMethod(QuantizeMethodBase):  # type: ignore[misc]
    """What linear layers and embeddings have in common."""

    def __init__(self, config: PyccmemQuantization, prefix: str) -> None:
        self.config, self.prefix = config, prefix

    def _create(
        self,
        layer: Any,
        sizes: list[int],
        columns: int,
        dtype: torch.dtype,
        wanted: Callable[[int, Tensor], Tensor],
        load: Callable[[LayerWeights, Tensor, Any], None],
    ) -> None:
        config = self.config
        weights = LayerWeights(
            self.prefix, sizes, columns, dtype, config.memory_key, wanted, config.formats()
        )
        layer.pyccmem_weights = weights
        weight = placeholder([sum(sizes), columns], dtype)
        layer.register_parameter("weight", weight)  # in the place of an earlier one

        def loader(param: Any, tensor: Tensor, shard: Any = None) -> None:
            load(weights, tensor, shard)

        set_weight_attrs(weight, {"input_dim": 1, "output_dim": 0, "weight_loader": loader})

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        weights: LayerWeights = layer.pyccmem_weights
        if torch.compiler.is_compiling():
            return layer_linear(x, bias, weights.name, sum(weights.sizes))  # type: ignore[no-any-return]
        return weights.linear(x, bias)


class EncryptedLinear(EncryptedMethod, LinearMethodBase):  # type: ignore[misc]
    """Linear layers, with the matrices that vLLM merges kept apart."""

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        def wanted(number: int, tensor: Tensor) -> Tensor:
            if isinstance(layer, RowParallelLinear):
                if layer.tp_size == 1:
                    return tensor
                if getattr(tensor, "format", None):
                    raise errors.ArgumentError(
                        f"Layer {self.prefix!r} has blocks of {tensor.format}, whose columns "  # type: ignore[attr-defined]
                        f"pyccmem.vllm does not cut; leave out --tensor-parallel-size."
                    )
                first = layer.tp_rank * input_size_per_partition
                return tensor.narrow(1, first, input_size_per_partition).clone()
            rows, rank = output_partition_sizes[number], layer.tp_rank
            if isinstance(layer, ReplicatedLinear):
                rank = 0
            elif isinstance(layer, QKVParallelLinear) and number:
                rank //= layer.num_kv_head_replicas
            return tensor.narrow(0, rank * rows, rows)

        def load(weights: LayerWeights, tensor: Tensor, shard: Any) -> None:
            for number, part in _split(layer, tensor, shard):
                weights.load(number, part)

        self._create(
            layer,
            output_partition_sizes,
            input_size_per_partition,
            params_dtype,
            wanted,
            load,
        )


class EncryptedEmbedding(EncryptedMethod):
    """Embeddings, of which only the rows asked for are opened, and heads."""

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        at = layer.shard_indices

        def wanted(number: int, tensor: Tensor) -> Tensor:
            first, last = at.org_vocab_start_index, at.org_vocab_end_index
            return tensor.narrow(0, first, last - first)

        if layer.num_added_embeddings:
            raise errors.ArgumentError(
                f"Embedding {self.prefix!r} has rows that are added to the checkpoint's, which "
                f"pyccmem.vllm has no encrypted form of."
            )
        self._create(
            layer,
            output_partition_sizes,
            input_size_per_partition,
            params_dtype,
            wanted,
            lambda weights, tensor, _: weights.load(0, tensor),
        )

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        weights: LayerWeights = layer.pyccmem_weights
        if torch.compiler.is_compiling():
            return layer_rows(input_, weights.name, weights.columns, weights.dtype)  # type: ignore[no-any-return]
        return weights.rows(input_)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns scores for the rows of the checkpoint, and zeros for those that fill up."""
        y = super().apply(layer, x, bias)
        lacking = layer.num_embeddings_per_partition - y.shape[-1]
        return torch.nn.functional.pad(y, (0, lacking)) if lacking else y

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        """Lets a head have the embedding's weights, which need not have been loaded yet."""
        layer.pyccmem_weights, layer.weight = embed_tokens.pyccmem_weights, embed_tokens.weight
        return layer


def adopt_layers(model: torch.nn.Module, config: PyccmemQuantization) -> None:
    """Gives an encrypted method to layers that vLLM's model makes without a quantization, such as
    Gemma's embeddings. For a model without weights yet."""
    adopted: dict[int, Any] = {}
    for name, layer in list(model.named_modules()):
        method = getattr(layer, "quant_method", None)
        if not isinstance(method, (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)):
            continue
        plain: Any = layer
        new: Any = config.get_quant_method(plain, name)
        plain.quant_method = new
        old = plain.weight
        first = adopted.setdefault(id(old), plain)
        if first is not plain:
            new.tie_weights(plain, first)
            continue
        sizes = plain.output_partition_sizes if hasattr(plain, "output_partition_sizes") else None
        new.create_weights(
            plain,
            old.shape[1],
            sizes or [old.shape[0]],
            plain.input_size,
            plain.output_size,
            plain.params_dtype,
        )


def weights_of(model: torch.nn.Module) -> dict[str, LayerWeights]:
    """Returns the weights of a model's layers by their names."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "pyccmem_weights"):
            found[name] = module.pyccmem_weights
        for kind, weights in getattr(module, "pyccmem_experts", {}).items():
            found[f"{name}.{kind}"] = weights
    return found


def _split(layer: Any, tensor: Tensor, shard: Any) -> list[tuple[int, Tensor]]:
    """Returns the parts that a tensor of the checkpoint is, each with its number."""
    if isinstance(shard, str):
        shard = _NUMBERS[shard]
    if isinstance(shard, int):
        return [(shard, tensor)]
    count = len(layer.output_partition_sizes)
    numbers = range(count) if shard is None else shard
    if len(numbers) == 1:
        return [(numbers[0], tensor)]
    if isinstance(layer, QKVParallelLinear):  # without the copies that ranks have of k and v
        sizes = [
            layer.total_num_heads * layer.head_size,
            layer.total_num_kv_heads * layer.head_size,
            layer.total_num_kv_heads * layer.v_head_size,
        ]
    else:
        sizes = layer.output_sizes
    found, first = [], 0
    for number in numbers:
        found.append((number, tensor.narrow(0, first, sizes[number])))
        first += sizes[number]
    return found
