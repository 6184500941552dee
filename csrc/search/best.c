/* SPDX-License-Identifier: Apache-2.0
 * The k best rows so far, as a heap. */
#include <math.h>

#include "search/search.h"

static int worse(float score, int64_t id, float than_score, int64_t than_id) {
    return score < than_score || (score == than_score && id > than_id);
}

float best_threshold(const best *b) { return b->size < b->k ? -INFINITY : b->score[0]; }

/* Lets an entry sink from place `at` of the first n until none below it is worse. */
static void sink(best *b, uint64_t at, uint64_t n, float score, int64_t id) {
    for (uint64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n &&
            worse(b->score[child + 1], b->id[child + 1], b->score[child], b->id[child]))
            child++;
        if (!worse(b->score[child], b->id[child], score, id))
            break;
        b->score[at] = b->score[child];
        b->id[at] = b->id[child];
        at = child;
    }
    b->score[at] = score;
    b->id[at] = id;
}

void best_add(best *b, float score, int64_t id) {
    if (score != score)
        return;
    if (b->size == b->k) {
        if (worse(b->score[0], b->id[0], score, id))
            sink(b, 0, b->size, score, id);
        return;
    }
    uint64_t at = b->size++;
    while (at && worse(score, id, b->score[(at - 1) / 2], b->id[(at - 1) / 2])) {
        b->score[at] = b->score[(at - 1) / 2];
        b->id[at] = b->id[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    b->score[at] = score;
    b->id[at] = id;
}

void best_merge(best *b, const best *from) {
    for (uint64_t i = 0; i < from->size; i++)
        best_add(b, from->score[i], from->id[i]);
}

void best_sort(best *b) {
    for (uint64_t n = b->size; n > 1; n--) {
        const float score = b->score[n - 1];
        const int64_t id = b->id[n - 1];
        b->score[n - 1] = b->score[0];
        b->id[n - 1] = b->id[0];
        sink(b, 0, n - 1, score, id);
    }
    for (; b->size < b->k; b->size++) {
        b->score[b->size] = -INFINITY;
        b->id[b->size] = -1;
    }
}
