# SPDX-License-Identifier: Apache-2.0
"""Small models of every family, plain and in each way of pyccmem: `make test-architectures`."""
