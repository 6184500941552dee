/* SPDX-License-Identifier: Apache-2.0
 *
 * Searching memory for thousands of 16-byte samples at once, at every offset.
 *
 * Wherever a sample lies, exactly one multiple of 8 falls on one of its first 8 bytes, and the 8
 * bytes from there on are one of the 8 blocks of 8 bytes that begin at the sample's bytes 0 to 7.
 * So all 8 blocks of each sample are entered in a table, and the memory is looked up in it once
 * per 8 bytes instead of once per byte. A Bloom filter that fits a level-2 cache for the usual tens
 * of thousands of samples answers most of these look-ups; what it lets through is compared in full.
 *
 * A scanner that kept its samples as they are would find them when it reads the memory of its own
 * process, or of one forked from it. They are kept exclusive-or a random mask, and no 16 bytes of
 * one are ever unmasked together, not even in registers. */
#include <stdlib.h>
#include <string.h>

#include "ccmem.h"
#include "memory/secret.h"
#include "platform/random.h"

enum {
    SAMPLE = 16,
    BLOCK = 8,           /* bytes of a block, and blocks of a sample */
    DISTINCT_SAMPLE = 8, /* least different bytes in a sample */
    DISTINCT_BLOCK = 4,  /* and in each of its blocks: zeros and constants fill memory everywhere */
    CHAIN_MAX = 64,      /* entries a look-up may have to compare; periodic data would make more */
    BATCH = 512,         /* look-ups between two comparisons, so that no branch depends on one */
    SAMPLES_MAX = 1 << 24
};

typedef struct words {
    uint64_t low, high;
} words; /* bytes 0-7 and 8-15, little-endian */

struct ccmem_samples {
    words mask;
    uint64_t multiplier; /* random and odd: no one can aim at one chain */
    uint32_t capacity, count;
    unsigned filter_shift, head_shift;
    uint64_t *filter;  /* word (block * multiplier) >> filter_shift: two bits a block */
    uint32_t *head;    /* by (block * multiplier) >> head_shift: last entry + 1; 0 is none */
    uint32_t *next;    /* by entry (8 * sample + block's place): entry before it + 1 */
    words *masked;     /* by sample */
    uint8_t *repeated; /* by sample: seen again, so it identifies nothing */
};

/* The numbers of a block's two bits in its word of the filter, from bits of the hash that the
 * number of the word does not use (24 bits at most). */
static inline unsigned first_bit(uint64_t hash) { return hash >> 33 & 63; }
static inline unsigned second_bit(uint64_t hash) { return hash >> 27 & 63; }

static inline uint64_t load(const uint8_t *p) {
    uint64_t w;
    memcpy(&w, p, sizeof w);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    w = __builtin_bswap64(w);
#endif
    return w;
}

/* Bytes `place` to place + 7 of w; place is at most 7. */
static inline uint64_t block_of(words w, unsigned place) {
    return place ? w.low >> 8 * place | w.high << (64 - 8 * place) : w.low;
}

/* The same of a masked sample, unmasked. */
static inline uint64_t block_at(const ccmem_samples *s, uint32_t sample, unsigned place) {
    return block_of(s->masked[sample], place) ^ block_of(s->mask, place);
}

static inline int equal(const ccmem_samples *s, uint32_t sample, const uint8_t *p) {
    return (load(p) ^ s->mask.low) == s->masked[sample].low &&
           (load(p + BLOCK) ^ s->mask.high) == s->masked[sample].high;
}

static unsigned log2_at_least(uint64_t n) {
    unsigned bits = 0;
    while ((uint64_t)1 << bits < n)
        bits++;
    return bits;
}

ccmem_status ccmem_samples_new(uint32_t capacity, ccmem_samples **out) {
    uint64_t random[3];
    if (!out || capacity < 1 || capacity > SAMPLES_MAX)
        return CCMEM_ERR_ARGUMENT;
    ccmem_samples *s = calloc(1, sizeof *s);
    if (!s)
        return CCMEM_ERR_NOMEM;
    uint64_t entries = (uint64_t)capacity * BLOCK;
    unsigned head_bits = log2_at_least(entries < 16 ? 16 : entries);
    unsigned filter_bits = head_bits - 3; /* words of the filter: 8 entries each, or fewer */
    s->capacity = capacity;
    s->head_shift = 64 - head_bits;
    s->filter_shift = 64 - filter_bits;
    s->filter = calloc((size_t)1 << filter_bits, sizeof *s->filter);
    s->head = calloc((size_t)1 << head_bits, sizeof *s->head);
    s->next = calloc((size_t)entries, sizeof *s->next);
    s->masked = calloc(capacity, sizeof *s->masked);
    s->repeated = calloc(capacity, sizeof *s->repeated);
    ccmem_status status = CCMEM_OK;
    if (!s->filter || !s->head || !s->next || !s->masked || !s->repeated)
        status = CCMEM_ERR_NOMEM;
    else
        status = random_bytes(random, sizeof random);
    if (status != CCMEM_OK) {
        ccmem_samples_free(s);
        return status;
    }
    s->mask.low = random[0];
    s->mask.high = random[1];
    s->multiplier = random[2] | 1;
    *out = s;
    return CCMEM_OK;
}

