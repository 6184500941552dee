# SPDX-License-Identifier: Apache-2.0
"""Moved to binding.arguments; for what has not followed yet."""

import sys

from .binding import arguments
from .binding.arguments import *  # noqa: F403

sys.modules[__name__] = arguments
