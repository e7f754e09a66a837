/* Whether allocations reach the hooks, and are counted to the byte; see check.h. */

#include "check.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "hooks.h"
#include "shadow.h"
#include "tallies.h"

#define DOMAINS 3

static const PyMemAllocatorDomain domains[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};

static int is_in_place(PyMemAllocatorDomain domain)
{
    here.seen = 0;
    void *block = domain == PYMEM_DOMAIN_RAW   ? PyMem_RawMalloc(SMALLEST)
                  : domain == PYMEM_DOMAIN_MEM ? PyMem_Malloc(SMALLEST)
                                               : PyObject_Malloc(SMALLEST);
    /* Others come by as well: what is above us, or below, takes blocks for itself. */
    int answer = (here.seen >> domain) & 1;
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
    if (*hooks_reason()) {
        return 0;
    }
    /* Seen, but not counted: to charge somebody and take it back would be wrong, as the running segment may be settled in
       the middle, whenever a thread without the GIL has changed something. */
    uint8_t was_inside = here.is_inside;
    here.is_inside = PROBING;
    int answer = 1;
    for (int n = 0; n < DOMAINS; n++) {
        answer = is_in_place(domains[n]) && answer;
    }
    here.is_inside = was_inside;
    return answer;
}

/* Sizes on either side of each way to remember one, and of pymalloc's own limit. */
static const size_t sizes[] = {1, 16, 17, 512, 513, 65535, 65536, 3000000};
#define SIZES (sizeof sizes / sizeof *sizes)

static int is_counted(const void *block)
{
    const cell *at = block == NULL ? NULL : shadow_find(block);
    return at != NULL && *at != 0;
}

/* What a tally holds, whatever other threads do meanwhile. */
static int64_t held_by(uint32_t number)
{
    tallies_settle();
    return tallies[number].live;
}

static const char *check_tally(uint32_t number)
{
    int64_t expected = 0;
    void *blocks[SIZES] = {NULL};
    const char *failed = "";

    for (size_t n = 0; n < SIZES && !*failed; n++) {
        blocks[n] = n % 2 ? PyObject_Calloc(1, sizes[n]) : PyMem_Malloc(sizes[n]);
        expected += (int64_t)shadow_counted(sizes[n]);
        if (!is_counted(blocks[n]) || held_by(number) != expected) {
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
        if (made == NULL || held_by(number) != expected) {
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
    if (!*failed && held_by(number) != 0) {
        failed = "freed blocks were not credited as they should be";
    }
    return failed;
}

/* Make, resize and free blocks, and see that each is charged and credited to the byte. */
const char *check_counting(void)
{
    /* A tally of its own: all others may be changed by threads that do not have the GIL. */
    uint32_t number = tallies_open(NOBODY);
    if (number == NOBODY) {
        return ""; /* so many are in use that it has been checked before */
    }
    struct here before = here;
    here.tally = number;
    here.is_spared = 1;
    const char *failed = check_tally(number);
    here = before;
    tallies_release(number);
    return failed;
}