void ccmem_samples_free(ccmem_samples *s) {
    if (!s)
        return;
    free(s->filter);
    free(s->head);
    free(s->next);
    free(s->masked);
    free(s->repeated);
    free(s);
}

static int distinct(const uint8_t *p, unsigned n) {
    int found = 0;
    for (unsigned i = 0; i < n; i++) {
        unsigned k = 0;
        while (k < i && p[k] != p[i])
            k++;
        found += k == i;
    }
    return found;
}

/* 1 for numbers of `width` bytes (1, 2 or 4, little-endian) that go up or down by equal steps:
 * alphabets and counters are in every process. */
static int counting(const uint8_t *p, unsigned width) {
    uint32_t first_step = 0;
    int same = 1;
    for (unsigned at = width; at < SAMPLE; at += width) {
        uint32_t step = 0;
        for (unsigned i = 0; i < width; i++)
            step += ((uint32_t)p[at + i] - p[at - width + i]) << 8 * i;
        step <<= 8 * (4 - width); /* the carry out of the number's own bytes does not count */
        if (at == width)
            first_step = step;
        same &= step == first_step;
    }
    return same;
}

static int telling(const uint8_t *p) {
    if (distinct(p, SAMPLE) < DISTINCT_SAMPLE)
        return 0;
    if (counting(p, 1) || counting(p, 2) || counting(p, 4))
        return 0;
    for (unsigned place = 0; place < BLOCK; place++)
        if (distinct(p + place, BLOCK) < DISTINCT_BLOCK)
            return 0;
    return 1;
}

/* The sample that equals p, or the count when there is none. */
static uint32_t find(const ccmem_samples *s, const uint8_t *p) {
    uint64_t hash = load(p) * s->multiplier;
    for (uint32_t e = s->head[hash >> s->head_shift]; e; e = s->next[e - 1])
        if ((e - 1) % BLOCK == 0 && equal(s, (e - 1) / BLOCK, p))
            return (e - 1) / BLOCK;
    return s->count;
}

static int chains_have_room(const ccmem_samples *s, const uint8_t *p) {
    for (unsigned place = 0; place < BLOCK; place++) {
        unsigned length = 0;
        uint64_t hash = load(p + place) * s->multiplier;
        for (uint32_t e = s->head[hash >> s->head_shift]; e; e = s->next[e - 1])
            if (++length == CHAIN_MAX)
                return 0;
    }
    return 1;
}

static void enter(ccmem_samples *s, const uint8_t *p) {
    uint32_t sample = s->count++;
    s->masked[sample].low = load(p) ^ s->mask.low;
    s->masked[sample].high = load(p + BLOCK) ^ s->mask.high;
    for (unsigned place = 0; place < BLOCK; place++) {
        uint64_t hash = block_at(s, sample, place) * s->multiplier;
        uint32_t *head = &s->head[hash >> s->head_shift];
        uint32_t entry = sample * BLOCK + place;
        s->filter[hash >> s->filter_shift] |=
            (uint64_t)1 << first_bit(hash) | (uint64_t)1 << second_bit(hash);
        s->next[entry] = *head;
        *head = entry + 1;
    }
}

CLEAR_REGISTERS ccmem_status ccmem_samples_add(ccmem_samples *s, const uint8_t *data, uint64_t n,
                                               const uint64_t *offsets, uint32_t count,
                                               uint8_t *taken) {
    for (uint32_t i = 0; i < count; i++)
        if (n < SAMPLE || offsets[i] > n - SAMPLE)
            return CCMEM_ERR_RANGE;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *p = data + offsets[i];
        taken[i] = 0;
        if (!telling(p))
            continue;
        uint32_t twin = find(s, p);
        if (twin < s->count) {
            s->repeated[twin] = 1;
        } else if (s->count < s->capacity && chains_have_room(s, p)) {
            enter(s, p);
            taken[i] = 1;
        }
    }
    return CCMEM_OK;
}

