/* Mapping and clearing of the pages of the block map. */

#include "block_map.h"

#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* The other entries of a block that begins in the last granule of a page lie behind the last entry of the page. */
#define PAGE_MAPPED_BYTES (PAGE_ENTRIES * sizeof(map_entry) + 4096)

_Atomic(map_entry *) *block_map_pages;

static void *block_map_mmap(size_t size)
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

int block_map_start(void)
{
    if (block_map_pages == NULL) {
        block_map_pages = block_map_mmap(PAGE_COUNT * sizeof *block_map_pages);
    }
    return block_map_pages == NULL ? -1 : 0;
}

map_entry *block_map_add_page(size_t index)
{
    map_entry *made = block_map_mmap(PAGE_MAPPED_BYTES);
    if (made == NULL) {
        return NULL;
    }
    map_entry *present = NULL;
    if (atomic_compare_exchange_strong(&block_map_pages[index], &present, made)) {
        return made;
    }
    (void)munmap(made, PAGE_MAPPED_BYTES);
    return present;
}

size_t block_map_remove_long_size(map_entry *at)
{
    uint64_t exact;
    memcpy(&exact, at + 2, sizeof exact);
    memset(at + 2, 0, sizeof exact);
    return (size_t)exact;
}

size_t block_map_size(const map_entry *at)
{
    if (at[0] == 0 || at[0] & 1) {
        return at[0] == 0 ? 0 : MIN_COUNTED_SIZE;
    }
    if (at[1] != 0) {
        return at[1];
    }
    uint64_t exact;
    memcpy(&exact, at + 2, sizeof exact);
    return (size_t)exact;
}

void block_map_clear(void)
{
    for (size_t index = 0; index < PAGE_COUNT; index++) {
        map_entry *page = atomic_load(&block_map_pages[index]);
        if (page != NULL) {
            /* Fresh memory at the same address, because other threads may hold pointers into the page. */
            (void)mmap(page, PAGE_MAPPED_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        }
    }
}
