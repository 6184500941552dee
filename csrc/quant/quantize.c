/* SPDX-License-Identifier: Apache-2.0
 * Floats become blocks, in threads. */
#include "quant/quantize.h"

#include "memory/secret.h"
#include "platform/float_env.h"
#include "platform/threads.h"

/* Elements that are worth another thread. */
enum { GRAIN = 1 << 13 };

typedef struct job {
    ccmem_block_format format;
    const float *x;
    uint8_t *out;
    uint32_t bad; /* atomic: all ones when a float was not finite */
} job;

/* All ones if one of n floats is infinite or not a number, else 0. */
static uint32_t not_finite(const float *x, uint64_t n) {
    uint32_t bad = 0;
    for (uint64_t i = 0; i < n; i++)
        bad |= below(0x7f7fffff, bits_of(x[i]) & 0x7fffffff);
    return bad;
}

static float largest(const float *x, uint64_t n) {
    uint32_t most = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t size = bits_of(x[i]) & 0x7fffffff, more = below(most, size);
        most = (size & more) | (most & ~more);
    }
    return float_of_bits(most);
}

static CLEAR_REGISTERS void quantize(void *arg, uint64_t begin, uint64_t end) {
    job *j = arg;
    const block_format *format = &block_formats[j->format];
    const size_t n = format->elements;
    const float_env before = float_env_default();
    quant_floats in;
    block_parts parts = {0};
    uint32_t bad = 0;

    for (uint64_t b = begin; b < end; b++) {
        const float *x = j->x + b * n;
        const uint32_t wrong = not_finite(x, n);
        bad |= wrong;
        in.unit = fit_unit_of(largest(x, n));
        for (size_t i = 0; i < n; i++)
            in.x[i] = pick(wrong, 0, x[i] * in.unit.to);
        if (n == BLOCK_SUPER)
            quantize_super(j->format, &in, &parts);
        else
            quantize_simple(j->format, &in, &parts);
        block_pack(j->format, &parts, j->out + b * format->bytes);
    }
    __atomic_fetch_or(&j->bad, bad, __ATOMIC_RELAXED);
    ccmem_wipe(&in, sizeof in);
    ccmem_wipe(&parts, sizeof parts);
    float_env_restore(before);
    burn_stack();
}

ccmem_status ccmem_blocks_quantize(ccmem_block_format format, const float *x, uint64_t nblocks,
                                   uint8_t *out) {
    const size_t elements = ccmem_block_elements(format);

    if (!elements || format == CCMEM_INT8_ROW || (nblocks && (!x || !out)))
        return CCMEM_ERR_ARGUMENT;
    job j = {format, x, out, 0};
    parallel_for(nblocks, GRAIN / elements, quantize, &j);
    DECLASSIFY(j.bad); /* the caller learns it */
    return j.bad ? CCMEM_ERR_ARGUMENT : CCMEM_OK;
}

/* ---- rows of bytes --------------------------------------------------------------------------- */

typedef struct row_job {
    const float *x;
    uint64_t cols;
    uint8_t *out;
    float *scale;
    uint32_t bad; /* as of a job */
} row_job;

/* What a scale makes of a row, in units. */
typedef struct row_fit {
    double qq, xq, error;
} row_fit;

static float row_number(float x, float per) { return whole(within(x * per, -127, 127)); }

static row_fit row_measure(const float *x, uint64_t n, float unit, float scale) {
    const float per = inverse(scale);
    row_fit fit = {0, 0, 0};
    for (uint64_t i = 0; i < n; i++) {
        const float v = x[i] * unit, q = row_number(v, per), e = v - scale * q;
        fit.qq += (double)(q * q);
        fit.xq += (double)(v * q);
        fit.error += (double)(e * e);
    }
    return fit;
}

/* The largest number becomes 127, unless the regression of the numbers that follow from this has
 * the smaller error. */
static void quantize_row(const float *x, uint64_t n, uint8_t *out, float *kept) {
    const fit_unit unit = fit_unit_of(largest(x, n));
    const float first = largest(x, n) * unit.to / 127;
    const row_fit one = row_measure(x, n, unit.to, first);
    const float next = (float)one.xq * inverse((float)one.qq);
    const row_fit two = row_measure(x, n, unit.to, next);
    const float scale = pick(less((float)two.error, (float)one.error), next, first);
    const float per = inverse(scale);
    for (uint64_t i = 0; i < n; i++)
        out[i] = (uint8_t)(int8_t)row_number(x[i] * unit.to, per);
    *kept = scale * unit.from;
}

static CLEAR_REGISTERS void quantize_rows(void *arg, uint64_t begin, uint64_t end) {
    row_job *j = arg;
    const float_env before = float_env_default();
    uint32_t bad = 0;

    for (uint64_t r = begin; r < end; r++) {
        const float *x = j->x + r * j->cols;
        uint32_t wrong = not_finite(x, j->cols);
        bad |= wrong;
        DECLASSIFY(wrong); /* the caller learns it */
        if (!wrong)
            quantize_row(x, j->cols, j->out + r * j->cols, j->scale + r);
    }
    __atomic_fetch_or(&j->bad, bad, __ATOMIC_RELAXED);
    float_env_restore(before);
    burn_stack();
}

ccmem_status ccmem_rows_quantize(const float *x, uint64_t nrows, uint64_t ncols, uint8_t *out,
                                 float *scale) {
    if (nrows && ((ncols && (!x || !out)) || !scale))
        return CCMEM_ERR_ARGUMENT;
    row_job j = {x, ncols, out, scale, 0};
    parallel_for(nrows, GRAIN / (ncols < GRAIN ? ncols + 1 : GRAIN), quantize_rows, &j);
    DECLASSIFY(j.bad);
    return j.bad ? CCMEM_ERR_ARGUMENT : CCMEM_OK;
}
