/* SPDX-License-Identifier: Apache-2.0
 * The AEGIS kernels of the portable tier, in constant-time C; the reference that every other tier
 * is tested against.
 *
 * A lane is eight blocks of state, and so is a group of bitsliced AES: bit b of a byte belongs to
 * block Sb. An update (RFC 10032, 3.3) is one AES round of all eight, a rotation of the bits in
 * each byte that hands every block on to its neighbour, and an exclusive or with the old state. */
#include "crypto/aegis/aegis.h"

#include "crypto/aes/bitslice.h"
#include "memory/secret.h"

#include <string.h>

typedef uint8_t bytes16 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define ONES(byte) (UINT64_C(0x0101010101010101) * (byte))
#define EACH(byte) ((bs_word){ONES(byte), ONES(byte)})

/* A function that works on a lane. Its frame holds spilled secrets, and a frame is out of its own
 * function's reach: so none is inlined, and their callers end with burn_stack(). */
#define LANE_FUNCTION CLEAR_REGISTERS __attribute__((noinline)) static void

enum {
    LANES = 2, /* of AEGIS-128X2; loops over the lanes of a state go to `lanes`, 1 or 2 */
    START_UPDATES = 10,
    FINISH_UPDATES = 7,
    CHUNK_BLOCKS = 8, /* of AEGIS-128X2, what open_part decrypts at a time */
    CHUNK = CHUNK_BLOCKS * 32 * LANES
};

/* S0 to S7 of one lane as planes. */
typedef struct lane {
    bs_word q[8];
} lane;

/* Two blocks on their way into S0 and S4, or out of the state: bits 0 to 3 of each byte of the
 * first block and of the second are the lower and the upper half of a byte of `low`, bits 4 to 7
 * of `high`. So plane i is one shift and one mask away. */
typedef struct pair {
    bs_word low, high;
} pair;

