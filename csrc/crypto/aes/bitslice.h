/* SPDX-License-Identifier: Apache-2.0
 * Bitsliced AES for the portable tier: eight blocks at a time, no table and no branch that depends
 * on data. For code that encrypts many blocks under one key; others use crypto/aes/aes.h. */
#ifndef CCMEM_AES_BITSLICE_H
#define CCMEM_AES_BITSLICE_H

#include "crypto/aes/aes.h"

enum { BS_BLOCKS = 8, BS_BYTES = BS_BLOCKS * AES_BLOCK };

/* Byte p of plane i holds bit i of byte p of eight blocks, one bit a block. Two 64-bit lanes,
 * because every target can shift those; byte order inside a lane does not matter. */
typedef uint64_t bs_word __attribute__((vector_size(16)));

/* Eight blocks, in place or not. `key` is the encryption schedule for both directions. Its bits are
 * spread over the planes one round at a time, in registers: a schedule of planes would be faster by
 * a tenth, but 2 KiB a key, which is too much for secret memory and must not lie elsewhere. */
void bs_encrypt8(const aes_key *key, uint8_t out[BS_BYTES], const uint8_t in[BS_BYTES]);
void bs_decrypt8(const aes_key *key, uint8_t out[BS_BYTES], const uint8_t in[BS_BYTES]);

/* Eight blocks, one a word, become eight planes, or back: its own inverse. */
void bs_transpose(bs_word q[BS_BLOCKS]);

/* SubBytes, ShiftRows and MixColumns of eight blocks as planes: an AES round but for its round key.
 * For ciphers that are made of such rounds. */
void bs_round8(bs_word out[BS_BLOCKS], const bs_word in[BS_BLOCKS]);

/* The S-box on each byte of eight planes. */
void bs_sub_planes(bs_word q[BS_BLOCKS]);

/* The S-box on each of 16 bytes, for the key schedule. */
void bs_sub_bytes(uint8_t bytes[AES_BLOCK]);

#endif
