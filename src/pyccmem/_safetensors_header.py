# SPDX-License-Identifier: Apache-2.0
"""Moved to files.safetensors_header; for what has not followed yet."""

import sys

from .files import safetensors_header
from .files.safetensors_header import *  # noqa: F403

sys.modules[__name__] = safetensors_header
