/* Mapping and clearing of the pages of the block map. */

#include "block_map.h"

#include "platform.h"

/* The other entries of a block that begins in the last granule of a page lie behind the last entry of the page. */
#define PAGE_MAPPED_BYTES (PAGE_ENTRIES * sizeof(map_entry) + 4096)

#define MAX_LISTED 4096 /* pages, of 256 GiB of address space together */

_Atomic(map_entry *) *block_map_pages;

static _Atomic(map_entry *) listed[MAX_LISTED];
static _Atomic(size_t) page_count;

int block_map_start(void)
{
    if (block_map_pages == NULL) {
        block_map_pages = platform_map(PAGE_COUNT * sizeof *block_map_pages);
    }
    return block_map_pages == NULL ? -1 : 0;
}

map_entry *block_map_add_page(size_t index)
{
    map_entry *made = platform_map(PAGE_MAPPED_BYTES);
    if (made == NULL) {
        return NULL;
    }
    map_entry *present = NULL;
    if (atomic_compare_exchange_strong(&block_map_pages[index], &present, made)) {
        size_t number = atomic_fetch_add(&page_count, 1);
        if (number < MAX_LISTED) {
            atomic_store(&listed[number], made);
        }
        return made;
    }
    platform_unmap(made, PAGE_MAPPED_BYTES);
    return present;
}

const void *block_map_mapping(size_t number, size_t *size)
{
    *size = number == 0 ? PAGE_COUNT * sizeof *block_map_pages : PAGE_MAPPED_BYTES;
    return number == 0 ? (const void *)block_map_pages : number <= MAX_LISTED ? atomic_load(&listed[number - 1]) : NULL;
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
            platform_clear(page, PAGE_MAPPED_BYTES); /* other threads may hold pointers into the page */
        }
    }
}
