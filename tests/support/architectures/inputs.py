# SPDX-License-Identifier: Apache-2.0
"""Inputs for a model of any family, made from its configuration and the names of forward()'s
arguments. There are several ways to read both, so several sets are offered; the first that the
plain model takes is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .shrink import VOCABULARY

TOKENS = 9

Inputs = dict[str, Any]


def _find(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these attributes that the configuration, or one inside of it, has."""
    from transformers import PretrainedConfig

    parts = [config]
    for part in parts:
        for name in names:
            try:
                value = getattr(part, name, None)
            except Exception:  # attributes that differ from layer to layer
                value = None
            if value is not None and not callable(value):
                return value
        for value in vars(part).values():
            if isinstance(value, PretrainedConfig):
                parts.append(value)
    return default


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_random())


class _Maker:
    """Makes arguments by their names, for sizes that are chosen once for a set."""

    def __init__(self, model: Any, image: int, batch: int = 2) -> None:
        self.model, self.config = model, model.config
        self.batch, self.image = batch, image
        self.vocabulary = min(_find(self.config, "vocab_size", default=VOCABULARY), VOCABULARY)
        self.channels = _find(self.config, "num_channels", "in_channels", "in_chans", default=3)
        if isinstance(self.channels, (list, tuple)):
            self.channels = 3
        self.frames = _find(self.config, "num_frames", default=4)

    def ids(self, count: int = TOKENS) -> torch.Tensor:
        """Numbers that are no special tokens."""
        top = max(self.vocabulary - 30, 4)
        return torch.randint(min(4, top - 1), top, (self.batch, count), generator=_random())

    def pixels(self) -> torch.Tensor:
        return _noise(self.batch, self.channels, self.image, self.image)

    def features(self, length: int = 64) -> torch.Tensor:
        bands = _find(
            self.config,
            "num_mel_bins",
            "feature_size",
            "input_feat_per_channel",
            "feature_projection_input_dim",
            "input_dim",
            default=80,
        )
        seconds = _find(self.config, "max_source_positions")
        whisper = "whisper" in self.config.model_type or "audio" in self.config.model_type
        if seconds and whisper:
            return _noise(self.batch, bands, 2 * seconds)
        rows = "feature_extractor" in self.config.model_type
        return _noise(self.batch, bands, length) if rows else _noise(self.batch, length, bands)

    def argument(self, name: str) -> Any:
        """The argument of this name, or None if nothing is known of it."""
        made: dict[str, Callable[[], Any]] = {
            "input_ids": self.ids,
            "text_input_ids": self.ids,
            "attention_mask": lambda: torch.ones(self.batch, TOKENS, dtype=torch.long),
            "decoder_input_ids": lambda: self.ids(5),
            "pixel_values": self.pixels,
            "pixel_mask": lambda: torch.ones(self.batch, self.image, self.image).long(),
            "pixel_values_videos": lambda: _noise(
                self.batch, self.frames, self.channels, self.image, self.image
            ),
            "input_features": self.features,
            "input_values": lambda: _noise(self.batch, 4000) / 4,
            "audio_values": lambda: _noise(self.batch, 1, 4000) / 4,
            "bbox": lambda: torch.arange(4 * TOKENS).reshape(TOKENS, 4).repeat(self.batch, 1, 1),
            "token_type_ids": lambda: torch.zeros(self.batch, TOKENS, dtype=torch.long),
            "inputs": self.ids,
            "visual_feats": lambda: _noise(
                self.batch, 3, _find(self.config, "visual_feat_dim", default=64)
            ),
            "visual_pos": lambda: _noise(self.batch, 3, 4).abs(),
            "task_inputs": self.ids,
            "x": lambda: _noise(self.batch, 1, 4000),
            "past_values": self._series,
            "past_observed_mask": lambda: torch.ones_like(self._series()),
            "past_time_features": lambda: _noise(
                *self._series().shape[:2], max(1, _find(self.config, "num_time_features") or 1)
            ),
        }
        maker = made.get(name)
        return None if maker is None else maker()

    def _series(self) -> torch.Tensor:
        length = _find(self.config, "context_length", default=32)
        lags = _find(self.config, "lags_sequence", default=[0])
        lags = max(lags) if isinstance(lags, (list, tuple)) else 0
        channels = _find(self.config, "num_input_channels", "input_size", default=1)
        if "time_series" in self.config.model_type or "former" in self.config.model_type:
            return _noise(self.batch, length + lags)
        return _noise(self.batch, length, channels)


def _wanted(model: Any) -> list[str]:
    """The names of arguments that forward() has to get."""
    names = []
    main = getattr(model, "main_input_name", None)
    signature = inspect.signature(model.forward).parameters
    for name in (main,) if isinstance(main, str) else main or ():
        if name in signature:
            names.append(name)
    for name, parameter in signature.items():
        plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if plain and parameter.default is parameter.empty and name not in names:
            names.append(name)
    return names


