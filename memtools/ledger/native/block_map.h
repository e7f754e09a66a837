/* Remember of every live block whose it is and how large it is.

   For each 16 bytes of address space (a granule) there is one 16-bit cell. The cells of a block's own granules hold
   what is to be known of it, so a block needs no entry anywhere else, and looking it up touches one cache line:

       up to 16 bytes      cell 0: label, odd                           counted as 16 bytes, which is what it takes
       up to 65,535        cell 0: label, even   cell 1: size
       more                cell 0: label, even   cell 1: 0   cells 2 to 5: size

   A label is the number of the tally, plus one, doubled. A cell 0 of zero is a block that nobody has counted.

   The cells lie in leaves of 8 MiB, one for each 64 MiB of address space, found through a table of pointers. Neither is
   ever given back; what has not been touched costs no memory.

   Leaves to others: who counts what (tallies.h), where blocks come from (hooks.h). */

#ifndef MEMTOOLS_BLOCK_MAP_H
#define MEMTOOLS_BLOCK_MAP_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LIKELY(what) __builtin_expect(!!(what), 1)
/* In this library only: no way over its table of places at each access. */
#define HIDDEN __attribute__((visibility("hidden")))
#define UNLIKELY(what) __builtin_expect(!!(what), 0)

#define GRANULE_BITS 4
#define LEAF_BITS 26
#define ADDRESS_BITS 48 /* user space of x86-64 and AArch64; what lies above is not counted */
#define LEAF_COUNT ((size_t)1 << (ADDRESS_BITS - LEAF_BITS))
#define LEAF_BYTES ((uintptr_t)1 << LEAF_BITS)
#define LEAF_CELLS ((size_t)1 << (LEAF_BITS - GRANULE_BITS))

#define SMALLEST 16      /* a block is counted with at least this many bytes */
#define LARGEST_SHORT 0xFFFF
#define MAX_TALLIES 32767 /* what a label of 16 bits can tell apart */

typedef uint16_t cell;

extern HIDDEN _Atomic(cell *) *shadow_leaves;

/* Map the table; -1 if there is no room for it. GIL. */
int shadow_start(void);

/* Map a leaf, unless another thread is faster; NULL if there is no room for it. Any thread, no GIL. */
cell *shadow_map_leaf(size_t index);

/* Forget every block. GIL; a block that another thread makes without the GIL meanwhile may be forgotten, too. */
void shadow_forget(void);

/* The cell of a block, or NULL where no block has ever been counted. Any thread, no GIL. */
static inline cell *shadow_find(const void *block)
{
    size_t index = (uintptr_t)block >> LEAF_BITS;
    if (UNLIKELY(index >= LEAF_COUNT)) {
        return NULL;
    }
    cell *leaf = atomic_load_explicit(&shadow_leaves[index], memory_order_acquire);
    return UNLIKELY(leaf == NULL) ? NULL : leaf + (((uintptr_t)block & (LEAF_BYTES - 1)) >> GRANULE_BITS);
}

/* The same, made where there is none; NULL if there is no room for it. Any thread, no GIL. */
static inline cell *shadow_find_or_map(const void *block)
{
    size_t index = (uintptr_t)block >> LEAF_BITS;
    if (UNLIKELY(index >= LEAF_COUNT)) {
        return NULL;
    }
    cell *leaf = atomic_load_explicit(&shadow_leaves[index], memory_order_acquire);
    if (UNLIKELY(leaf == NULL) && (leaf = shadow_map_leaf(index)) == NULL) {
        return NULL;
    }
    return leaf + (((uintptr_t)block & (LEAF_BYTES - 1)) >> GRANULE_BITS);
}

/* What a block of that size is counted with. */
static inline size_t shadow_counted(size_t size)
{
    return size < SMALLEST ? SMALLEST : size;
}

/* Write whose a block is. Whoever has just got the block from its allocator. */
static inline void shadow_write(cell *at, uint32_t tally, size_t size)
{
    cell label = (cell)((tally + 1) << 1);
    if (size <= SMALLEST) {
        at[0] = label | 1;
    }
    else if (LIKELY(size <= LARGEST_SHORT)) {
        at[0] = label;
        at[1] = (cell)size;
    }
    else {
        uint64_t exact = size;
        at[0] = label;
        at[1] = 0;
        memcpy(at + 2, &exact, sizeof exact);
    }
}

/* The size that a block was counted with, 0 if it was not. Whoever has the block. */
size_t shadow_peek(const cell *at);

/* Read and clear the size of a block whose size does not fit into one cell. */
size_t shadow_take_long_size(cell *at);

/* Read whose a block is and clear its cells; 0 if it was not counted. Whoever is about to give the block back: after
   that, another thread may have it. */
static inline size_t shadow_take(cell *at, uint32_t *tally)
{
    cell label = at[0];
    if (label == 0) {
        return 0;
    }
    *tally = (uint32_t)(label >> 1) - 1;
    at[0] = 0;
    if (label & 1) {
        return SMALLEST; /* the next cell is the next block's */
    }
    size_t size = at[1];
    at[1] = 0;
    return LIKELY(size != 0) ? size : shadow_take_long_size(at);
}

#endif
