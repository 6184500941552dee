# SPDX-License-Identifier: Apache-2.0
"""Subjects beside transformers: modules of torch, and models of timm, diffusers and
sentence-transformers where these are installed."""

from __future__ import annotations

from . import diffusers_models, sentences, timm_models, torch_modules
from .trial import Subject


def other_subjects() -> list[Subject]:
    """Those of each library."""
    return [
        *torch_modules.subjects(),
        *sentences.subjects(),
        *timm_models.subjects(),
        *diffusers_models.subjects(),
    ]