uint32_t ccmem_samples_count(const ccmem_samples *s) { return s->count; }

int ccmem_samples_usable(const ccmem_samples *s, uint32_t sample) {
    return sample < s->count && !s->repeated[sample];
}

/* Writes the hits whose block lies at offset `at` behind hits[*found]: at most one for each of the
 * block's 8 places, since no two samples are equal. */
static void compare(const ccmem_samples *s, const uint8_t *data, uint64_t n, uint64_t at,
                    ccmem_scan_hit *hits, uint32_t *found) {
    uint64_t block = load(data + at);
    for (uint32_t e = s->head[block * s->multiplier >> s->head_shift]; e; e = s->next[e - 1]) {
        uint32_t sample = (e - 1) / BLOCK;
        unsigned place = (e - 1) % BLOCK;
        if (at < place || n - (at - place) < SAMPLE || s->repeated[sample])
            continue;
        if (equal(s, sample, data + at - place)) {
            hits[*found].offset = at - place;
            hits[*found].sample = sample;
            ++*found;
        }
    }
}

ccmem_status ccmem_scan(const ccmem_samples *s, const uint8_t *data, uint64_t n, uint64_t from,
                        ccmem_scan_hit *hits, uint32_t capacity, uint32_t *found, uint64_t *next) {
    uint64_t candidate[BATCH];
    uint64_t at = from;
    uint32_t written = 0;
    if (capacity < BLOCK || from % BLOCK)
        return CCMEM_ERR_ARGUMENT;
    while (at < n && n - at >= BLOCK) {
        uint64_t end =
            (n - at) / BLOCK < BATCH ? at + (n - at) / BLOCK * BLOCK : at + BATCH * BLOCK;
        unsigned candidates = 0;
        for (; at < end; at += BLOCK) {
            uint64_t hash = load(data + at) * s->multiplier;
            candidate[candidates] = at;
            uint64_t word = s->filter[hash >> s->filter_shift];
            candidates += (unsigned)(word >> first_bit(hash) & word >> second_bit(hash) & 1);
        }
        for (unsigned i = 0; i < candidates; i++)
            __builtin_prefetch(
                &s->head[load(data + candidate[i]) * s->multiplier >> s->head_shift]);
        for (unsigned i = 0; i < candidates; i++) {
            if (capacity - written < BLOCK) {
                *found = written;
                *next = candidate[i];
                return CCMEM_OK;
            }
            compare(s, data, n, candidate[i], hits, &written);
        }
    }
    *found = written;
    *next = n;
    return CCMEM_OK;
}

/* Each is a loop that compilers turn into vector code. */
#define NARROW(name, wide_type, narrow_type, value, fits)                                          \
    static void name(const uint8_t *data, uint64_t count, uint8_t *out) {                          \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            wide_type w;                                                                           \
            memcpy(&w, data + i * sizeof w, sizeof w);                                             \
            narrow_type n = (fits) ? (narrow_type)(value) : (narrow_type)FILLING;                  \
            memcpy(out + i * sizeof n, &n, sizeof n);                                              \
        }                                                                                          \
    }

#define FILLING 0xA5A5A5A5u

NARROW(narrow_8_4, uint64_t, uint32_t, w, w >> 32 == 0)
NARROW(narrow_4_2, uint32_t, uint16_t, w, w >> 16 == 0)
NARROW(narrow_4_1, uint32_t, uint8_t, w, w >> 8 == 0)
NARROW(narrow_2_1, uint16_t, uint8_t, w, w >> 8 == 0)
NARROW(narrow_4_upper, uint32_t, uint16_t, w >> 16, (w & 0xFFFF) == 0)

CLEAR_REGISTERS ccmem_status ccmem_narrow(const uint8_t *data, uint64_t count, uint32_t wide,
                                          uint32_t narrow, int upper, uint8_t *out) {
    if (wide == 4 && narrow == 2 && upper)
        narrow_4_upper(data, count, out);
    else if (wide == 8 && narrow == 4 && !upper)
        narrow_8_4(data, count, out);
    else if (wide == 4 && narrow == 2 && !upper)
        narrow_4_2(data, count, out);
    else if (wide == 4 && narrow == 1 && !upper)
        narrow_4_1(data, count, out);
    else if (wide == 2 && narrow == 1 && !upper)
        narrow_2_1(data, count, out);
    else
        return CCMEM_ERR_ARGUMENT;
    return CCMEM_OK;
}
