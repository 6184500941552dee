# SPDX-License-Identifier: Apache-2.0
"""What the package does to a terminal: how the command starts and ends, styles, bars."""
