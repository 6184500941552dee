/* SPDX-License-Identifier: Apache-2.0
 * Attention of a tier: small whole numbers, whose sums are exact in any order; conversions of all
 * kinds of numbers; known answers of functions in double, with a tolerance of 2^-20. */
#include "kernels/attention.h"
#include "selftest/selftest.h"
#include "simd/scalar.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 112, ROWS = 7, ELEMENTS = 128, FLOATS = 128, GAP = ATTENTION_PAD, LINE = 64 };

_Static_assert(FLOATS % ATTENTION_FLOATS == 0 && FLOATS >= ELEMENTS, "a row of sums");

typedef struct attention {
    _Alignas(64) float sums[ROWS * FLOATS];
    _Alignas(64) uint8_t block[TOKENS * (ELEMENTS * 4 + GAP)];
    float packed[ROWS * FLOATS], q[ROWS * FLOATS], out[FLOATS];
    float scores[ROWS * TOKENS], p[ROWS * TOKENS], scales[TOKENS];
    float columns[ELEMENTS * 32];
    int8_t number[TOKENS * ELEMENTS], bytes[FLOATS];
} attention;

/* Each ends a row otherwise: with 7, 3 or 1 vectors behind whole blocks of them, with half a group
 * of 64 bytes; and each has other blocks of rows and of tokens. */
