/* Whether allocations reach the hooks, and are counted to the byte; see check.h. */

#include "check.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "hooks.h"
#include "shadow.h"
#include "tallies.h"

#define DOMAINS 3

static const PyMemAllocatorDomain domains[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};

static int is_counted(const void *block)
{
    const cell *at = block == NULL ? NULL : shadow_find(block);
    return at != NULL && *at != 0;
}

static int is_in_place(PyMemAllocatorDomain domain)
{
    void *block = domain == PYMEM_DOMAIN_RAW   ? PyMem_RawMalloc(SMALLEST)
                  : domain == PYMEM_DOMAIN_MEM ? PyMem_Malloc(SMALLEST)
                                               : PyObject_Malloc(SMALLEST);
    int answer = is_counted(block);
    if (domain == PYMEM_DOMAIN_RAW) {
        PyMem_RawFree(block);
    }
    else if (domain == PYMEM_DOMAIN_MEM) {
        PyMem_Free(block);
    }
    else {
        PyObject_Free(block);
    }
    return answer;
}

int check_hooks_are_in_place(void)
{
    /* What the check makes and frees shall not show in anybody's figures. */
    if (running.tally != here.tally) {
        tallies_turn_over(here.tally);
    }
    struct running before = running;
    int answer = 1;
    for (int n = 0; n < DOMAINS; n++) {
        answer = is_in_place(domains[n]) && answer;
    }
    running = before;
    return answer;
}

/* Sizes on either side of each way to remember one, and of pymalloc's own limit. */
static const size_t sizes[] = {1, 16, 17, 512, 513, 65535, 65536, 3000000};
#define SIZES (sizeof sizes / sizeof *sizes)

/* Make, resize and free blocks, and see that each is charged and credited to the byte. */
const char *check_counting(void)
{
    int64_t start = running.net;
    int64_t expected = start;
    void *blocks[SIZES] = {NULL};
    const char *failed = "";

    for (size_t n = 0; n < SIZES && !*failed; n++) {
        blocks[n] = n % 2 ? PyObject_Calloc(1, sizes[n]) : PyMem_Malloc(sizes[n]);
        expected += (int64_t)shadow_counted(sizes[n]);
        if (!is_counted(blocks[n]) || running.net != expected) {
            failed = "an allocation was not counted as it should be";
        }
        else if ((uintptr_t)blocks[n] % SMALLEST != 0) {
            failed = "blocks are not aligned to 16 bytes";
        }
    }
    for (size_t n = 0; n < SIZES && !*failed; n++) {
        size_t other = sizes[SIZES - 1 - n];
        void *made = n % 2 ? PyObject_Realloc(blocks[n], other) : PyMem_Realloc(blocks[n], other);
        blocks[n] = made == NULL ? blocks[n] : made;
        expected += (int64_t)shadow_counted(other) - (int64_t)shadow_counted(sizes[n]);
        if (made == NULL || running.net != expected) {
            failed = "a resized block was not counted as it should be";
        }
    }
    for (size_t n = 0; n < SIZES; n++) {
        if (n % 2) {
            PyObject_Free(blocks[n]);
        }
        else {
            PyMem_Free(blocks[n]);
        }
    }
    if (!*failed && running.net != start) {
        failed = "freed blocks were not credited as they should be";
    }
    return failed;
}
