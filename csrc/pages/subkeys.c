/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of entries for each level of secret memory, filled in turn. Readers take no lock: an
 * entry has a sequence number, odd while it is being filled, and they look at it again afterwards,
 * as at a page's version. That is needed though pages have tags: a page that was put in the place
 * of another store's would match its tag under that store's subkey. Entries come round after many
 * others, so that a reader has to begin again is rare. */
#include "pages/subkeys.h"

#include <pthread.h>
#include <string.h>

#include "memory/secret.h"
#include "platform/fork.h"

enum {
    SLOTS = 2,
    EACH = SECRET_SLOT_MAX / SUBKEY_SIZE,
    ENTRIES = SLOTS * EACH,
    LEVELS = CCMEM_SECRET_MLOCK_ONLY + 1
};

typedef struct entry {
    uint64_t sequence; /* atomic */
    uint64_t owner;    /* serial, atomic; 0: none */
} entry;

typedef struct table {
    uint64_t generation;
    uint64_t users;
    uint8_t *slot[SLOTS];
    ccmem_secret_level level;
    uint32_t next;
    entry entry[ENTRIES];
} table;

static table tables[LEVELS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t serials; /* atomic */

/* Another thread of the parent may have held the lock. What the child inherits of the tables is
 * told by their generation. */
static void after_fork(void) { pthread_mutex_init(&lock, NULL); }

static uint8_t *place(const table *t, uint32_t i) {
    return t->slot[i / EACH] + (size_t)(i % EACH) * SUBKEY_SIZE;
}

static void give_back(table *t) {
    for (int i = 0; i < SLOTS; i++) {
        secret_free(t->slot[i]);
        t->slot[i] = NULL;
    }
}

/* With the lock held. */
static ccmem_status join(table *t, ccmem_secret_level require) {
    const uint64_t generation = fork_generation();
    if (t->generation != generation) { /* the parent's: its slots are not mapped here */
        memset(t, 0, sizeof *t);
        t->generation = generation;
    }
    for (int i = 0; i < SLOTS && !t->users; i++) {
        void *slot;
        ccmem_status status = secret_alloc(SECRET_SLOT_MAX, require, &slot, &t->level);
        if (status != CCMEM_OK) {
            give_back(t);
            return status;
        }
        t->slot[i] = slot;
    }
    t->users++;
    return CCMEM_OK;
}

ccmem_status subkeys_open(subkeys *of, ccmem_key *root, const char *cipher, uint32_t page_size,
                          ccmem_secret_level *level) {
    const ccmem_secret_level require = key_require(root);
    pthread_mutex_lock(&lock);
    fork_handle(FORK_SUBKEYS, (fork_handlers){.in_child = after_fork});
    ccmem_status status = join(&tables[require], require);
    pthread_mutex_unlock(&lock);
    if (status != CCMEM_OK)
        return status;
    *of = (subkeys){key_retain(root), cipher, page_size, (int)require};
    *level = tables[require].level;
    return CCMEM_OK;
}

void subkeys_close(subkeys *of, int alien) {
    table *t = &tables[of->level];
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
    table *t = &tables[of->level];
    pthread_mutex_lock(&lock);
    entry *e = &t->entry[k->entry];
    if (e->owner == k->serial) {
        begin(e);
        ccmem_wipe(place(t, k->entry), SUBKEY_SIZE);
        end(e, 0);
    }
    pthread_mutex_unlock(&lock);
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
        t->next = (at + 1) % ENTRIES;
        begin(&t->entry[at]);
        /* It cannot fail: the key is this process's, as the store is that is asked to read. */
        (void)key_derive(of->root, of->cipher, k->id, of->page_size, place(t, at), SUBKEY_SIZE);
        end(&t->entry[at], k->serial);
        __atomic_store_n(&k->entry, at, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    return 1;
}

const uint8_t *subkey_borrow(const subkeys *of, subkey *k, uint64_t *ticket) {
    table *t = &tables[of->level];
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
    table *t = &tables[of->level];
    pthread_mutex_lock(&lock);
    ccmem_key *root = of->root;
    of->root = NULL;
    for (uint32_t i = 0; root && i < ENTRIES; i++) {
        begin(&t->entry[i]);
        ccmem_wipe(place(t, i), SUBKEY_SIZE);
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
    const entry *e = &tables[of->level].entry[ticket & 511];
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n(&e->sequence, __ATOMIC_RELAXED) == ticket >> 9;
}

_Static_assert(ENTRIES <= 512, "a ticket has room for the entry's number");
