/* SPDX-License-Identifier: Apache-2.0
 * Numbers by which attention kernels compute exp(y), y <= 0, and exp(y) - 1: with t = y / ln 2 to
 * the nearest whole number and r = y - t ln 2, exp(y) = 2^t exp(r), and exp(r) - 1 = r + r^2 (C2 +
 * C3 r + ... + C6 r^4) for |r| <= ln 2 / 2. The coefficients make the largest relative error of
 * exp(r) smallest, 2^-28: weighted least squares for them at 4001 Chebyshev points, each weight
 * multiplied by its error over the largest until all peaks are equal (C. Lawson, 1961), then
 * rounded to float32. */
#ifndef CCMEM_EXPONENTIAL_H
#define CCMEM_EXPONENTIAL_H

/* Below it exp(y) counts as 0; 2^t is a normal number from here on. */
#define EXP_LOWEST (-87.0f)
#define EXP_PER_LN2 0x1.715476p+0f
/* Added, it rounds to a whole number t, and leaves t + 127, the exponent of 2^t, in the low bits.
 */
#define EXP_ROUND (0x1.8p23f + 127.0f)
/* ln 2 in two parts; t times the first one is exact. */
#define EXP_LN2_HIGH 0x1.63p-1f
#define EXP_LN2_LOW (-0x1.bd0106p-13f)
#define EXP_C2 0x1.fffffcp-2f
#define EXP_C3 0x1.555492p-3f
#define EXP_C4 0x1.5558f2p-5f
#define EXP_C5 0x1.1239e2p-7f
#define EXP_C6 0x1.6a2434p-10f

#endif
