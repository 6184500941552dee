/* SPDX-License-Identifier: Apache-2.0 */
#include "pages/key_text.h"

#include "memory/secret.h"

/* 1 when a < b, else 0, without a comparison that could become a branch; both below 2^31. */
static unsigned below(unsigned a, unsigned b) { return (a - b) >> 31; }

/* The value of a hexadecimal digit; sets *bad when it is none. */
static unsigned hex_digit(unsigned c, unsigned *bad) {
    unsigned digit = (c - '0') & 0xff, letter = ((c | 0x20) - 'a') & 0xff;
    unsigned is_digit = below(digit, 10), is_letter = below(letter, 6);

    *bad |= 1 ^ (is_digit | is_letter);
    return (digit & (0 - is_digit)) | ((letter + 10) & (0 - is_letter));
}

/* Decodes 64 digits in time that does not depend on them. `out` may be `text`, or lie before it. */
static ccmem_status hex_decode(const uint8_t *text, uint8_t *out) {
    unsigned bad = 0;

    for (size_t i = 0; i < HEX_DIGITS; i++)
        (void)hex_digit(text[i], &bad);
    DECLASSIFY(bad); /* that some digit is none is what the caller is told; not which */
    if (bad)
        return CCMEM_ERR_KEYFILE;
    for (size_t i = 0; i < CCMEM_ROOT_KEY_SIZE; i++) {
        unsigned hi = hex_digit(text[2 * i], &bad), lo = hex_digit(text[2 * i + 1], &bad);
        out[i] = (uint8_t)(hi << 4 | lo);
    }
    return CCMEM_OK;
}

/* 1 for n >= 3 bytes that begin with a byte order mark, which no digits do. */
static unsigned has_bom(const uint8_t *text) {
    unsigned differs = (text[0] ^ 0xefu) | (text[1] ^ 0xbbu) | (text[2] ^ 0xbfu);
    unsigned same = below(differs, 1);

    DECLASSIFY(same); /* says nothing of the digits */
    return same;
}

static int is_blank(unsigned c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* Returns where the digits begin, if `digits` of them, `more` bytes that need not be there and
 * blanks are all that is in the n bytes; else n. */
static size_t digits_at(const uint8_t *raw, size_t n, size_t digits, unsigned more) {
    size_t at = n >= digits && has_bom(raw) ? BOM_SIZE : 0, end = at + digits;

    if (n < end || n - end > BLANKS_MAX + (size_t)(more != 0))
        return n;
    if (more && end < n) {
        uint8_t c = raw[end];
        DECLASSIFY(c); /* no byte of the key */
        end += c == more;
    }
    for (size_t i = end; i < n; i++) {
        uint8_t c = raw[i];
        DECLASSIFY(c); /* no byte of the key: anything but a blank is refused */
        if (!is_blank(c))
            return n;
    }
    return at;
}

ccmem_status key_text_hex(uint8_t *raw, size_t n) {
    size_t at = digits_at(raw, n, HEX_DIGITS, 0);

    return at == n ? CCMEM_ERR_KEYFILE : hex_decode(raw + at, raw);
}

/* The value of a digit of base64, of either alphabet; sets *bad when it is none. */
static unsigned base64_digit(unsigned c, unsigned *bad) {
    unsigned upper = (c - 'A') & 0xff, lower = (c - 'a') & 0xff, digit = (c - '0') & 0xff;
    unsigned is_upper = below(upper, 26), is_lower = below(lower, 26), is_digit = below(digit, 10);
    unsigned is_62 = below(c ^ '+', 1) | below(c ^ '-', 1);
    unsigned is_63 = below(c ^ '/', 1) | below(c ^ '_', 1);

    *bad |= 1 ^ (is_upper | is_lower | is_digit | is_62 | is_63);
    return (upper & (0 - is_upper)) | ((lower + 26) & (0 - is_lower)) |
           ((digit + 52) & (0 - is_digit)) | (62 & (0 - is_62)) | (63 & (0 - is_63));
}

ccmem_status key_text_base64(uint8_t *raw, size_t n) {
    size_t at = digits_at(raw, n, BASE64_DIGITS, '=');
    unsigned bad = 0, bits = 0, count = 0;

    if (at == n)
        return CCMEM_ERR_KEYFILE;
    for (size_t i = 0; i < BASE64_DIGITS; i++)
        (void)base64_digit(raw[at + i], &bad);
    /* Of the last digit two bits belong to no byte. */
    bad |= base64_digit(raw[at + BASE64_DIGITS - 1], &bad) & 3;
    DECLASSIFY(bad); /* that it is no key, and not where */
    if (bad)
        return CCMEM_ERR_KEYFILE;
    for (size_t i = 0, to = 0; i < BASE64_DIGITS; i++) {
        bits = bits << 6 | base64_digit(raw[at + i], &bad);
        count += 6;
        if (count >= 8) {
            count -= 8;
            raw[to++] = (uint8_t)(bits >> count);
            bits &= (1u << count) - 1;
        }
    }
    return CCMEM_OK;
}
