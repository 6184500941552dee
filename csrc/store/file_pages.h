/* SPDX-License-Identifier: Apache-2.0
 * The pages of one file, in few mappings for however many stores. */
#ifndef CCMEM_FILE_PAGES_H
#define CCMEM_FILE_PAGES_H

#include <pthread.h>

#include "store/core.h"

typedef struct file_pages {
    uint64_t begin, end; /* of all pages in the file */
    int read; /* atomic; 1: into memory of their own, as asked for or since nothing else can be */
    pthread_mutex_t lock; /* for what follows */
    ccmem_file_way way;   /* of `whole` */
    int asked;            /* for `whole` */
    ccmem_mapping *whole; /* of all pages; NULL: not yet, or refused */
    ccmem_mapping *room;  /* addresses for pages that are read; NULL: none yet */
    uint64_t used;        /* of it */
} file_pages;

/* Pages from `begin` to `end` of a file; with `read`, to be read into memory. Nothing is mapped
 * yet. CCMEM_ERR_NOMEM. */
ccmem_status file_pages_begin(file_pages *f, uint64_t begin, uint64_t end, int read);

/* Where n bytes (0: nowhere, and no mapping) of the open file `fd` from `offset` on are, within the
 * pages that were announced, and what mapping they lie in, with a reference to it for the caller.
 * *way is how they came there. CCMEM_ERR_RANGE when the file ends before; CCMEM_ERR_NOMEM,
 * CCMEM_ERR_IO (errno says why). */
ccmem_status file_pages_get(file_pages *f, int fd, uint64_t offset, uint64_t n,
                            ccmem_mapping **mapping, uint8_t **ct, ccmem_file_way *way);

/* Drops its own references to mappings. */
void file_pages_end(file_pages *f);

#endif
