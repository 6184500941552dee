# SPDX-License-Identifier: Apache-2.0
"""Moved to binding.wiped; for what has not followed yet."""

import sys

from .binding import wiped
from .binding.wiped import *  # noqa: F403

sys.modules[__name__] = wiped
