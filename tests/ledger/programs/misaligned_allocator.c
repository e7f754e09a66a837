/* An allocator that misaligns one block of the self-check, and no other. */
#include <Python.h>
static PyMemAllocatorEx below;
static char *moved;
static void *bad_malloc(void *ctx, size_t size)
{
    if (size != 3000000 || moved != NULL) return below.malloc(below.ctx, size);
    return moved = (char *)below.malloc(below.ctx, size + 64) + 8;
}
static void *bad_calloc(void *ctx, size_t items, size_t size)
{
    return items * size == 3000000 ? bad_malloc(ctx, 3000000) : below.calloc(below.ctx, items, size);
}
static void *bad_realloc(void *ctx, void *block, size_t size) { return below.realloc(below.ctx, block, size); }
static void bad_free(void *ctx, void *block)
{
    if (block != NULL && block == moved) { block = moved - 8; moved = NULL; }
    below.free(below.ctx, block);
}
void misalign(void)
{
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &below);
    PyMemAllocatorEx bad = {NULL, bad_malloc, bad_calloc, bad_realloc, bad_free};
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &bad);
}
