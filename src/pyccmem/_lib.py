# SPDX-License-Identifier: Apache-2.0
"""Moved to binding; for what has not followed yet."""

import sys

from . import binding
from .binding import *  # noqa: F403

sys.modules[__name__] = binding