INLINE bs_word load16(const uint8_t *p) {
    bs_word x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store16(uint8_t *p, bs_word x) { memcpy(p, &x, sizeof x); }

INLINE pair interleave(bs_word a, bs_word b) {
    return (pair){(a & EACH(0x0f)) | ((b << 4) & EACH(0xf0)),
                  ((a >> 4) & EACH(0x0f)) | (b & EACH(0xf0))};
}

INLINE bs_word first_of(pair p) { return (p.low & EACH(0x0f)) | ((p.high << 4) & EACH(0xf0)); }

INLINE bs_word second_of(pair p) { return ((p.low >> 4) & EACH(0x0f)) | (p.high & EACH(0xf0)); }

/* ---- one lane -------------------------------------------------------------------------------- */

/* Update(M0, M1), RFC 10032, 3.3. */
INLINE void update(lane *l, pair m) {
    bs_word next[8];

    bs_round8(next, l->q);
    UNROLL for (int i = 0; i < 8; i++) {
        bs_word moved = ((next[i] << 1) & EACH(0xfe)) | ((next[i] >> 7) & EACH(0x01));
        l->q[i] ^= moved ^ (((i < 4 ? m.low : m.high) >> i % 4) & EACH(0x11));
    }
}

/* z0 = S6 ^ S1 ^ (S2 & S3) and z1 = S2 ^ S5 ^ (S6 & S7), RFC 10032, 3.6: the block numbers of z1
 * are those of z0 plus four, modulo eight, so one expression gives z0 in bit 0, z1 in bit 4. */
INLINE pair keystream(const lane *l) {
    pair z = {{0}, {0}};

    UNROLL for (int i = 0; i < 8; i++) {
        bs_word x = l->q[i];
        bs_word six = ((x >> 6) & EACH(0x01)) | ((x << 2) & EACH(0x10));
        bs_word bits = six ^ (((x >> 1) ^ ((x >> 2) & (x >> 3))) & EACH(0x11));
        if (i < 4)
            z.low |= bits << i;
        else
            z.high |= bits << (i - 4);
    }
    return z;
}

/* Init (RFC 10032, 3.4 and 5.4.2). */
LANE_FUNCTION lane_start(lane *l, unsigned lanes, unsigned number, const uint8_t key[16],
                         const uint8_t nonce[16]) {
    /* The Fibonacci sequence modulo 256, cut in two. */
    static const uint8_t c0[16] = {0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d,
                                   0x15, 0x22, 0x37, 0x59, 0x90, 0xe9, 0x79, 0x62};
    static const uint8_t c1[16] = {0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1,
                                   0x20, 0x11, 0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd};
    const bs_word k = load16(key), n = load16(nonce);
    const pair message = interleave(n, k);
    /* The numbers of this lane and of the last one, for S3 and S7: only plane 0 is not zero. */
    const bs_word context =
        (bs_word)(bytes16){(uint8_t)(number * 0x88), (uint8_t)((lanes - 1) * 0x88)};

    l->q[0] = k ^ n;
    l->q[1] = load16(c1);
    l->q[2] = load16(c0);
    l->q[3] = load16(c1);
    l->q[4] = k ^ n;
    l->q[5] = k ^ load16(c0);
    l->q[6] = k ^ load16(c1);
    l->q[7] = k ^ load16(c0);
    bs_transpose(l->q);
    for (int i = 0; i < START_UPDATES; i++) {
        l->q[0] ^= context;
        update(l, message);
    }
}

typedef enum what { ABSORB, SEAL, OPEN } what;

/* nblocks blocks of 32 * lanes bytes; src and dst point to the lane's first byte in the first. */
INLINE void lane_run(what todo, lane *l, unsigned lanes, uint8_t *dst, const uint8_t *src,
                     size_t nblocks) {
    const size_t half = (size_t)16 * lanes;

    for (size_t at = 0; nblocks; nblocks--, at += 2 * half) {
        pair m = interleave(load16(src + at), load16(src + at + half));
        if (todo != ABSORB) {
            pair x = keystream(l);
            x.low ^= m.low;
            x.high ^= m.high;
            store16(dst + at, first_of(x));
            store16(dst + at + half, second_of(x));
            if (todo == OPEN)
                m = x;
        }
        update(l, m);
    }
}

LANE_FUNCTION lane_absorb(lane *l, unsigned lanes, const uint8_t *src, size_t nblocks) {
    lane_run(ABSORB, l, lanes, NULL, src, nblocks);
}

LANE_FUNCTION lane_seal(lane *l, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks) {
    lane_run(SEAL, l, lanes, dst, src, nblocks);
}

LANE_FUNCTION lane_open(lane *l, unsigned lanes, uint8_t *dst, const uint8_t *src, size_t nblocks) {
    lane_run(OPEN, l, lanes, dst, src, nblocks);
}

static void store_le64(uint8_t *p, uint64_t x) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

/* Finalize (RFC 10032, 3.9 and 5.4.7) for one lane, which is used up: xors its share into sums,
 * whose words make a tag of 32 bytes, and xored with each other one of 16. */
LANE_FUNCTION lane_finish(lane *l, uint64_t ad_len, uint64_t msg_len, bs_word sums[2],
                          size_t tag_len) {
    uint8_t lengths[16];
    bs_word t;
    pair message;

    store_le64(lengths, 8 * ad_len);
    store_le64(lengths + 8, 8 * msg_len);
    bs_transpose(l->q);
    t = l->q[2] ^ load16(lengths);
    bs_transpose(l->q);
    message = interleave(t, t);
    for (int i = 0; i < FINISH_UPDATES; i++)
        update(l, message);
    bs_transpose(l->q);
    sums[0] ^= l->q[0] ^ l->q[1] ^ l->q[2] ^ l->q[3];
    sums[1] ^= l->q[4] ^ l->q[5] ^ l->q[6];
    if (tag_len == 32)
        sums[1] ^= l->q[7];
}

INLINE void store_tag(uint8_t *tag, const bs_word sums[2], size_t tag_len) {
    if (tag_len == 32) {
        store16(tag, sums[0]);
        store16(tag + 16, sums[1]);
    } else {
        store16(tag, sums[0] ^ sums[1]);
    }
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* Everything of one call that must not outlive it. */
typedef struct scratch {
    lane lanes[LANES];
    bs_word sums[2];
    uint8_t tag[AEGIS_TAG_SIZE];
    uint8_t text[CHUNK];
} scratch;

INLINE void scratch_finish(scratch *s) {
    ccmem_wipe(s, sizeof *s);
    burn_stack();
}

/* One lane after the other, each over the whole page. Leaves the tag in s->tag. */
INLINE void crypt_page(what todo, scratch *s, const uint8_t key[16], uint8_t *dst,
                       const uint8_t *src, size_t page_size, const uint8_t nonce[16]) {
    lane *l = &s->lanes[0];

    memset(s->sums, 0, sizeof s->sums);
    for (unsigned j = 0; j < LANES; j++) {
        lane_start(l, LANES, j, key, nonce);
        (todo == SEAL ? lane_seal : lane_open)(l, LANES, dst + 16 * j, src + 16 * j,
                                               page_size / (32 * LANES));
        lane_finish(l, 0, page_size, s->sums, AEGIS_TAG_SIZE);
    }
    store_tag(s->tag, s->sums, AEGIS_TAG_SIZE);
}

CLEAR_REGISTERS static void seal_pages(const uint8_t key[16], uint8_t *dst, const uint8_t *src,
                                       size_t npages, size_t page_size, const uint8_t (*nonce)[16],
                                       uint8_t (*tag)[16], unsigned flags) {
    scratch s;

    (void)flags;
    for (size_t i = 0; i < npages; i++, dst += page_size, src += page_size) {
        crypt_page(SEAL, &s, key, dst, src, page_size, nonce[i]);
        memcpy(tag[i], s.tag, AEGIS_TAG_SIZE);
    }
    scratch_finish(&s);
}

CLEAR_REGISTERS static uint64_t open_pages(const uint8_t key[16], uint8_t *dst, const uint8_t *src,
                                           size_t npages, size_t page_size,
                                           const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                                           unsigned flags) {
    uint64_t bad = 0;
    scratch s;

    (void)flags;
    for (size_t i = 0; i < npages; i++, dst += page_size, src += page_size) {
        crypt_page(OPEN, &s, key, dst, src, page_size, nonce[i]);
        if (!ccmem_equal(s.tag, tag[i], AEGIS_TAG_SIZE)) {
            ccmem_wipe(dst, page_size);
            bad |= UINT64_C(1) << i;
        }
    }
    scratch_finish(&s);
    return bad;
}

static int open_next(const uint8_t key[16], uint8_t *dst, const uint8_t *src, size_t page_size,
                     const uint8_t nonce[16], const uint8_t tag[16], const uint8_t *near,
                     const uint8_t *far) {
    (void)near, (void)far;
    return !open_pages(key, dst, src, 1, page_size, (const uint8_t (*)[16])nonce,
                       (const uint8_t (*)[16])tag, 0);
}

/* A chunk of the page at a time in both lanes; only the part asked for leaves the scratch. */
CLEAR_REGISTERS static int open_part(const uint8_t key[16], uint8_t *dst, const uint8_t *src,
                                     size_t page_size, const uint8_t nonce[16],
                                     const uint8_t tag[16], size_t offset, size_t n,
                                     unsigned flags) {
    (void)flags; /* what a processor without a kernel of its own prefetches is its own affair */
    const size_t end = offset + n;
    scratch s;
    int good;

    memset(s.sums, 0, sizeof s.sums);
    for (unsigned j = 0; j < LANES; j++)
        lane_start(&s.lanes[j], LANES, j, key, nonce);
    for (size_t at = 0; at < page_size; at += CHUNK) {
        size_t size = page_size - at < CHUNK ? page_size - at : CHUNK;
        size_t from = offset > at ? offset : at, to = end < at + size ? end : at + size;
        for (unsigned j = 0; j < LANES; j++)
            lane_open(&s.lanes[j], LANES, s.text + 16 * j, src + at + 16 * j, size / (32 * LANES));
        if (from < to)
            copy_secret(dst + (from - offset), s.text + (from - at), to - from);
    }
    for (unsigned j = 0; j < LANES; j++)
        lane_finish(&s.lanes[j], 0, page_size, s.sums, AEGIS_TAG_SIZE);
    store_tag(s.tag, s.sums, AEGIS_TAG_SIZE);
    good = ccmem_equal(s.tag, tag, AEGIS_TAG_SIZE);
    if (!good)
        ccmem_wipe(dst, n);
    scratch_finish(&s);
    return good;
}

/* ---- messages -------------------------------------------------------------------------------- */

INLINE void lane_load(lane *l, const aegis_state *state, unsigned number) {
    for (int i = 0; i < 8; i++)
        memcpy(&l->q[i], state->s[i][number], sizeof l->q[i]);
    bs_transpose(l->q);
}

INLINE void lane_store(aegis_state *state, unsigned number, lane *l) {
    bs_transpose(l->q);
    for (int i = 0; i < 8; i++)
        memcpy(state->s[i][number], &l->q[i], sizeof l->q[i]);
}

INLINE void lane_wipe(lane *l) {
    ccmem_wipe(l, sizeof *l);
    burn_stack();
}

CLEAR_REGISTERS static void start(aegis_state *state, unsigned lanes, const uint8_t key[16],
                                  const uint8_t nonce[16]) {
    lane l;

    for (unsigned j = 0; j < lanes; j++) {
        lane_start(&l, lanes, j, key, nonce);
        lane_store(state, j, &l);
    }
    lane_wipe(&l);
}

CLEAR_REGISTERS static void absorb(aegis_state *state, unsigned lanes, const uint8_t *ad,
                                   size_t nblocks) {
    lane l;

    for (unsigned j = 0; j < lanes; j++) {
        lane_load(&l, state, j);
        lane_absorb(&l, lanes, ad + 16 * j, nblocks);
        lane_store(state, j, &l);
    }
    lane_wipe(&l);
}

CLEAR_REGISTERS static void seal(aegis_state *state, unsigned lanes, uint8_t *dst,
                                 const uint8_t *src, size_t nblocks) {
    lane l;

    for (unsigned j = 0; j < lanes; j++) {
        lane_load(&l, state, j);
        lane_seal(&l, lanes, dst + 16 * j, src + 16 * j, nblocks);
        lane_store(state, j, &l);
    }
    lane_wipe(&l);
}

CLEAR_REGISTERS static void open_blocks(aegis_state *state, unsigned lanes, uint8_t *dst,
                                        const uint8_t *src, size_t nblocks) {
    lane l;

    for (unsigned j = 0; j < lanes; j++) {
        lane_load(&l, state, j);
        lane_open(&l, lanes, dst + 16 * j, src + 16 * j, nblocks);
        lane_store(state, j, &l);
    }
    lane_wipe(&l);
}

CLEAR_REGISTERS static void finish(aegis_state *state, unsigned lanes, uint64_t ad_len,
                                   uint64_t msg_len, uint8_t *tag, size_t tag_len) {
    bs_word sums[2] = {{0}, {0}};
    lane l;

    for (unsigned j = 0; j < lanes; j++) {
        lane_load(&l, state, j);
        lane_finish(&l, ad_len, msg_len, sums, tag_len);
    }
    store_tag(tag, sums, tag_len);
    ccmem_wipe(sums, sizeof sums);
    lane_wipe(&l);
}

const aegis_ops aegis_portable = {
    .seal_pages = seal_pages,
    .open_pages = open_pages,
    .open_part = open_part,
    .open_next = open_next,
    .start = start,
    .absorb = absorb,
    .seal = seal,
    .open = open_blocks,
    .finish = finish,
    .block = 32,
};