def _sets(model: Any, image: int, batch: int) -> Iterator[Inputs]:
    maker = _Maker(model, image, batch)
    signature = inspect.signature(model.forward).parameters
    names = _wanted(model)
    found = {name: maker.argument(name) for name in names}
    found = {name: value for name, value in found.items() if value is not None}
    extras = [n for n in ("decoder_input_ids", "bbox", "pixel_values") if n in signature]
    if "input_ids" in found and "attention_mask" in signature:
        found["attention_mask"] = maker.argument("attention_mask")
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in signature:
        yield {**found, "decoder_input_ids": maker.argument("decoder_input_ids")}
    yield found
    for name in extras:
        if name not in found:
            yield {**found, name: maker.argument(name)}
    more = [
        n
        for n in signature
        if n
        in (
            "input_ids",
            "pixel_values",
            "input_features",
            "bbox",
            "input_values",
            "decoder_input_ids",
            "pixel_values_videos",
        )
    ]
    yield {name: maker.argument(name) for name in more}
    if any(name in signature for name in _GRIDS):
        yield from _grids(model, signature)
    if "input_features" in found:
        if "input_features_mask" in signature:
            length = found["input_features"].shape
            for side in (1, 2):
                mask = torch.ones(length[0], length[side], dtype=torch.long)
                yield {**found, "input_features_mask": mask}
        yield {**found, "input_features": found["input_features"].transpose(1, 2).contiguous()}
        yield {**found, "input_features": maker.features(3000)}
        yield {
            **found,
            "input_features": maker.features(3000).transpose(1, 2).contiguous(),
        }
    if "input_values" in found:
        yield {**found, "input_values": found["input_values"][:, None]}
        bands = _find(model.config, "num_mel_bins", default=80)
        length = _find(model.config, "max_length", default=64)
        yield {"input_values": _noise(batch, length, bands)}
        yield {"input_values": _noise(batch, 1, length, bands)}
    if "pixel_values" in found:
        yield {**found, "pixel_values": found["pixel_values"][:, None]}
        yield {**found, "pixel_values": maker.argument("pixel_values_videos")}


#: Arguments by which models take pictures of several sizes: patches in a row, and how many there
#: are in each direction.
_GRIDS = ("image_grid_thw", "grid_thw", "image_grid_hws", "grid_hws")


def _grids(model: Any, signature: Any) -> Iterator[Inputs]:
    """A picture of four by four patches."""
    vision = getattr(model.config, "vision_config", None) or model.config
    channels = _find(vision, "in_channels", "in_chans", "num_channels", default=3)
    patch = _find(vision, "patch_size", default=16)
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    time = _find(vision, "temporal_patch_size", default=1)
    main = next((n for n in ("pixel_values", "hidden_states") if n in signature), None)
    if main is None:
        return
    for name in _GRIDS:
        if name in signature:
            grid = torch.tensor([[4, 4]]) if name.endswith("hws") else torch.tensor([[1, 4, 4]])
            for t in dict.fromkeys((time, 1)):
                yield {main: _noise(16, channels * t * patch * patch), name: grid}
            yield {main: _noise(16, channels, patch, patch), name: grid}
            yield {main: _noise(1, 16, channels, patch, patch), name: grid}


def _pictures(model: Any, image: int) -> Iterator[Inputs]:
    """A picture as models beside text take it: whole, in tiles, or as a row of patches."""
    config = model.config
    signature = inspect.signature(model.get_image_features).parameters
    channels = _find(config, "num_channels", default=3)
    for sizes in ({}, {"image_sizes": torch.tensor([[image, image]])}):
        if sizes and "image_sizes" not in signature:
            continue
        yield {"pixel_values": _noise(1, channels, image, image), **sizes}
        yield {"pixel_values": _noise(1, 3, channels, image, image), **sizes}
    yield from _grids(model, signature)


def _count(features: Any) -> int:
    """How many tokens a picture became."""
    for name in ("pooler_output", "last_hidden_state"):
        value = getattr(features, name, None)
        if value is not None:
            features = value
            break
    if isinstance(features, (list, tuple)):
        return sum(_count(one) for one in features)
    return int(features.numel() // features.shape[-1])


def _with_pictures(model: Any, image: int) -> Iterator[Inputs]:
    """Text with as many places for a picture as the model makes tokens of it."""
    if not hasattr(model, "get_image_features"):
        return
    token = _find(model.config, "image_token_id", "image_token_index", "media_token_id")
    signature = inspect.signature(model.forward).parameters
    if token is None or "input_ids" not in signature:
        return
    for picture in _pictures(model, image):
        try:
            with torch.no_grad():
                count = _count(model.get_image_features(**picture))
        except Exception:
            continue
        text = _Maker(model, image, 1).ids()
        places = torch.full((1, count), int(token))
        found = {"input_ids": torch.cat((text[:, :4], places, text[:, 4:]), 1), **picture}
        if "attention_mask" in signature:
            found["attention_mask"] = torch.ones_like(found["input_ids"])
        kinds = (found["input_ids"] == token).long()
        if "mm_token_type_ids" in signature:
            yield {**found, "mm_token_type_ids": kinds}
        if "token_type_ids" in signature:
            yield {**found, "token_type_ids": kinds}
        yield found


def possible_inputs(model: Any) -> Iterator[tuple[str, Inputs]]:
    """Sets of arguments, with a word for what is in them, best first."""
    size = _find(model.config, "image_size", default=64)
    size = max(size) if isinstance(size, (list, tuple)) else size
    size = size if isinstance(size, int) else 64
    for found in _with_pictures(model, size):
        yield "text and picture", found
    for image in dict.fromkeys((size, 64, 224)):
        for batch in (2, 1):
            for found in _sets(model, image, batch):
                if found:
                    yield ", ".join(_word(name) for name in found if _word(name)), found


def _word(name: str) -> str:
    words = {
        "input_ids": "text",
        "pixel_values": "picture",
        "pixel_values_videos": "video",
        "input_features": "sound",
        "input_values": "sound",
        "audio_values": "sound",
        "past_values": "series",
        "bbox": "boxes",
    }
    return words.get(name, "")
