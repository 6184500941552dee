/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of entries for each level of secret memory and each suite, filled in turn. Readers take
 * no lock: an entry has a sequence number, odd while it is being filled, and they look at it again
 * afterwards, as at a page's version. That is needed though pages have tags: a page that was put in
 * the place of another store's would match its tag under that store's subkey. Entries come round
 * after many others, so that a reader has to begin again is rare. */
#include "pages/subkeys.h"

#include <pthread.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/fork.h"

enum {
    LEVELS = CCMEM_SECRET_MLOCK_ONLY + 1,
    SLOTS = 8, /* at most, of keys that are expanded; of others FEW_SLOTS */
    FEW_SLOTS = 2,
    ALIGN = 16, /* of an entry, which is one key */
    EXPANDED_ALIGN = 64,
    ENTRIES = FEW_SLOTS * SECRET_SLOT_MAX / ALIGN /* at most */
};

typedef struct entry {
    uint64_t sequence; /* atomic */
    uint64_t owner;    /* serial, atomic; 0: none */
} entry;

typedef struct table {
    uint64_t generation;
    uint64_t users;
    uint8_t *slot[SLOTS];
    uint8_t *raw; /* what an expanded key is made of, while it is; NULL: keys are not expanded */
    ccmem_secret_level level;
    uint32_t slots, size, each; /* how many, bytes of an entry, entries in one */
    uint32_t next;
    entry entry[ENTRIES];
} table;

static table tables[LEVELS][CCMEM_CIPHER_COUNT];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t serials; /* atomic */

/* Another thread of the parent may have held the lock. What the child inherits of the tables is
 * told by their generation. */
static void after_fork(void) { pthread_mutex_init(&lock, NULL); }

static table *table_of(const subkeys *of) { return &tables[of->level][of->cipher]; }

static uint32_t entries(const table *t) { return t->slots * t->each; }

static uint8_t *place(const table *t, uint32_t i) {
    return t->slot[i / t->each] + (size_t)(i % t->each) * t->size;
}

static void give_back(table *t) {
    for (int i = 0; i < SLOTS; i++) {
        secret_free(t->slot[i]);
        t->slot[i] = NULL;
    }
    secret_free(t->raw);
    t->raw = NULL;
}

/* The sizes of a table, and the memory. */
static ccmem_status take(table *t, const page_suite *suite, ccmem_secret_level require) {
    const size_t align = suite->expand ? EXPANDED_ALIGN : ALIGN;
    ccmem_status status = CCMEM_OK;
    void *slot;
    t->slots = suite->expand ? SLOTS : FEW_SLOTS;
    t->size = (uint32_t)((suite->key_size + align - 1) & ~(align - 1));
    t->each = SECRET_SLOT_MAX / t->size;
    if (suite->expand) {
        status = secret_alloc(PAGE_SUBKEY_MAX, require, &slot, NULL);
        t->raw = status == CCMEM_OK ? slot : NULL;
    }
    for (uint32_t i = 0; i < t->slots && status == CCMEM_OK; i++) {
        status = secret_alloc(SECRET_SLOT_MAX, require, &slot, &t->level);
        if (status == CCMEM_OK)
            t->slot[i] = slot;
    }
    if (status != CCMEM_OK)
        give_back(t);
    return status;
}

/* With the lock held. */
static ccmem_status join(table *t, const page_suite *suite, ccmem_secret_level require) {
    const uint64_t generation = fork_generation();
    if (t->generation != generation) { /* the parent's: its slots are not mapped here */
        memset(t, 0, sizeof *t);
        t->generation = generation;
    }
    ccmem_status status = t->users ? CCMEM_OK : take(t, suite, require);
    if (status == CCMEM_OK)
        t->users++;
    return status;
}

ccmem_status subkeys_open(subkeys *of, ccmem_key *root, ccmem_cipher cipher, uint32_t page_size,
                          ccmem_secret_level *level) {
    const ccmem_secret_level require = key_require(root);
    pthread_mutex_lock(&lock);
    fork_handle(FORK_SUBKEYS, (fork_handlers){.in_child = after_fork});
    ccmem_status status = join(&tables[require][cipher], page_suite_of(cipher), require);
    pthread_mutex_unlock(&lock);
    if (status != CCMEM_OK)
        return status;
    *of = (subkeys){key_retain(root), cipher, page_size, (int)require};
    *level = tables[require][cipher].level;
    return CCMEM_OK;
}