static const struct shape {
    size_t d, tokens, rows;
} shapes[] = {{70, 5, 7}, {105, 9, 3}, {81, 18, 1}, {24, 2, 2}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Of blocks. Tokens are as many vectors as there are chains, and fewer; more pairs of bytes than
 * sums of 32 bits hold are too many for here (tests/native). */
static const struct shape blocks[] = {{33, 80, 7}, {70, 48, 3}, {128, 16, 1}, {16, 112, 6}};

enum { BLOCKS = sizeof blocks / sizeof *blocks };

static int q_of(size_t r, size_t i) { return (int)((r * 5 + i) % 7) - 3; }

static int p_of(size_t r, size_t t) { return (int)((r * 3 + t) % 5); }

static int scale_of(ccmem_dtype dtype, size_t t) {
    return dtype == CCMEM_I8 ? 1 + (int)(t % 3) : 1;
}

/* Fills the block with rows GAP bytes apart, and returns how many elements one has. */
static size_t fill(attention *a, ccmem_dtype dtype, const struct shape *s) {
    const size_t element = dtype_size(dtype);
    const size_t row = (s->d * element + ATTENTION_PAD - 1) / ATTENTION_PAD * ATTENTION_PAD;
    selftest_fill((uint8_t *)a->number, s->tokens * s->d, 7 + (uint64_t)dtype);
    memset(a->block, 0x5a, sizeof a->block); /* between rows and behind them */
    for (size_t t = 0; t < s->tokens; t++) {
        uint8_t *at = a->block + t * (row + GAP);
        memset(at, 0, row);
        for (size_t i = 0; i < s->d; i++) {
            int8_t *number = &a->number[t * s->d + i];
            *number = (int8_t)((*number & 15) - 8);
            selftest_number(dtype, at + i * element, *number);
        }
        a->scales[t] = (float)scale_of(dtype, t);
    }
    return row / element;
}

/* Fills a block with the same rows, of K (pairs of elements by tokens) or V (pairs of tokens by
 * elements), and returns how many elements one has. */
static size_t fill_block(attention *a, ccmem_dtype dtype, const struct shape *s, int k) {
    const size_t element = dtype_size(dtype), n = fill(a, dtype, s);
    const size_t pair = attention_pair(dtype);
    memset(a->block, 0, s->tokens * n * element);
    for (size_t t = 0; t < s->tokens; t++)
        for (size_t i = 0; i < s->d; i++) {
            const size_t at = k ? (i / pair * s->tokens + t) * pair + i % pair
                                : (t / pair * n + i) * pair + t % pair;
            selftest_number(dtype, a->block + at * element, a->number[t * s->d + i]);
        }
    return n;
}

/* `block`: of a block, else of rows. */
static int check_scores(const attention_ops *ops, attention *a, ccmem_dtype dtype,
                        const struct shape *s, size_t n, int block) {
    const float *scales = dtype == CCMEM_I8 ? a->scales : NULL;
    int good = 1, q[ELEMENTS];
    for (size_t r = 0; r < s->rows; r++) {
        for (size_t i = 0; i < s->d; i++)
            a->q[i] = (float)q_of(r, i);
        memset(a->packed + r * FLOATS, 0x5a, FLOATS * sizeof(float));
        ops->pack[dtype](a->packed + r * FLOATS, a->q, s->d, 0.5f);
    }
    memset(a->scores, 0x5a, sizeof a->scores);
    if (block)
        ops->block_scores[dtype](a->scores, TOKENS, a->block, a->block, scales, s->tokens, n,
                                 a->packed, FLOATS, s->rows);
    else
        ops->scores[dtype](a->scores, TOKENS, a->block, n * dtype_size(dtype) + GAP, scales,
                           s->tokens, n, a->packed, FLOATS, s->rows);
    for (size_t r = 0; r < s->rows; r++) {
        for (size_t i = 0; i < s->d; i++)
            q[i] = q_of(r, i);
        for (size_t t = 0; t < s->tokens; t++) {
            int expected = 0;
            for (size_t i = 0; i < s->d; i++)
                expected += a->number[t * s->d + i] * q[i];
            good &= a->scores[r * TOKENS + t] == (float)(expected * scale_of(dtype, t)) * 0.5f;
        }
    }
    return good;
}

static int check_sums(const attention_ops *ops, attention *a, ccmem_dtype dtype,
                      const struct shape *s, size_t n, int block) {
    const float *scales = dtype == CCMEM_I8 ? a->scales : NULL;
    int good = 1, expected[ELEMENTS];
    for (size_t r = 0; r < s->rows; r++)
        for (size_t t = 0; t < s->tokens; t++)
            a->p[r * TOKENS + t] = (float)p_of(r, t);
    memset(a->sums, 0, sizeof a->sums);
    for (int again = 0; again < 2; again++) /* added to what is there */
        if (block)
            ops->block_sums[dtype](a->sums, FLOATS, a->p, TOKENS, a->block, a->block, scales,
                                   s->tokens, n, s->rows);
        else
            ops->sums[dtype](a->sums, FLOATS, a->p, TOKENS, a->block, n * dtype_size(dtype) + GAP,
                             scales, s->tokens, n, s->rows);
    for (size_t r = 0; r < s->rows; r++) {
        memset(expected, 0, sizeof expected);
        for (size_t t = 0; t < s->tokens; t++) {
            const int weight = scale_of(dtype, t) * p_of(r, t);
            for (size_t i = 0; i < s->d; i++)
                expected[i] += a->number[t * s->d + i] * weight;
        }
        for (size_t i = 0; i < s->d; i++)
            good &= a->sums[r * FLOATS + i] == (float)expected[i] * 2;
    }
    return good;
}

/* Columns of a block of K from the second eight tokens on. */
static int check_columns(const attention_ops *ops, attention *a, ccmem_dtype dtype,
                         const struct shape *s, size_t n) {
    const size_t from = 8, count = s->tokens - from < 24 ? s->tokens - from : 24;
    const size_t word = attention_pair(dtype) * dtype_size(dtype);
    int good = 1;
    memset(a->columns, 0x5a, sizeof a->columns);
    ops->columns[dtype](a->columns, 32, a->block + from * word,
                        dtype == CCMEM_I8 ? a->scales + from : NULL, s->tokens, count, n);
    for (size_t i = 0; i < s->d; i++)
        for (size_t t = 0; t < count; t++)
            good &= a->columns[i * 32 + t] ==
                    (float)(a->number[(from + t) * s->d + i] * scale_of(dtype, from + t));
    for (size_t i = count; i < 32; i++) /* behind a row */
        good &= !memcmp(a->columns + i, "ZZZZ", 4);
    return good;
}

static float element(ccmem_dtype dtype, const uint8_t *p) {
    switch (dtype) {
    case CCMEM_F16: return element_from_f16(p);
    case CCMEM_BF16: return element_from_bf16(p);
    case CCMEM_I8: return element_from_i8(p);
    default: return element_from_f32(p);
    }
}

static int same(float a, float b) { return a == b || (isnan(a) && isnan(b)); }

/* Both signs of infinities, subnormal and largest numbers of both 16-bit types. */
static const uint16_t special[] = {0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x7c00,
                                   0xfc00, 0x7f7f, 0x7f80, 0xff80, 0x007f, 0x0080, 0x8000, 0x0000};

/* One row times 1 is the row. */
static int check_conversions(const attention_ops *ops, attention *a, ccmem_dtype dtype) {
    const size_t size = dtype_size(dtype);
    const float one = 1.0f;
    int good = 1;
    selftest_fill(a->block, FLOATS * size, 3);
    memcpy(a->block, special, sizeof special);
    memset(a->sums, 0, sizeof a->sums);
    ops->sums[dtype](a->sums, FLOATS, &one, 1, a->block, 0, &one, 1, FLOATS, 1);
    for (size_t i = 0; i < FLOATS; i++)
        good &= same(a->sums[i], element(dtype, a->block + i * size));
    return good;
}

/* ---- functions of scores --------------------------------------------------------------------- */

/* exp(y), and tanh(x), in double. */
static const struct answer {
    float y;
    double exponential;
    float x;
    double tangent;
} answers[] = {
    {0.0f, 0x1.0000000000000p+0, 0.0f, 0x0.0p+0},
    {-0.125f, 0x1.c3d6a24ed8222p-1, 0.0009765625f, 0x1.fffff5555599ap-11},
    {-0.34375f, 0x1.6b0ff72deb89dp-1, -0.125f, -0x1.fd5992bc4b834p-4},
    {-0.359375f, 0x1.656f00bf5796ap-1, 0.171875f, 0x1.5c93072279c71p-3},
    {-1.0f, 0x1.78b56362cef38p-2, 0.1796875f, 0x1.6c170259e21f8p-3},
    {-5.5f, 0x1.0bd4a5aca7728p-8, -0.75f, -0x1.45323e552f228p-1},
    {-30.0f, 0x1.a56e0c2ac7f75p-44, 2.0f, 0x1.ed9505e1bc3d4p-1},
    {-86.5f, 0x1.2778e721b447bp-125, -100.0f, -0x1.0000000000000p+0},
    {-87.5f, 0, 0.5f, 0x1.d9353d7568af3p-2},
    {-INFINITY, 0, INFINITY, 1},
};

enum { ANSWERS = sizeof answers / sizeof *answers, SCORES = 37, STEP = 9 };

static int near(float got, double expected) {
    return fabs(got - expected) <= fabs(expected) * 0x1p-20;
}

/* Of n scores, which fill whole vectors or not; the one behind them must stay. */
static int check_functions(const attention_ops *ops, size_t n) {
    const float most = 2.0f, cap = 4.0f;
    float score[SCORES + 1], soft[SCORES + 1], scaled[SCORES + 1];
    double sum = 0;
    int good = 1;
    for (size_t i = 0; i <= n; i++) {
        score[i] = answers[(i + n) % ANSWERS].y + most;
        soft[i] = scaled[i] = answers[(i + n) % ANSWERS].x * cap;
    }
    score[n] = soft[n] = scaled[n] = 5.0f;
    const float total = ops->exponentials(score, n, most);
    ops->soften(soft, n, cap);
    ops->scale(scaled, n, 3.0f);
    for (size_t i = 0; i < n; i++) {
        const struct answer *a = &answers[(i + n) % ANSWERS];
        good &= near(score[i], a->exponential) && near(soft[i], cap * a->tangent);
        good &= scaled[i] == a->x * 12.0f;
        sum += a->exponential;
    }
    return good & near(total, sum) & (score[n] == 5.0f && soft[n] == 5.0f && scaled[n] == 5.0f);
}

/* Each place in turn is the highest. */
static int check_highest(const attention_ops *ops, size_t n) {
    float score[SCORES + 1];
    int good = 1;
    for (size_t i = 0; i <= n; i++)
        score[i] = -INFINITY;
    score[n] = 5.0f;
    good &= ops->highest(score, n) == -INFINITY;
    for (size_t i = 0; i < n; i++) {
        score[i] = -7.0f + (float)i;
        good &= ops->highest(score, n) == score[i];
    }
    for (size_t i = 0; i < n; i++)
        score[i] = -INFINITY;
    good &= ops->exponentials(score, n, -INFINITY) == 0;
    for (size_t i = 0; i < n; i++)
        good &= score[i] == 0;
    return good;
}

/* ---- rows to be sealed ----------------------------------------------------------------------- */

/* Numbers whose rounding differs: ties, the next ones of them, subnormal ones, too large ones. */
static const uint32_t rounded[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f801000, 0x3f803000,
                                   0x3f801001, 0x33000000, 0x33000001, 0x33c00000, 0x387fe000,
                                   0x387ff000, 0x477fefff, 0x477ff000, 0xff7fffff, 0x7f800000,
                                   0x80000001, 0x7fc00000, 0x80000000};

enum { ROUNDED = sizeof rounded / sizeof *rounded };

static int check_store(const attention_ops *ops, attention *a) {
    uint16_t half[FLOATS], brain[FLOATS];
    const size_t d = 2 * ROUNDED + 1;
    int good = 1;
    selftest_fill((uint8_t *)a->q, sizeof a->q, 5);
    memcpy(a->q, rounded, sizeof rounded);
    memcpy(a->q + ROUNDED + 1, rounded, sizeof rounded); /* in other lanes as well */
    memset(half, 0x5a, sizeof half);
    memset(brain, 0x5a, sizeof brain);
    memset(a->out, 0x5a, sizeof a->out);
    ops->store[CCMEM_F16](half, a->q, d);
    ops->store[CCMEM_BF16](brain, a->q, d);
    ops->store[CCMEM_F32](a->out, a->q, d);
    for (size_t i = 0; i < d; i++)
        good &= half[i] == float16_of(a->q[i]) && brain[i] == bfloat16_of(a->q[i]) &&
                !memcmp(a->out + i, a->q + i, sizeof *a->q);
    return good && half[d] == 0x5a5a && brain[d] == 0x5a5a;
}

/* Half a step is the tolerance. Factors: usual, tiny, subnormal, none. */
static int check_bytes(const attention_ops *ops, attention *a) {
    static const float factors[] = {1.0f, 0x1p-110f, 0x1p-133f, 0};
    const size_t d = 45;
    int good = 1;
    for (size_t f = 0; f < sizeof factors / sizeof *factors; f++) {
        float scale = -1;
        for (size_t i = 0; i < d; i++)
            a->q[i] = (float)((int)(i * 37 % 101) - 50) * factors[f];
        memset(a->bytes, 0x5a, sizeof a->bytes);
        ops->quantise(a->bytes, &scale, a->q, d);
        good &= fabs(scale - factors[f] * 50.0 / 127) <= 0x1p-149 + 0x1p-20 * factors[f];
        for (size_t i = 0; i < d; i++)
            good &= fabs(a->q[i] - (double)scale * a->bytes[i]) <= 0.501 * scale + 0x1p-142 &&
                    (scale > 0 || !a->bytes[i]);
        good &= a->bytes[d] == 0x5a;
    }
    return good;
}

ccmem_status selftest_attention_bf16(const attention_ops *ops) {
    int good = 1;
    attention *a;
    if (posix_memalign((void **)&a, LINE, sizeof *a))
        return CCMEM_ERR_NOMEM;
    for (int i = 0; i < SHAPES; i++)
        good &= check_scores(ops, a, CCMEM_BF16, &shapes[i], fill(a, CCMEM_BF16, &shapes[i]), 0);
    for (int i = 0; i < BLOCKS; i++) {
        const size_t n = fill_block(a, CCMEM_BF16, &blocks[i], 1);
        good &= check_scores(ops, a, CCMEM_BF16, &blocks[i], n, 1);
        (void)fill_block(a, CCMEM_BF16, &blocks[i], 0);
        good &= check_sums(ops, a, CCMEM_BF16, &blocks[i], n, 1);
    }
    free(a);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}

ccmem_status selftest_attention(const attention_ops *ops) {
    int good = 1;
    attention *a;
    if (posix_memalign((void **)&a, LINE, sizeof *a))
        return CCMEM_ERR_NOMEM;
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        for (int i = 0; i < SHAPES; i++) {
            const size_t n = fill(a, (ccmem_dtype)dtype, &shapes[i]);
            good &= check_scores(ops, a, (ccmem_dtype)dtype, &shapes[i], n, 0);
            good &= check_sums(ops, a, (ccmem_dtype)dtype, &shapes[i], n, 0);
        }
        for (int i = 0; i < BLOCKS; i++) {
            const size_t n = fill_block(a, (ccmem_dtype)dtype, &blocks[i], 1);
            good &= check_scores(ops, a, (ccmem_dtype)dtype, &blocks[i], n, 1);
            good &= check_columns(ops, a, (ccmem_dtype)dtype, &blocks[i], n);
            (void)fill_block(a, (ccmem_dtype)dtype, &blocks[i], 0);
            good &= check_sums(ops, a, (ccmem_dtype)dtype, &blocks[i], n, 1);
        }
        good &= check_conversions(ops, a, (ccmem_dtype)dtype);
    }
    for (size_t n = 1; n <= SCORES; n += STEP)
        good &= check_functions(ops, n) & check_highest(ops, n);
    good &= check_store(ops, a) && check_bytes(ops, a);
    free(a);
    return good ? CCMEM_OK : CCMEM_ERR_SELFTEST;
}
