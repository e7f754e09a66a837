/* Map the leaves of the shadow, and forget what they hold. */

#include "block_map.h"

#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* A block that begins in the last granule of a leaf has its other cells behind the leaf's last one. */
#define LEAF_MAP_BYTES (LEAF_CELLS * sizeof(cell) + 4096)

_Atomic(cell *) *shadow_leaves;

static void *map(size_t size)
{
    void *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) {
        return NULL;
    }
#ifdef MADV_NOHUGEPAGE
    /* With transparent huge pages the first touch would cost 2 MiB instead of 4 KiB. */
    (void)madvise(made, size, MADV_NOHUGEPAGE);
#endif
    return made;
}

int shadow_start(void)
{
    if (shadow_leaves == NULL) {
        shadow_leaves = map(LEAF_COUNT * sizeof *shadow_leaves);
    }
    return shadow_leaves == NULL ? -1 : 0;
}

cell *shadow_map_leaf(size_t index)
{
    cell *made = map(LEAF_MAP_BYTES);
    if (made == NULL) {
        return NULL;
    }
    cell *there = NULL;
    if (atomic_compare_exchange_strong(&shadow_leaves[index], &there, made)) {
        return made;
    }
    (void)munmap(made, LEAF_MAP_BYTES);
    return there;
}

size_t shadow_take_long_size(cell *at)
{
    uint64_t exact;
    memcpy(&exact, at + 2, sizeof exact);
    memset(at + 2, 0, sizeof exact);
    return (size_t)exact;
}

size_t shadow_peek(const cell *at)
{
    if (at[0] == 0 || at[0] & 1) {
        return at[0] == 0 ? 0 : SMALLEST;
    }
    if (at[1] != 0) {
        return at[1];
    }
    uint64_t exact;
    memcpy(&exact, at + 2, sizeof exact);
    return (size_t)exact;
}

void shadow_forget(void)
{
    for (size_t index = 0; index < LEAF_COUNT; index++) {
        cell *leaf = atomic_load(&shadow_leaves[index]);
        if (leaf != NULL) {
            /* New pages in place of the old ones: other threads may hold pointers into the leaf. */
            (void)mmap(leaf, LEAF_MAP_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        }
    }
}
