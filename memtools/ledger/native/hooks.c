/* The hooks of the three domains, and their installation. */

#include "hooks.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "block_map.h"
#include "counters.h"
#include "interpreters.h"

/* Each installation has its own place to remember what it found: threads may be inside an older one. */
#define MAX_INSTALLATIONS 8
#define DOMAINS 3

static const PyMemAllocatorDomain domains[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static PyMemAllocatorEx found[MAX_INSTALLATIONS][DOMAINS];
static int installations;

static atomic_int is_counting;
static _Atomic(uint64_t) lost;
static const char *reason = "";
static int has_stopped;

_Thread_local struct here here;

static inline int is_to_be_counted(void)
{
    return atomic_load_explicit(&is_counting, memory_order_relaxed) && !here.is_inside;
}

/* A block goes by that is not to be counted; `check_hooks_are_in_place` asks which domain it came through. */
static inline void note_passing(const PyMemAllocatorEx *inner)
{
    if (UNLIKELY(here.is_inside == PROBING)) {
        here.seen |= (uint8_t)(1 << domains[(inner - &found[0][0]) % DOMAINS]);
    }
}

/* Take a block out of the shadow; 0 if it was not counted. */
static inline size_t forget(cell *at, uint32_t *tally)
{
    return at == NULL ? 0 : shadow_take(at, tally);
}

static inline cell *place_for(void *block)
{
    cell *at = shadow_find_or_map(block);
    if (UNLIKELY(at == NULL)) {
        atomic_fetch_add(&lost, 1);
    }
    return at;
}

/* Under the GIL. */

/* Whether a large block would be too much for somebody. */
static inline int is_refused(size_t growth)
{
    return UNLIKELY(growth >= LEAST_REFUSED) && !here.is_spared && tallies_refuse(here.tally, growth);
}

static __attribute__((noinline)) int is_growth_refused(const void *block, size_t size)
{
    const cell *at = shadow_find(block);
    size_t old_size = at == NULL ? 0 : shadow_peek(at);
    return size > old_size && is_to_be_counted() && is_refused(size - old_size);
}

/* Somebody freed the block that was here behind our back. */
static __attribute__((noinline)) void credit_stale(cell *at)
{
    uint32_t owner = NOBODY;
    size_t size = shadow_take(at, &owner);
    tallies_credit(owner, size);
}

static inline uint32_t count(void *block, size_t size)
{
    cell *at = place_for(block);
    if (UNLIKELY(at == NULL)) {
        return NOBODY;
    }
    if (UNLIKELY(*at != 0)) {
        credit_stale(at);
    }
    shadow_write(at, here.tally, size);
    return tallies_charge(here.tally, shadow_counted(size));
}

/* Give a block back that was too much for somebody who cannot be stopped otherwise. */
static __attribute__((noinline)) void *take_back(const PyMemAllocatorEx *inner, void *block, uint32_t number)
{
    if (here.is_spared) {
        return block;
    }
    uint32_t owner = NOBODY;
    size_t size = forget(shadow_find(block), &owner);
    tallies_credit(owner, size);
    tallies_take_back(number, size);
    here.is_inside = 1;
    inner->free(inner->ctx, block);
    here.is_inside = 0;
    return NULL;
}

static void *locked_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *inner = ctx;
    if (!is_to_be_counted()) {
        note_passing(inner);
        return inner->malloc(inner->ctx, size);
    }
    if (is_refused(size)) {
        return NULL;
    }
    here.is_inside = 1;
    void *block = inner->malloc(inner->ctx, size);
    here.is_inside = 0;
    if (LIKELY(block != NULL)) {
        uint32_t number = count(block, size);
        if (UNLIKELY(number != NOBODY)) {
            return take_back(inner, block, number);
        }
    }
    return block;
}

