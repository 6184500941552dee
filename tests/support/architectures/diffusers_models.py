# SPDX-License-Identifier: Apache-2.0
"""Small models of diffusers, as subjects of trials."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from .trial import Built, Subject, randomized


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


_BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
_DOWN = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}
_STEP = {"timestep": torch.tensor([3])}
_LATENT = _noise(1, 4, 16, 16)
_TEXT = _noise(1, 5, 16)

#: Settings and inputs of each class.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": (
        {
            **_BLOCKS,
            "sample_size": 16,
            "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        {"sample": _noise(1, 3, 16, 16), **_STEP},
    ),
    "UNet2DConditionModel": (
        {**_BLOCKS, **_DOWN, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        {"sample": _LATENT, **_STEP, "encoder_hidden_states": _TEXT},
    ),
    "UNet3DConditionModel": (
        {
            **_BLOCKS,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
        },
        {"sample": _noise(1, 4, 3, 16, 16), **_STEP, "encoder_hidden_states": _TEXT},
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 16,
            "num_attention_heads": 4,
            "num_frames": 2,
            "projection_class_embeddings_input_dim": 24,
            "addition_time_embed_dim": 8,
        },
        {
            "sample": _noise(1, 2, 8, 16, 16),
            **_STEP,
            "encoder_hidden_states": _noise(1, 1, 16),
            "added_time_ids": torch.tensor([[1.0, 2.0, 3.0]]),
        },
    ),
    "ControlNetModel": (
        {**_BLOCKS, **_DOWN, "conditioning_embedding_out_channels": (8, 16)},
        {
            "sample": _LATENT,
            **_STEP,
            "encoder_hidden_states": _TEXT,
            "controlnet_cond": _noise(1, 3, 32, 32),
        },
    ),
    "AutoencoderKL": (
        {
            **_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        {"sample": _noise(1, 3, 32, 32)},
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        {"sample": _noise(1, 3, 32, 32)},
    ),
    "AutoencoderKLTemporalDecoder": (
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "layers_per_block": 1,
        },
        {"sample": _noise(2, 3, 32, 32), "num_frames": 2},
    ),
    "VQModel": (
        {
            **_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": 3,
            "num_vq_embeddings": 32,
        },
        {"sample": _noise(1, 3, 32, 32)},
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
            "decoder_channels": 8,
            "decoder_input_channels": 4,
            "audio_channels": 2,
        },
        {"sample": _noise(1, 2, 64)},
    ),
    "DiTTransformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "num_layers": 2,
            "sample_size": 16,
            "norm_num_groups": 8,
            "num_embeds_ada_norm": 10,
        },
        {"hidden_states": _LATENT, **_STEP, "class_labels": torch.tensor([2])},
    ),
    "PixArtTransformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "sample_size": 16,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "norm_num_groups": 8,
            "use_additional_conditions": False,
        },
        {
            "hidden_states": _LATENT,
            **_STEP,
            "encoder_hidden_states": _TEXT,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "SD3Transformer2DModel": (
        {
            "sample_size": 16,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
        {
            "hidden_states": _LATENT,
            "encoder_hidden_states": _TEXT,
            "pooled_projections": _noise(1, 24),
            **_STEP,
        },
    ),
    "FluxTransformer2DModel": (
        {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        {
            "hidden_states": _noise(1, 16, 4),
            "encoder_hidden_states": _TEXT,
            "pooled_projections": _noise(1, 24),
            "timestep": torch.tensor([0.3]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 16,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
            "in_channels": 4,
        },
        {"hidden_states": _LATENT, "encoder_hidden_states": _TEXT, "timestep": torch.tensor([0.3])},
    ),
    "QwenImageTransformer2DModel": (
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        {
            "hidden_states": _noise(1, 16, 16),
            "encoder_hidden_states": _TEXT,
            "encoder_hidden_states_mask": torch.ones(1, 5).long(),
            "timestep": torch.tensor([0.3]),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "WanTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 2,
        },
        {"hidden_states": _noise(1, 4, 2, 8, 8), **_STEP, "encoder_hidden_states": _TEXT},
    ),
    "LTXVideoTransformer3DModel": (
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "num_layers": 2,
            "caption_channels": 16,
        },
        {
            "hidden_states": _noise(1, 16, 8),
            "encoder_hidden_states": _TEXT,
            **_STEP,
            "encoder_attention_mask": torch.ones(1, 5),
            "num_frames": 1,
            "height": 4,
            "width": 4,
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 5,
        },
        {"hidden_states": _noise(1, 2, 4, 8, 8), "encoder_hidden_states": _TEXT, **_STEP},
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 16,
        },
        {"hidden_states": _LATENT, "encoder_hidden_states": _TEXT, **_STEP},
    ),
    "Transformer2DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 32,
            "norm_num_groups": 8,
            "cross_attention_dim": 16,
        },
        {"hidden_states": _noise(1, 32, 8, 8), "encoder_hidden_states": _TEXT},
    ),
    "PriorTransformer": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "embedding_dim": 16,
            "num_embeddings": 5,
            "additional_embeddings": 4,
        },
        {
            "hidden_states": _noise(1, 16),
            **_STEP,
            "proj_embedding": _noise(1, 16),
            "encoder_hidden_states": _TEXT,
        },
    ),
}


def _build(name: str) -> Built:
    import diffusers

    settings, inputs = MODELS[name]
    torch.manual_seed(1)
    model = randomized(getattr(diffusers, name)(**settings))
    return Built(model, "settings", "latents", {**inputs, "return_dict": False})


def subjects() -> list[Subject]:
    """None where diffusers is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        return []
    return [Subject(name, "diffusers", lambda name=name: _build(name)) for name in MODELS]
