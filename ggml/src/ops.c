/* SPDX-License-Identifier: Apache-2.0
 * Shapes and strides here; numbers in product.c. ggml's dimensions are reversed: ne[0] are the
 * columns. */
#include "ops.h"

#include <stdlib.h>
#include <string.h>

#include "product.h"

static uint8_t *at(const struct ggml_tensor *t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
    return (uint8_t *)t->data + (size_t)i0 * t->nb[0] + (size_t)i1 * t->nb[1] +
           (size_t)i2 * t->nb[2] + (size_t)i3 * t->nb[3];
}

static int32_t index_at(const struct ggml_tensor *t, int64_t i0, int64_t i1, int64_t i2) {
    int32_t index;
    memcpy(&index, at(t, i0, i1, i2, 0), sizeof index);
    return index;
}

/* An encrypted matrix, or several, whose rows lie one after the other. */
static bool is_matrix(const struct ggml_tensor *t) {
    if (!weights_hold(t) || !product_knows(t->type))
        return false;
    const struct ggml_type_traits *traits = host.type_traits(t->type);
    return t->nb[0] == traits->type_size &&
           t->nb[1] == traits->type_size * (size_t)(t->ne[0] / traits->blck_size);
}

/* Activations: float32, each row without gaps, in memory of their own. */
static bool is_float(const struct ggml_tensor *t) {
    return t && t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float) &&
           t->nb[1] % sizeof(float) == 0 && !weights_hold(t);
}

static bool is_index(const struct ggml_tensor *t) {
    return t && t->type == GGML_TYPE_I32 && !weights_hold(t);
}

static uint64_t row_step(const struct ggml_tensor *t) { return t->nb[1] / sizeof(float); }

/* ---- products -------------------------------------------------------------------------------- */

static bool can_mul_mat(const struct ggml_tensor *node) {
    const struct ggml_tensor *x = node->src[1];
    return is_matrix(node->src[0]) && is_float(x) && is_float(node) &&
           (x->ne[1] <= 1 || x->nb[1] >= (size_t)x->ne[0] * sizeof(float));
}

/* Each matrix of W serves x's matrices [i * r, (i + 1) * r), r the ratio of their numbers. */
static ccmem_status mul_mat(struct ggml_tensor *node) {
    const struct ggml_tensor *w = node->src[0], *x = node->src[1];
    const int64_t r2 = x->ne[2] / w->ne[2], r3 = x->ne[3] / w->ne[3];
    for (int64_t i3 = 0; i3 < x->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < x->ne[2]; i2++) {
            matrix m;
            ccmem_status status = product_matrix(w, i2 / r2, i3 / r3, &m);
            if (status == CCMEM_OK)
                status =
                    product_multiply(&m, (const float *)at(x, 0, 0, i2, i3), (uint64_t)x->ne[1],
                                     row_step(x), (float *)at(node, 0, 0, i2, i3), row_step(node));
            if (status != CCMEM_OK)
                return status;
        }
    return CCMEM_OK;
}

static bool can_mul_mat_id(const struct ggml_tensor *node) {
    return can_mul_mat(node) && is_index(node->src[2]);
}

/* The rows of x that are multiplied by one expert's matrix. */
typedef struct expert_rows {
    float *x, *y;
    struct ggml_tensor *node;
    int64_t (*places)[2]; /* slot and token of each */
    uint64_t count;
} expert_rows;

static uint64_t collect(expert_rows *rows, int32_t expert) {
    const struct ggml_tensor *x = rows->node->src[1], *ids = rows->node->src[2];
    const size_t row_bytes = (size_t)x->ne[0] * sizeof(float);
    rows->count = 0;
    for (int64_t token = 0; token < ids->ne[1]; token++)
        for (int64_t slot = 0; slot < ids->ne[0]; slot++) {
            if (index_at(ids, slot, token, 0) != expert)
                continue;
            memcpy((uint8_t *)rows->x + rows->count * row_bytes,
                   at(x, 0, slot % x->ne[1], token, 0), row_bytes);
            rows->places[rows->count][0] = slot;
            rows->places[rows->count][1] = token;
            rows->count++;
        }
    return rows->count;
}

static ccmem_status mul_mat_id(struct ggml_tensor *node) {
    const struct ggml_tensor *w = node->src[0], *x = node->src[1], *ids = node->src[2];
    const uint64_t in = (uint64_t)w->ne[0], out = (uint64_t)w->ne[1];
    const uint64_t most = (uint64_t)ids->ne[0] * (uint64_t)ids->ne[1];
    expert_rows rows = {.x = malloc(most * in * sizeof(float)),
                        .y = malloc(most * out * sizeof(float)),
                        .node = node,
                        .places = malloc(most * sizeof *rows.places)};
    uint64_t done = 0;
    ccmem_status status = rows.x && rows.y && rows.places ? CCMEM_OK : CCMEM_ERR_NOMEM;
    (void)x;
    for (int64_t e = 0; status == CCMEM_OK && e < w->ne[2]; e++) {
        matrix m;
        if (!collect(&rows, (int32_t)e))
            continue;
        done += rows.count;
        status = product_matrix(w, e, 0, &m);
        if (status == CCMEM_OK)
            status = product_multiply(&m, rows.x, rows.count, in, rows.y, out);
        for (uint64_t i = 0; status == CCMEM_OK && i < rows.count; i++)
            memcpy(at(node, 0, rows.places[i][0], rows.places[i][1], 0), rows.y + i * out,
                   out * sizeof(float));
    }
    if (status == CCMEM_OK && done != most)
        status = CCMEM_ERR_RANGE; /* an index of no expert */
    free(rows.x);
    free(rows.y);
    free(rows.places);
    return status;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static bool can_get_rows(const struct ggml_tensor *node) {
    return is_matrix(node->src[0]) && is_index(node->src[1]) && is_float(node);
}

static ccmem_status get_rows(struct ggml_tensor *node) {
    const struct ggml_tensor *w = node->src[0], *ids = node->src[1];
    for (int64_t i2 = 0; i2 < ids->ne[2]; i2++)
        for (int64_t i1 = 0; i1 < ids->ne[1]; i1++) {
            matrix m;
            ccmem_status status = product_matrix(w, i1, i2, &m);
            for (int64_t i0 = 0; status == CCMEM_OK && i0 < ids->ne[0]; i0++)
                status =
                    product_row(&m, index_at(ids, i0, i1, i2), (float *)at(node, 0, i0, i1, i2));
            if (status != CCMEM_OK)
                return status;
        }
    return CCMEM_OK;
}

/* ---- elementwise ----------------------------------------------------------------------------- */

static void add(float *y, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] + b[i];
}