static void *locked_calloc(void *ctx, size_t items, size_t size)
{
    PyMemAllocatorEx *inner = ctx;
    if (!is_to_be_counted()) {
        return inner->calloc(inner->ctx, items, size);
    }
    if (is_refused(items * size)) { /* who calls has made sure that this does not overflow */
        return NULL;
    }
    here.is_inside = 1;
    void *block = inner->calloc(inner->ctx, items, size);
    here.is_inside = 0;
    if (LIKELY(block != NULL)) {
        uint32_t number = count(block, items * size);
        if (UNLIKELY(number != NOBODY)) {
            return take_back(inner, block, number);
        }
    }
    return block;
}

static void *locked_realloc(void *ctx, void *block, size_t size)
{
    PyMemAllocatorEx *inner = ctx;
    if (here.is_inside) {
        return inner->realloc(inner->ctx, block, size);
    }
    if (UNLIKELY(size >= LEAST_REFUSED) && is_growth_refused(block, size)) {
        return NULL; /* the old block stays as it is */
    }
    /* Taken out before the call: once the block is given back, another thread may have it. */
    uint32_t owner = NOBODY;
    cell *at = shadow_find(block);
    size_t old_size = forget(at, &owner);
    here.is_inside = 1;
    void *made = inner->realloc(inner->ctx, block, size);
    here.is_inside = 0;
    if (UNLIKELY(made == NULL)) {
        if (old_size != 0) {
            shadow_write(at, owner, old_size);
        }
        return NULL;
    }
    if (old_size != 0) {
        tallies_credit(owner, old_size);
    }
    if (is_to_be_counted()) {
        (void)count(made, size); /* too late to refuse it: the old block is gone */
    }
    return made;
}

/* All that is rare when a block is freed; apart, so that the other way keeps nothing on the stack. */
static __attribute__((noinline)) void free_otherwise(void *ctx, void *block, cell *at)
{
    PyMemAllocatorEx *inner = ctx;
    uint32_t owner = NOBODY;
    size_t size = shadow_take(at, &owner);
    tallies_credit(owner, size);
    inner->free(inner->ctx, block);
}

static void locked_free(void *ctx, void *block)
{
    PyMemAllocatorEx *inner = ctx;
    cell *at = shadow_find(block);
    cell label = at == NULL ? 0 : at[0];
    if (LIKELY(label != 0)) {
        int64_t size = label & 1 ? SMALLEST : at[1];
        if (UNLIKELY((uint32_t)(label >> 1) - 1 != running.tally || size == 0)) {
            free_otherwise(ctx, block, at);
            return;
        }
        at[0] = 0;
        if (!(label & 1)) {
            at[1] = 0;
        }
        running.net -= size;
    }
    inner->free(inner->ctx, block);
}

/* Without the GIL: the same, but for what may be touched. PyGILState_Check may be called at any time, by any thread. */

static void count_unlocked(void *block, size_t size)
{
    cell *at = place_for(block);
    if (at == NULL) {
        return;
    }
    if (UNLIKELY(*at != 0)) {
        uint32_t stale;
        atomic_fetch_add(&tallies_busy, 1);
        size_t gone = shadow_take(at, &stale);
        if (gone != 0) {
            tallies_change_unlocked(stale, -(int64_t)gone);
        }
        atomic_fetch_sub(&tallies_busy, 1);
    }
    shadow_write(at, here.tally, size);
    tallies_change_unlocked(here.tally, (int64_t)shadow_counted(size));
}

size_t hooks_forget_unlocked(cell *at)
{
    if (at == NULL || *at == 0) {
        return 0;
    }
    uint32_t owner = NOBODY;
    atomic_fetch_add(&tallies_busy, 1);
    size_t size = shadow_take(at, &owner);
    if (size != 0) {
        tallies_change_unlocked(owner, -(int64_t)size);
    }
    atomic_fetch_sub(&tallies_busy, 1);
    return size;
}

static void *raw_malloc(void *ctx, size_t size)
{
    if (PyGILState_Check()) {
        return locked_malloc(ctx, size);
    }
    PyMemAllocatorEx *inner = ctx;
    void *block = inner->malloc(inner->ctx, size);
    if (block != NULL && is_to_be_counted()) {
        count_unlocked(block, size);
    }
    return block;
}

