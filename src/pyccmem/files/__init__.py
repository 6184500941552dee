# SPDX-License-Identifier: Apache-2.0
"""Files: checks headers of safetensors files, and writes files that appear whole or not at all."""
