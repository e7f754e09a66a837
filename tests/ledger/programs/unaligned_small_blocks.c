/* An allocator that aligns every second block of up to 8 bytes to 8 bytes, as some libraries in the place of malloc do.
   The first blocks are aligned to 16 bytes. */
#include <Python.h>
static PyMemAllocatorEx below;
static char arena[1 << 20] __attribute__((aligned(16)));
static size_t used;
static int small_blocks;
static int is_in_arena(const void *block) { return (const char *)block >= arena && (const char *)block < arena + sizeof arena; }
static void *bad_malloc(void *ctx, size_t size)
{
    if (size > 8 || ++small_blocks < 20 || used + 24 > sizeof arena) return below.malloc(below.ctx, size);
    used += 24;
    return arena + used - 24;
}
static void *bad_calloc(void *ctx, size_t items, size_t size) { return below.calloc(below.ctx, items, size); }
static void *bad_realloc(void *ctx, void *block, size_t size)
{
    if (!is_in_arena(block)) return below.realloc(below.ctx, block, size);
    void *made = below.malloc(below.ctx, size);
    return made == NULL ? NULL : memcpy(made, block, size < 8 ? size : 8);
}
static void bad_free(void *ctx, void *block)
{
    if (!is_in_arena(block)) below.free(below.ctx, block);
}
void misalign(void)
{
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &below);
    PyMemAllocatorEx bad = {NULL, bad_malloc, bad_calloc, bad_realloc, bad_free};
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &bad);
}
