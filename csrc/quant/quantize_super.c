/* SPDX-License-Identifier: Apache-2.0
 * Blocks of 256 with groups: the K formats and IQ4_XS. The scales of groups are searched for
 * one by one, then rounded to multiples of the block's; then, to and fro, each group takes the best
 * of the multiples near to its own, and the block's scale and offset the best of these. */
#include "quant/quantize.h"

/* Whole multiples of the block's scale, `low` to `high`, and of its offset, up to `minus`. */
typedef struct super {
    fit_grid grid;
    float low, high, minus;
} super;

static super super_of(ccmem_block_format number) {
    switch (number) {
    case CCMEM_Q2_K: return (super){{0, 3, 0}, 0, 15, 15};
    case CCMEM_Q3_K: return (super){{-4, 3, 0}, -32, 31, 0};
    case CCMEM_Q4_K: return (super){{0, 15, 0}, 0, 63, 63};
    case CCMEM_Q5_K: return (super){{0, 31, 0}, 0, 63, 63};
    case CCMEM_Q6_K: return (super){{-32, 31, 0}, -128, 127, 0};
    default: return (super){{-127, 113, 1}, -32, 31, 0}; /* IQ4_XS */
    }
}

/* The block's scale and what is taken off, in units. */
typedef struct heads {
    uint32_t d_bits, m_bits;
    float d, m;
} heads;

/* What a group takes, and the sums of it. */
typedef struct choice {
    float scale, minus, q, qq, xq, error;
} choice;

/* Sums over the block, of u = multiple * q and v = multiple of what is taken off, for the
 * regression of x by d * u - m * v. */
typedef struct block_sums {
    float uu, uv, vv, xu, xv, error;
} block_sums;

static void add(block_sums *to, const fit_floats *in, const choice *c) {
    to->uu += c->scale * c->scale * c->qq;
    to->uv += c->scale * c->minus * c->q;
    to->vv += c->minus * c->minus * (float)in->n;
    to->xu += c->scale * c->xq;
    to->xv += c->minus * in->sum;
    to->error += c->error;
}

/* Takes for a group the best of the multiples of d, and of m, around the nearest. */
static choice near(const fit_floats *in, const super *kind, const heads *h,
                   const fit_line *wanted) {
    static const float beside[FIT_LANES] = {0, -1, 1, 2};
    const float at = whole(within(wanted->scale * inverse(h->d), kind->low, kind->high));
    const float off = whole(within(-wanted->offset * inverse(h->m), 0, kind->minus));
    const int offsets = kind->minus > 0;
    choice best = {.error = __builtin_inff()};
    for (int i = 0; i < (offsets ? 3 : 1); i++) {
        float a[FIT_LANES], b[FIT_LANES];
        for (int j = 0; j < FIT_LANES; j++) {
            a[j] = within(at + beside[offsets ? i : j], kind->low, kind->high);
            b[j] = offsets ? within(off + beside[j], 0, kind->minus) : 0;
        }
        const fit_lines lines = {
            {h->d * a[0], h->d * a[1], h->d * a[2], h->d * a[3]},
            {-h->m * b[0], -h->m * b[1], -h->m * b[2], -h->m * b[3]},
        };
        const fit_sums s = fit_measure(in->x, in->n, &lines, &kind->grid);
        for (int j = 0; j < FIT_LANES; j++) {
            const uint32_t better = less(s.error[j], best.error);
            best.scale = pick(better, a[j], best.scale);
            best.minus = pick(better, b[j], best.minus);
            best.q = pick(better, s.q[j], best.q);
            best.qq = pick(better, s.qq[j], best.qq);
            best.xq = pick(better, s.xq[j], best.xq);
            best.error = pick(better, s.error[j], best.error);
        }
    }
    return best;
}

/* The best d and m for the multiples. */
static void regress(const block_sums *s, int offsets, fit_unit unit, heads *h) {
    const float alone = s->xu * inverse(s->uu);
    const float det = inverse(s->uu * s->vv - s->uv * s->uv);
    const float d = (s->xu * s->vv - s->xv * s->uv) * det;
    const float m = (s->xu * s->uv - s->xv * s->uu) * det;
    const uint32_t both = offsets ? less(0, m) & less(0, d) : 0;
    h->d_bits = quant_half(pick(both, d, alone), unit, &h->d);
    h->m_bits = quant_half(pick(both, m, 0), unit, &h->m);
}

void quantize_super(ccmem_block_format number, quant_floats *in, block_parts *out) {
    enum { ROUNDS = 3 };
    const block_format *format = &block_formats[number];
    const super kind = super_of(number);
    const size_t n = format->group, groups = BLOCK_SUPER / n;
    const int offsets = format->offset;
    fit_floats *floats = in->floats;
    fit_line *wanted = in->wanted;
    quant_multiples *trial = &in->trial, *chosen = &in->chosen;
    float low = 0, high = 0, most = 0, best_error = __builtin_inff();
    heads now, best = {0, 0, 0, 0};

    *chosen = (quant_multiples){{0}, {0}};
    for (size_t j = 0; j < groups; j++) {
        floats[j] = fit_look(in->x + j * n, n);
        wanted[j] = fit_search(&floats[j], &kind.grid, offsets, 0);
        low = at_most(wanted[j].scale, low);
        high = at_least(wanted[j].scale, high);
        most = at_least(-wanted[j].offset, most);
    }
    /* Where there are signs, the largest gets the end of the range that is further from zero. */
    now.d_bits =
        quant_half(fit_largest(low, high) / (offsets ? kind.high : kind.low), in->unit, &now.d);
    now.m_bits = quant_half(most / at_least(kind.minus, 1), in->unit, &now.m);
    for (int round = 0; round < ROUNDS; round++) {
        block_sums all = {0, 0, 0, 0, 0, 0};
        for (size_t j = 0; j < groups; j++) {
            const choice c = near(&floats[j], &kind, &now, &wanted[j]);
            trial->scale[j] = c.scale;
            trial->minus[j] = c.minus;
            add(&all, &floats[j], &c);
        }
        const uint32_t better = less(all.error, best_error);
        best_error = pick(better, all.error, best_error);
        best.d_bits = (now.d_bits & better) | (best.d_bits & ~better);
        best.m_bits = (now.m_bits & better) | (best.m_bits & ~better);
        best.d = pick(better, now.d, best.d);
        best.m = pick(better, now.m, best.m);
        for (size_t j = 0; j < groups; j++) {
            chosen->scale[j] = pick(better, trial->scale[j], chosen->scale[j]);
            chosen->minus[j] = pick(better, trial->minus[j], chosen->minus[j]);
        }
        regress(&all, offsets, in->unit, &now);
    }
    out->d = best.d_bits;
    out->m = best.m_bits;
    for (size_t j = 0; j < groups; j++) {
        const float scale = best.d * chosen->scale[j], offset = -best.m * chosen->minus[j];
        out->scale[j] = (int8_t)chosen->scale[j];
        out->minus[j] = (int8_t)chosen->minus[j];
        fit_numbers(in->x + j * n, n, scale, offset, &kind.grid, out->q + j * n);
    }
}