static void *raw_calloc(void *ctx, size_t items, size_t size)
{
    if (PyGILState_Check()) {
        return locked_calloc(ctx, items, size);
    }
    PyMemAllocatorEx *inner = ctx;
    void *block = inner->calloc(inner->ctx, items, size);
    if (block != NULL && is_to_be_counted()) {
        count_unlocked(block, items * size);
    }
    return block;
}

static void *raw_realloc(void *ctx, void *block, size_t size)
{
    if (PyGILState_Check()) {
        return locked_realloc(ctx, block, size);
    }
    PyMemAllocatorEx *inner = ctx;
    uint32_t owner = NOBODY;
    cell *at = shadow_find(block);
    atomic_fetch_add(&tallies_busy, 1);
    size_t old_size = forget(at, &owner);
    void *made = inner->realloc(inner->ctx, block, size);
    if (old_size != 0 && made == NULL) {
        shadow_write(at, owner, old_size);
    }
    else if (old_size != 0) {
        tallies_change_unlocked(owner, -(int64_t)old_size);
    }
    atomic_fetch_sub(&tallies_busy, 1);
    if (made != NULL && is_to_be_counted()) {
        count_unlocked(made, size);
    }
    return made;
}

static void raw_free(void *ctx, void *block)
{
    PyMemAllocatorEx *inner = ctx;
    if (PyGILState_Check()) {
        uint32_t owner = NOBODY;
        size_t size = forget(shadow_find(block), &owner);
        if (size != 0) {
            tallies_credit(owner, size);
        }
    }
    else {
        (void)hooks_forget_unlocked(shadow_find(block));
    }
    inner->free(inner->ctx, block);
}

static void put_in_place(void)
{
    PyMemAllocatorEx *below = found[installations++];
    for (int n = 0; n < DOMAINS; n++) {
        PyMem_GetAllocator(domains[n], &below[n]);
        PyMemAllocatorEx ours = {&below[n], locked_malloc, locked_calloc, locked_realloc, locked_free};
        if (domains[n] == PYMEM_DOMAIN_RAW) {
            ours = (PyMemAllocatorEx){&below[n], raw_malloc, raw_calloc, raw_realloc, raw_free};
        }
        PyMem_SetAllocator(domains[n], &ours);
    }
}

static const char *install(void)
{
    if (shadow_start() < 0 || tallies_start() < 0) {
        return "no address space for its tables";
    }
    if (installations == MAX_INSTALLATIONS) {
        return "another tool keeps taking its hooks out";
    }
    if (installations > 0) {
        shadow_forget();
        tallies_forget();
    }
    put_in_place();

    if (!check_hooks_are_in_place()) {
        return "the interpreter does not use the hooks";
    }
    int was_counting = atomic_exchange(&is_counting, 1);
    const char *failed = check_counting();
    atomic_store(&is_counting, was_counting);
    return failed;
}

int hooks_install(void)
{
    if (!*reason) {
        const char *failed = interpreters_watch();
        failed = *failed ? failed : install();
        if (*failed) {
            reason = failed;
            atomic_store(&is_counting, 0);
        }
    }
    return *reason ? -1 : 0;
}

void hooks_stop(const char *why)
{
    if (*reason) {
        return;
    }
    reason = why;
    atomic_store(&is_counting, 0);
    if (installations > 0) {
        has_stopped = 1;
        shadow_forget(); /* so that blocks which are freed from now on touch no figure */
    }
}

int hooks_have_stopped(void)
{
    return has_stopped;
}

const char *hooks_reason(void)
{
    return reason;
}

void hooks_count(int is_on)
{
    atomic_store(&is_counting, is_on && !*reason);
}

int hooks_are_counting(void)
{
    return is_to_be_counted();
}

uint64_t hooks_lost(void)
{
    return atomic_load(&lost);
}

/* Whether allocations reach the hooks, and are counted to the byte; see check.h. */

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
