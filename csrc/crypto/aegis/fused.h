/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens a page of AEGIS-128X2 and multiplies it in the registers it was opened in: included after
 * crypto/aegis/template.h by tiers whose vectors hold both lanes, eight floats, and that have FMA
 * and F16C.
 *
 *   DOT_TARGET   the target attribute
 *   DOT_LANES    floats in a vector of the tier's products (kernels/gemv_template.h), 8 or 16
 *
 * A page that is opened and then multiplied fetches nothing from memory while it is multiplied,
 * and what one core can fetch in the rest of the time is less than it could multiply. Here both are
 * one loop, and memory is read at an even pace.
 */

#define DOT_INLINE static inline __attribute__((always_inline)) DOT_TARGET

/* In two stages, into L2 and then into L1: see PREFETCH_L2 in crypto/xts/template.h. */
enum { DOT_NEAR = 1024, DOT_FAR = 8192 };

/* Vectors of kernels/gemv_template.h in parts of eight floats; each part of a block has its sum. */
enum { DOT_PARTS = DOT_LANES / 8, DOT_SUMS = 4 * DOT_PARTS, DOT_BLOCK = 8 * DOT_SUMS };

/* The bytes of a turn: at least two blocks of the cipher and one of W, so that each vector's sum is
 * known when this is compiled. */
#define DOT_TURN(element)                                                                          \
    (DOT_BLOCK * (element) < AEGIS_DOT_TURN ? AEGIS_DOT_TURN : DOT_BLOCK * (element))

/* Adds the products with eight floats of x, number `place` of a turn. The sums go by the element's
 * place in its block, as in kernels/gemv_template.h. */
DOT_INLINE void dot_add(__m256 sum[DOT_SUMS], __m256 w, const float *x, size_t place) {
    __m256 *to = &sum[place % DOT_SUMS];
    *to = _mm256_fmadd_ps(w, _mm256_load_ps(x + 8 * place), *to);
}

/* The products of 32 bytes of W, number `i` (a constant) of a turn. x lies as gemv_pack() put it:
 * for types with a stride, the same number of each of DOT_PARTS vectors of W, then the next. */
DOT_INLINE void dot_vector(ccmem_dtype dtype, __m256 sum[DOT_SUMS], VEC w, const float *x,
                           size_t i) {
    const size_t group = i / DOT_PARTS * DOT_PARTS, part = i % DOT_PARTS;
    switch (dtype) {
    case CCMEM_F32: dot_add(sum, _mm256_castsi256_ps(w), x, i); break;
    case CCMEM_F16:
        dot_add(sum, _mm256_cvtph_ps(_mm256_castsi256_si128(w)), x, 2 * i);
        dot_add(sum, _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1)), x, 2 * i + 1);
        break;
    case CCMEM_BF16: {
        const __m256i high = _mm256_set1_epi32((int)0xffff0000);
        const size_t place = 2 * group + part;
        dot_add(sum, _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)), x, place);
        dot_add(sum, _mm256_castsi256_ps(_mm256_and_si256(w, high)), x, place + DOT_PARTS);
        break;
    }
    case CCMEM_I8:
#define DOT_BYTE(k, v)                                                                             \
    dot_add(sum, _mm256_cvtepi32_ps(_mm256_srai_epi32(v, 24)), x,                                  \
            4 * group + part + (k) * DOT_PARTS)
        DOT_BYTE(0, _mm256_slli_epi32(w, 24));
        DOT_BYTE(1, _mm256_slli_epi32(w, 16));
        DOT_BYTE(2, _mm256_slli_epi32(w, 8));
        DOT_BYTE(3, w);
#undef DOT_BYTE
        break;
    }
}

