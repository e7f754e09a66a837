/* A map from each live block to its counter and its size.

   The map has one entry of 16 bits for each 16 bytes of address space (a granule). The entries of a block's own
   granules describe the block, so that a lookup touches one cache line and a block needs no record elsewhere:

       up to 16 bytes      entry 0: tag, odd                            counted as 16 bytes, which the block occupies
       up to 65,535        entry 0: tag, even   entry 1: size
       more                entry 0: tag, even   entry 1: 0   entries 2 to 5: size

   A tag is the number of the counter plus one, doubled. A tag of zero marks a block that is not counted.

   The entries lie in pages of 8 MiB, one for each 64 MiB of address space, which a table of pointers finds. Table and
   pages are never unmapped; the parts that were not touched occupy no memory.

   Locking: a block's entries belong to the thread that holds the block. Functions without another rule may be called
   by any thread, with or without the GIL, for a block that the thread has just allocated or is about to free. */

#ifndef MEMTOOLS_BLOCK_MAP_H
#define MEMTOOLS_BLOCK_MAP_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

#define GRANULE_BITS 4
#define PAGE_BITS 26
#define ADDRESS_BITS 48 /* user space of x86-64 and AArch64; blocks above are not counted */
#define PAGE_COUNT ((size_t)1 << (ADDRESS_BITS - PAGE_BITS))
#define PAGE_BYTES ((uintptr_t)1 << PAGE_BITS)
#define PAGE_ENTRIES ((size_t)1 << (PAGE_BITS - GRANULE_BITS))

#define MIN_COUNTED_SIZE 16 /* a smaller block is counted with this size */
#define MAX_SHORT_SIZE 0xFFFF
#define MAX_COUNTERS 32767 /* a tag of 16 bits can tell so many apart */

typedef uint16_t map_entry;

extern HIDDEN _Atomic(map_entry *) *block_map_pages;

/* Map the table; -1 if there is no address space for it. GIL. */
int block_map_start(void);

/* Map a page, unless another thread has mapped it first; NULL if there is no address space. Any thread, no GIL. */
map_entry *block_map_add_page(size_t index);

/* Return the start of one of the mappings, numbered from 0, and store its size; NULL if there is none of that number. */
const void *block_map_mapping(size_t number, size_t *size);

/* Remove every block. GIL. A block that another thread allocates meanwhile, without the GIL, may be removed, too. */
void block_map_clear(void);

/* Return the first entry of a block, NULL where no block has ever been counted. Any thread, no GIL. */
static inline map_entry *block_map_find(const void *block)
{
    size_t index = (uintptr_t)block >> PAGE_BITS;
    if (UNLIKELY(index >= PAGE_COUNT)) {
        return NULL;
    }
    map_entry *page = atomic_load_explicit(&block_map_pages[index], memory_order_acquire);
    return UNLIKELY(page == NULL) ? NULL : page + (((uintptr_t)block & (PAGE_BYTES - 1)) >> GRANULE_BITS);
}

/* Return the first entry of a block, mapping its page if necessary; NULL if that fails. Any thread, no GIL. */
static inline map_entry *block_map_find_or_add(const void *block)
{
    size_t index = (uintptr_t)block >> PAGE_BITS;
    if (UNLIKELY(index >= PAGE_COUNT)) {
        return NULL;
    }
    map_entry *page = atomic_load_explicit(&block_map_pages[index], memory_order_acquire);
    if (UNLIKELY(page == NULL) && (page = block_map_add_page(index)) == NULL) {
        return NULL;
    }
    return page + (((uintptr_t)block & (PAGE_BYTES - 1)) >> GRANULE_BITS);
}

/* Return the number of bytes that a block of a requested size is counted with. Any thread, no GIL. */
static inline size_t block_map_counted_size(size_t size)
{
    return size < MIN_COUNTED_SIZE ? MIN_COUNTED_SIZE : size;
}

/* Record counter and size of a block. Called by the thread that has just allocated the block, no GIL. */
static inline void block_map_write(map_entry *at, uint32_t counter, size_t size)
{
    map_entry tag = (map_entry)((counter + 1) << 1);
    if (size <= MIN_COUNTED_SIZE) {
        at[0] = tag | 1;
    }
    else if (LIKELY(size <= MAX_SHORT_SIZE)) {
        at[0] = tag;
        at[1] = (map_entry)size;
    }
    else {
        uint64_t exact = size;
        at[0] = tag;
        at[1] = 0;
        memcpy(at + 2, &exact, sizeof exact);
    }
}

/* Return the size that a block was counted with, 0 if it is not counted. Called by the thread that holds the block,
   no GIL. */
size_t block_map_size(const map_entry *at);

/* Read and clear a size that does not fit into one entry. Called by the thread that holds the block, no GIL. */
size_t block_map_remove_long_size(map_entry *at);

/* Clear a block's entries; return its size and store its counter, or return 0 if it is not counted. Called by the
   thread that is about to free the block, before it does, because another thread may get the block then. No GIL. */
static inline size_t block_map_remove(map_entry *at, uint32_t *counter)
{
    map_entry tag = at[0];
    if (tag == 0) {
        return 0;
    }
    *counter = (uint32_t)(tag >> 1) - 1;
    at[0] = 0;
    if (tag & 1) {
        return MIN_COUNTED_SIZE; /* entry 1 belongs to the next block */
    }
    size_t size = at[1];
    at[1] = 0;
    return LIKELY(size != 0) ? size : block_map_remove_long_size(at);
}

#endif