void subkeys_close(subkeys *of, int alien) {
    table *t = table_of(of);
    if (!alien) {
        pthread_mutex_lock(&lock);
        if (!--t->users)
            give_back(t);
        pthread_mutex_unlock(&lock);
    }
    ccmem_key_free(of->root);
}

void subkey_begin(subkey *k, const uint8_t id[CCMEM_STORE_ID_SIZE]) {
    memcpy(k->id, id, sizeof k->id);
    k->serial = __atomic_add_fetch(&serials, 1, __ATOMIC_RELAXED);
    k->entry = 0;
}

/* Before what readers may see of the entry changes, and after. With the lock held. */
static void begin(entry *e) {
    __atomic_store_n(&e->sequence, e->sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static void end(entry *e, uint64_t owner) {
    __atomic_store_n(&e->owner, owner, __ATOMIC_RELAXED);
    __atomic_store_n(&e->sequence, e->sequence + 1, __ATOMIC_RELEASE);
}

void subkey_end(const subkeys *of, const subkey *k) {
    table *t = table_of(of);
    pthread_mutex_lock(&lock);
    entry *e = &t->entry[k->entry];
    if (e->owner == k->serial) {
        begin(e);
        ccmem_wipe(place(t, k->entry), t->size);
        end(e, 0);
    }
    pthread_mutex_unlock(&lock);
}

/* It cannot fail: the key is this process's, as the store is that is asked to read, and suites with
 * tags expand every subkey. */
static void derive(const subkeys *of, const subkey *k, table *t, uint8_t *out) {
    const page_suite *suite = page_suite_of(of->cipher);
    const size_t n = suite->is.subkey_size;
    uint8_t *raw = suite->expand ? t->raw : out;
    (void)key_derive(of->root, suite->derive, suite->is.name, k->id, of->page_size, raw, n);
    if (suite->expand) {
        (void)suite->expand(out, raw, n);
        ccmem_wipe(raw, n);
    }
}

/* Returns 0 when there is no root to derive from. */
static int fill(const subkeys *of, subkey *k, table *t) {
    pthread_mutex_lock(&lock);
    if (!of->root) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    uint32_t at = k->entry;
    if (t->entry[at].owner != k->serial) { /* else another thread was quicker */
        at = t->next;
        t->next = (at + 1) % entries(t);
        begin(&t->entry[at]);
        derive(of, k, t, place(t, at));
        end(&t->entry[at], k->serial);
        __atomic_store_n(&k->entry, at, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    return 1;
}

const uint8_t *subkey_borrow(const subkeys *of, subkey *k, uint64_t *ticket) {
    table *t = table_of(of);
    for (;;) {
        uint32_t at = __atomic_load_n(&k->entry, __ATOMIC_RELAXED);
        const entry *e = &t->entry[at];
        uint64_t sequence = __atomic_load_n(&e->sequence, __ATOMIC_ACQUIRE);
        if (!(sequence & 1) && __atomic_load_n(&e->owner, __ATOMIC_RELAXED) == k->serial) {
            /* The owner that was seen is that of this sequence number, or the later look fails. */
            *ticket = sequence << 9 | at;
            return place(t, at);
        }
        if (!fill(of, k, t))
            return NULL;
    }
}

void subkeys_withhold(subkeys *of) {
    table *t = table_of(of);
    pthread_mutex_lock(&lock);
    ccmem_key *root = of->root;
    of->root = NULL;
    for (uint32_t i = 0; root && i < entries(t); i++) {
        begin(&t->entry[i]);
        ccmem_wipe(place(t, i), t->size);
        end(&t->entry[i], 0);
    }
    pthread_mutex_unlock(&lock);
    ccmem_key_free(root);
}

void subkeys_restore(subkeys *of, ccmem_key *root) {
    pthread_mutex_lock(&lock);
    ccmem_key *before = of->root;
    of->root = key_retain(root);
    pthread_mutex_unlock(&lock);
    ccmem_key_free(before);
}

int subkey_kept(const subkeys *of, uint64_t ticket) {
    const entry *e = &table_of(of)->entry[ticket & 511];
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&e->sequence, __ATOMIC_RELAXED) == ticket >> 9;
}

_Static_assert(ENTRIES <= 512, "a ticket has room for the entry's number");