/* Sums up one run of W's bytes that lies in one page and one row. */
DOT_INLINE void dot_run(ccmem_dtype dtype, size_t element, VEC s[8], __m256 sum[DOT_SUMS],
                        const uint8_t *p, size_t n, const float *x) {
    for (const uint8_t *end = p + n; p != end; p += DOT_TURN(element)) {
#pragma GCC unroll 4
        for (size_t i = 0; i < DOT_TURN(element) / 32; i += 2) {
            VEC w[2] = {vload(p + 32 * i), vload(p + 32 * i + 32)};
            __builtin_prefetch(p + 32 * i + DOT_NEAR, 0, 3);
            __builtin_prefetch(p + 32 * i + DOT_FAR, 0, 2);
            open_halves(s, &w[0], &w[1]);
            dot_vector(dtype, sum, w[0], x, i);
            dot_vector(dtype, sum, w[1], x, i + 1);
        }
        x += DOT_TURN(element) / element;
    }
}

DOT_INLINE void load_sums(__m256 sum[DOT_SUMS], const float *from) {
#pragma GCC unroll 8
    for (int j = 0; j < DOT_SUMS; j++)
        sum[j] = _mm256_load_ps(from + 8 * j);
}

DOT_INLINE void save_sums(float *to, const __m256 sum[DOT_SUMS]) {
#pragma GCC unroll 8
    for (int j = 0; j < DOT_SUMS; j++)
        _mm256_store_ps(to + 8 * j, sum[j]);
}

DOT_INLINE size_t open_dot(ccmem_dtype dtype, size_t element, const uint8_t *key,
                           const uint8_t *src, size_t npages, size_t size,
                           const uint8_t (*nonce)[16], const uint8_t (*tag)[16],
                           const dot_rows *d) {
    const shape at = shape_of(2, 0);
    const size_t row_bytes = d->in_features * element;
    size_t i = d->from, done = d->done * element, good = 0;
    float *sums = d->sums, *rest = d->rest;
    __m256 sum[DOT_SUMS];
    load_sums(sum, d->first);
    save_sums(rest, sum);
    for (size_t page = 0; page < npages && good == page; page++) {
        const size_t end = (page + 1) * size;
        VEC s[8];
        start(s, v128_load(key), v128_load(nonce[page]), vcontext(0, 2));
        if (!page)
            verify_run(s, src, i, at);
        load_sums(sum, rest);
        while (i < d->to && i < end) {
            size_t stop = d->to < end ? d->to : end, n = stop - i;
            if (n > row_bytes - done)
                n = row_bytes - done;
            dot_run(dtype, element, s, sum, src + i, n, d->x + done / element);
            i += n;
            done += n;
            if (done == row_bytes) {
                save_sums(sums, sum);
                sums += DOT_BLOCK;
                done = 0;
#pragma GCC unroll 8
                for (int j = 0; j < DOT_SUMS; j++)
                    sum[j] = _mm256_setzero_ps();
            }
        }
        save_sums(rest, sum); /* here, not on the stack while the registers are needed */
        if (i < end)
            verify_run(s, src + i, end - i, at);
        finish(s, 0, size);
        good += (size_t)same_tag(short_tag(s), tag[page]);
    }
    return good;
}

#define DOT(name, dtype, element)                                                                  \
    static DOT_TARGET CLEAR_REGISTERS __attribute__((noinline)) size_t                             \
    name(const uint8_t *key, const uint8_t *src, size_t npages, size_t size,                       \
         const uint8_t (*nonce)[16], const uint8_t (*tag)[16], const dot_rows *d) {                \
        return open_dot(dtype, element, key, src, npages, size, nonce, tag, d);                    \
    }
DOT(open_dot_f32, CCMEM_F32, 4)
DOT(open_dot_f16, CCMEM_F16, 2)
DOT(open_dot_bf16, CCMEM_BF16, 2)
DOT(open_dot_i8, CCMEM_I8, 1)
#undef DOT

static const aegis_dot_function AEGIS_DOT[4] = {[CCMEM_F32] = open_dot_f32,
                                                [CCMEM_F16] = open_dot_f16,
                                                [CCMEM_BF16] = open_dot_bf16,
                                                [CCMEM_I8] = open_dot_i8};