static void multiply(float *y, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = a[i] * b[i];
}

static bool can_combine(const struct ggml_tensor *node) {
    const struct ggml_tensor *a = node->src[0], *w = node->src[1];
    return is_matrix(w) && is_float(a) && is_float(node) && w->ne[0] == a->ne[0];
}

/* y = a + w or a * w, where w is repeated over the rows of a. One row of w is in the clear at a
 * time, in `row`. */
static ccmem_status combine(struct ggml_tensor *node, float *row,
                            void (*one)(float *, const float *, const float *, int64_t)) {
    const struct ggml_tensor *a = node->src[0], *w = node->src[1];
    const bool single = w->ne[1] == 1 && w->ne[2] == 1 && w->ne[3] == 1;
    matrix m;
    ccmem_status status = product_matrix(w, 0, 0, &m);
    if (status == CCMEM_OK && single)
        status = product_row(&m, 0, row);
    for (int64_t i3 = 0; i3 < a->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < a->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < a->ne[1]; i1++) {
                if (status == CCMEM_OK && !single)
                    status = product_matrix(w, i2 % w->ne[2], i3 % w->ne[3], &m);
                if (status == CCMEM_OK && !single)
                    status = product_row(&m, i1 % w->ne[1], row);
                if (status != CCMEM_OK)
                    return status;
                one((float *)at(node, 0, i1, i2, i3), (const float *)at(a, 0, i1, i2, i3), row,
                    a->ne[0]);
            }
    return status;
}

static bool can_add_id(const struct ggml_tensor *node) {
    return can_combine(node) && is_index(node->src[2]);
}

/* y = a + the row of w that the index says. */
static ccmem_status add_id(struct ggml_tensor *node, float *row) {
    const struct ggml_tensor *a = node->src[0], *ids = node->src[2];
    matrix m;
    ccmem_status status = product_matrix(node->src[1], 0, 0, &m);
    for (int64_t i2 = 0; i2 < a->ne[2]; i2++)
        for (int64_t i1 = 0; i1 < a->ne[1]; i1++) {
            if (status == CCMEM_OK)
                status = product_row(&m, index_at(ids, i1, i2, 0), row);
            if (status != CCMEM_OK)
                return status;
            add((float *)at(node, 0, i1, i2, 0), (const float *)at(a, 0, i1, i2, 0), row, a->ne[0]);
        }
    return status;
}

static ccmem_status with_row(struct ggml_tensor *node) {
    uint8_t *row = NULL;
    ccmem_status status = ccmem_plain_alloc((uint64_t)node->ne[0] * sizeof(float), &row);
    if (status == CCMEM_OK)
        status = node->op == GGML_OP_ADD_ID
                     ? add_id(node, (float *)row)
                     : combine(node, (float *)row, node->op == GGML_OP_ADD ? add : multiply);
    ccmem_plain_free(row);
    return status;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static const struct operation {
    enum ggml_op op;
    bool (*can)(const struct ggml_tensor *node);
    ccmem_status (*compute)(struct ggml_tensor *node);
} operations[] = {
    {GGML_OP_MUL_MAT, can_mul_mat, mul_mat},    {GGML_OP_MUL_MAT_ID, can_mul_mat_id, mul_mat_id},
    {GGML_OP_GET_ROWS, can_get_rows, get_rows}, {GGML_OP_ADD, can_combine, with_row},
    {GGML_OP_MUL, can_combine, with_row},       {GGML_OP_ADD_ID, can_add_id, with_row},
};

/* Nothing is computed for these. */
static bool is_view(enum ggml_op op) {
    return op == GGML_OP_NONE || op == GGML_OP_RESHAPE || op == GGML_OP_VIEW ||
           op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

static const struct operation *find(enum ggml_op op) {
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].op == op)
            return &operations[i];
    return NULL;
}

bool ops_supported(const struct ggml_tensor *node) {
    const struct operation *operation = find(node->op);
    return is_view(node->op) || (operation && operation->can(node));
}

/* Zeros for all rows of a node. */
static void zero(struct ggml_tensor *node) {
    for (int64_t i3 = 0; i3 < node->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < node->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < node->ne[1]; i1++)
                memset(at(node, 0, i1, i2, i3), 0, (size_t)node->ne[0] * sizeof(float));
}

ccmem_status ops_compute(struct ggml_tensor *node) {
    const struct operation *operation = find(node->op);
    if (is_view(node->op))
        return CCMEM_OK;
    if (!operation || !operation->can(node))
        return CCMEM_ERR_ARGUMENT;
    ccmem_status status = operation->compute(node);
    if (status != CCMEM_OK)
        zero(node);
    return status;
}
