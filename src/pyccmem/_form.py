# SPDX-License-Identifier: Apache-2.0
"""Moved to core.form; for what has not followed yet."""

import sys

from .core import form
from .core.form import *  # noqa: F403

sys.modules[__name__] = form
