# SPDX-License-Identifier: Apache-2.0
"""A small model of each module of timm, as a subject of a trial."""

from __future__ import annotations

import importlib.util

import torch

from .outcome import flat
from .trial import Built, NotBuilt, Subject, called, randomized

#: Parts of names, the smallest models first.
_SIZES = ("test_", "atto", "femto", "pico", "nano", "xxs", "zepto", "tiny", "_s0", "_0", "small")

LARGEST = 30_000_000


def _order(name: str) -> tuple[int, str]:
    return next((n for n, part in enumerate(_SIZES) if part in name), len(_SIZES)), name


def _build(module: str) -> Built:
    import timm

    reason = "no model"
    for name in sorted(timm.list_models(module=module), key=_order)[:12]:
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception as error:
            reason = f"{name}: {type(error).__name__}: {str(error)[:150]}"
            continue
        if size > LARGEST:
            reason = f"{name}: {size // 1_000_000} million parameters"
            continue
        for options in ({"img_size": 64}, {}):
            try:
                torch.manual_seed(1)
                model = randomized(timm.create_model(name, num_classes=20, **options))
            except Exception as error:
                reason = f"{name}: {type(error).__name__}: {str(error)[:150]}"
                continue
            sizes = (64, model.default_cfg.get("input_size", (3, 224, 224))[-1])
            for side in dict.fromkeys(sizes):
                shape = (2, model.default_cfg.get("input_size", (3,))[0], side, side)
                inputs = {"x": torch.randn(shape, generator=torch.Generator().manual_seed(3))}
                try:
                    flat(called(model, inputs))
                except Exception as error:
                    reason = f"{name}: {type(error).__name__}: {str(error)[:150]}"
                    continue
                return Built(model, name, "picture", inputs)
    raise NotBuilt(reason)


def subjects() -> list[Subject]:
    """None where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    return [
        Subject(module, "timm", lambda module=module: _build(module))
        for module in timm.list_modules()
    ]
