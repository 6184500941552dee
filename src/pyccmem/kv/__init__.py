# SPDX-License-Identifier: Apache-2.0
"""What KVCache is made of: shapes of layers, arrays as rows, and its files."""
