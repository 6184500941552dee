# SPDX-License-Identifier: Apache-2.0
"""Files of any kind: headers of safetensors files, checked, and files that appear whole or not at
all."""
