/* The allocator hooks of the three domains, their installation and their self-test. */

#include "hooks.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "block_map.h"
#include "counters.h"
#include "interpreters.h"
#include "limits.h"
#include "threads.h"

/* Each installation has its own copy of the inner allocators: another thread may still be inside an older one. */
#define MAX_INSTALLATIONS 8
#define DOMAINS 3

static const PyMemAllocatorDomain domains[DOMAINS] = {PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static PyMemAllocatorEx inner_allocators[MAX_INSTALLATIONS][DOMAINS];
static int installation_count;

static atomic_int is_counting;
static _Atomic(uint64_t) lost_blocks;
static const char *unavailable_reason = "";
static int has_stopped;

static inline int hooks_is_counting(void)
{
    return atomic_load_explicit(&is_counting, memory_order_relaxed) && !thread_state.inside_allocator;
}

/* An uncounted call passes through; the self-test wants to know which domain it came through. */
static inline void hooks_note_domain(const PyMemAllocatorEx *inner)
{
    if (UNLIKELY(thread_state.inside_allocator == SELF_TEST)) {
        thread_state.probed_domains |= (uint8_t)(1 << domains[(inner - &inner_allocators[0][0]) % DOMAINS]);
    }
}

/* Returns 0 if the block is not counted. */
static inline size_t hooks_untrack(map_entry *at, uint32_t *counter)
{
    return at == NULL ? 0 : block_map_remove(at, counter);
}

static inline map_entry *hooks_entry_for(void *block)
{
    map_entry *at = block_map_find_or_add(block);
    if (UNLIKELY(at == NULL)) {
        black_box_lost_blocks(atomic_fetch_add(&lost_blocks, 1) + 1);
    }
    return at;
}

/* Calls under the GIL. */

static inline int hooks_is_refused(size_t growth)
{
    return UNLIKELY(growth >= MIN_REFUSED_SIZE) && !thread_state.enforcement_off &&
           limits_refuse(thread_state.counter, growth);
}

static NOINLINE int hooks_is_growth_refused(const void *block, size_t size)
{
    const map_entry *at = block_map_find(block);
    size_t old_size = at == NULL ? 0 : block_map_size(at);
    return size > old_size && hooks_is_counting() && hooks_is_refused(size - old_size);
}

/* The map still has the previous block at this address: it was freed by code that bypassed the hooks. */
static NOINLINE void hooks_credit_stale(map_entry *at)
{
    uint32_t counter = ROOT;
    size_t size = block_map_remove(at, &counter);
    counters_credit(counter, size);
}

static inline void hooks_charge(void *block, size_t size)
{
    map_entry *at = hooks_entry_for(block);
    if (UNLIKELY(at == NULL)) {
        return;
    }
    if (UNLIKELY(*at != 0)) {
        hooks_credit_stale(at);
    }
    block_map_write(at, thread_state.counter, size);
    counters_charge(thread_state.counter, block_map_counted_size(size));
}

/* Charge a new block, unless there is none. */
static inline void *hooks_finish_allocation(void *block, size_t size)
{
    if (LIKELY(block != NULL)) {
        hooks_charge(block, size);
    }
    return block;
}

static void *hooks_gil_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *inner = ctx;
    if (!hooks_is_counting()) {
        hooks_note_domain(inner);
        return inner->malloc(inner->ctx, size);
    }
    threads_look(size);
    if (hooks_is_refused(size)) {
        return NULL;
    }
    thread_state.inside_allocator = 1;
    void *block = inner->malloc(inner->ctx, size);
    thread_state.inside_allocator = 0;
    return hooks_finish_allocation(block, size);
}

static void *hooks_gil_calloc(void *ctx, size_t items, size_t item_size)
{
    PyMemAllocatorEx *inner = ctx;
    if (!hooks_is_counting()) {
        return inner->calloc(inner->ctx, items, item_size);
    }
    size_t size;
    /* Python's own functions check for overflow before, a hook above this one need not. */
    if (UNLIKELY(__builtin_mul_overflow(items, item_size, &size))) {
        return NULL;
    }
    threads_look(size);
    if (hooks_is_refused(size)) {
        return NULL;
    }
    thread_state.inside_allocator = 1;
    void *block = inner->calloc(inner->ctx, items, item_size);
    thread_state.inside_allocator = 0;
    return hooks_finish_allocation(block, size);
}

static void *hooks_gil_realloc(void *ctx, void *block, size_t size)
{
    PyMemAllocatorEx *inner = ctx;
    if (thread_state.inside_allocator) {
        return inner->realloc(inner->ctx, block, size);
    }
    if (hooks_is_counting()) {
        threads_look(size);
    }
    if (UNLIKELY(size >= MIN_REFUSED_SIZE) && hooks_is_growth_refused(block, size)) {
        return NULL; /* the old block stays as it is */
    }
    /* The entry goes before the call: once the old block is freed, another thread may get it. */
    uint32_t counter = ROOT;
    map_entry *at = block_map_find(block);
    size_t old_size = hooks_untrack(at, &counter);
    thread_state.inside_allocator = 1;
    void *made = inner->realloc(inner->ctx, block, size);
    thread_state.inside_allocator = 0;
    if (UNLIKELY(made == NULL)) {
        if (old_size != 0) {
            block_map_write(at, counter, old_size);
        }
        return NULL;
    }
    if (old_size != 0) {
        counters_credit(counter, old_size);
    }
    if (hooks_is_counting()) {
        hooks_charge(made, size);
    }
    return made;
}

/* The rare cases of free; a function of its own, so that the common case saves no registers on the stack. */
static NOINLINE void hooks_gil_free_slow(void *ctx, void *block, map_entry *at)
{
    PyMemAllocatorEx *inner = ctx;
    uint32_t counter = ROOT;
    size_t size = block_map_remove(at, &counter);
    counters_credit(counter, size);
    inner->free(inner->ctx, block);
}

static void hooks_gil_free(void *ctx, void *block)
{
    PyMemAllocatorEx *inner = ctx;
    map_entry *at = block_map_find(block);
    map_entry tag = at == NULL ? 0 : at[0];
    if (LIKELY(tag != 0)) {
        int64_t size = tag & 1 ? MIN_COUNTED_SIZE : at[1];
        if (UNLIKELY((uint32_t)(tag >> 1) - 1 != segment.counter || size == 0)) {
            hooks_gil_free_slow(ctx, block, at);
            return;
        }
        at[0] = 0;
        if (!(tag & 1)) {
            at[1] = 0;
        }
        segment.net -= size;
        black_box_change(-size);
    }
    inner->free(inner->ctx, block);
}

/* Calls without the GIL, which may only change a counter's `no_gil_change`. Any thread may call PyGILState_Check at
   any time. */

static void hooks_charge_no_gil(void *block, size_t size)
{
    map_entry *at = hooks_entry_for(block);
    if (at == NULL) {
        return;
    }
    if (UNLIKELY(*at != 0)) {
        uint32_t stale;
        atomic_fetch_add(&counters_busy_threads, 1);
        size_t freed = block_map_remove(at, &stale);
        if (freed != 0) {
            counters_change_no_gil(stale, -(int64_t)freed);
        }
        atomic_fetch_sub(&counters_busy_threads, 1);
    }
    block_map_write(at, thread_state.counter, size);
    counters_change_no_gil(thread_state.counter, (int64_t)block_map_counted_size(size));
}

size_t hooks_untrack_no_gil(map_entry *at)
{
    if (at == NULL || *at == 0) {
        return 0;
    }
    uint32_t counter = ROOT;
    atomic_fetch_add(&counters_busy_threads, 1);
    size_t size = block_map_remove(at, &counter);
    if (size != 0) {
        counters_change_no_gil(counter, -(int64_t)size);
    }
    atomic_fetch_sub(&counters_busy_threads, 1);
    return size;
}

static void *hooks_raw_malloc(void *ctx, size_t size)
{
    if (PyGILState_Check()) {
        return hooks_gil_malloc(ctx, size);
    }
    PyMemAllocatorEx *inner = ctx;
    void *block = inner->malloc(inner->ctx, size);
    if (block != NULL && hooks_is_counting()) {
        hooks_charge_no_gil(block, size);
    }
    return block;
}

static void *hooks_raw_calloc(void *ctx, size_t items, size_t item_size)
{
    if (PyGILState_Check()) {
        return hooks_gil_calloc(ctx, items, item_size);
    }
    PyMemAllocatorEx *inner = ctx;
    void *block = inner->calloc(inner->ctx, items, item_size);
    if (block != NULL && hooks_is_counting()) {
        hooks_charge_no_gil(block, items * item_size); /* no overflow: the inner allocator has made the block */
    }
    return block;
}

static void *hooks_raw_realloc(void *ctx, void *block, size_t size)
{
    if (PyGILState_Check()) {
        return hooks_gil_realloc(ctx, block, size);
    }
    PyMemAllocatorEx *inner = ctx;
    uint32_t counter = ROOT;
    map_entry *at = block_map_find(block);
    atomic_fetch_add(&counters_busy_threads, 1);
    size_t old_size = hooks_untrack(at, &counter);
    void *made = inner->realloc(inner->ctx, block, size);
    if (old_size != 0 && made == NULL) {
        block_map_write(at, counter, old_size);
    }
    else if (old_size != 0) {
        counters_change_no_gil(counter, -(int64_t)old_size);
    }
    atomic_fetch_sub(&counters_busy_threads, 1);
    if (made != NULL && hooks_is_counting()) {
        hooks_charge_no_gil(made, size);
    }
    return made;
}

static void hooks_raw_free(void *ctx, void *block)
{
    PyMemAllocatorEx *inner = ctx;
    if (PyGILState_Check()) {
        uint32_t counter = ROOT;
        size_t size = hooks_untrack(block_map_find(block), &counter);
        if (size != 0) {
            counters_credit(counter, size);
        }
    }
    else {
        (void)hooks_untrack_no_gil(block_map_find(block));
    }
    inner->free(inner->ctx, block);
}

/* The self-test: allocate as Python does, and check what was counted. */

static int hooks_is_domain_reached(PyMemAllocatorDomain domain)
{
    thread_state.probed_domains = 0;
    void *block = domain == PYMEM_DOMAIN_RAW   ? PyMem_RawMalloc(MIN_COUNTED_SIZE)
                  : domain == PYMEM_DOMAIN_MEM ? PyMem_Malloc(MIN_COUNTED_SIZE)
                                               : PyObject_Malloc(MIN_COUNTED_SIZE);
    /* One bit of several: allocators above or below the hooks allocate for themselves during the call. */
    int answer = (thread_state.probed_domains >> domain) & 1;
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

int hooks_are_in_place(void)
{
    interpreters_check();
    if (*unavailable_reason) {
        return 0;
    }
    /* The hooks note the call but do not count it. To charge a counter and undo that would be wrong: a change that a
       thread makes without the GIL may cause a flush in between. */
    uint8_t saved = thread_state.inside_allocator;
    thread_state.inside_allocator = SELF_TEST;
    int answer = 1;
    for (int n = 0; n < DOMAINS; n++) {
        answer = hooks_is_domain_reached(domains[n]) && answer;
    }
    thread_state.inside_allocator = saved;
    return answer;
}

/* Sizes on either side of each limit of the map's formats, and of pymalloc's own limit. */
static const size_t sizes[] = {1, 16, 17, 512, 513, 65535, 65536, 3000000};
#define SIZES (sizeof sizes / sizeof *sizes)

static int hooks_is_block_counted(const void *block)
{
    const map_entry *at = block == NULL ? NULL : block_map_find(block);
    return at != NULL && *at != 0;
}

/* Allocators that are loaded in the place of malloc (mimalloc, tcmalloc) align blocks of up to 8 bytes to 8, so two of
   them share a granule. One block in two begins a granule even so, so many are needed at once; as many as fill several
   of the chunks from which an allocator cuts blocks of one size, because these may be left from before. */
#define SMALL_BLOCKS 512

static int hooks_are_small_blocks_aligned(void)
{
    static const size_t small_sizes[] = {1, 8};
    void *blocks[SMALL_BLOCKS][3];
    int answer = 1;

    for (size_t size = 0; size < sizeof small_sizes / sizeof *small_sizes; size++) {
        size_t wanted = small_sizes[size];
        for (size_t n = 0; n < SMALL_BLOCKS; n++) {
            blocks[n][0] = PyObject_Malloc(wanted);
            blocks[n][1] = PyMem_Malloc(wanted);
            blocks[n][2] = PyMem_RawMalloc(wanted);
            for (int domain = 0; domain < 3; domain++) {
                answer = answer && (uintptr_t)blocks[n][domain] % MIN_COUNTED_SIZE == 0;
            }
        }
        for (size_t n = 0; n < SMALL_BLOCKS; n++) {
            PyObject_Free(blocks[n][0]);
            PyMem_Free(blocks[n][1]);
            PyMem_RawFree(blocks[n][2]);
        }
    }
    return answer;
}

static int64_t hooks_live_bytes(uint32_t number)
{
    counters_flush_into(number);
    return counters[number].live;
}

static const char *hooks_check_counter(uint32_t number)
{
    int64_t expected = 0;
    void *blocks[SIZES] = {NULL};
    const char *failed = "";

    for (size_t n = 0; n < SIZES && !*failed; n++) {
        blocks[n] = n % 2 ? PyObject_Calloc(1, sizes[n]) : PyMem_Malloc(sizes[n]);
        expected += (int64_t)block_map_counted_size(sizes[n]);
        if (!hooks_is_block_counted(blocks[n]) || hooks_live_bytes(number) != expected) {
            failed = "an allocation was not counted as it should be";
        }
        else if ((uintptr_t)blocks[n] % MIN_COUNTED_SIZE != 0) {
            failed = "blocks are not aligned to 16 bytes";
        }
    }
    for (size_t n = 0; n < SIZES && !*failed; n++) {
        size_t other = sizes[SIZES - 1 - n];
        void *made = n % 2 ? PyObject_Realloc(blocks[n], other) : PyMem_Realloc(blocks[n], other);
        blocks[n] = made == NULL ? blocks[n] : made;
        expected += (int64_t)block_map_counted_size(other) - (int64_t)block_map_counted_size(sizes[n]);
        if (made == NULL || hooks_live_bytes(number) != expected) {
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
    if (!*failed && hooks_live_bytes(number) != 0) {
        failed = "freed blocks were not credited as they should be";
    }
    return failed;
}

/* Uses a counter of its own, because threads without the GIL may change all others meanwhile. */
static const char *hooks_check_counting(void)
{
    uint32_t number = counters_open(ROOT);
    if (number == ROOT) {
        return ""; /* all numbers are in use, so an earlier installation has passed the test */
    }
    uint8_t saved = thread_state.enforcement_off;
    thread_state.enforcement_off = 1;
    threads_charge(number);
    const char *failed = hooks_check_counter(number);
    threads_forget();
    thread_state.enforcement_off = saved;
    counters_release(number);
    return failed;
}

/* Installation. */

static void hooks_set_allocators(void)
{
    PyMemAllocatorEx *inner = inner_allocators[installation_count++];
    for (int n = 0; n < DOMAINS; n++) {
        PyMem_GetAllocator(domains[n], &inner[n]);
        PyMemAllocatorEx hooks = {&inner[n], hooks_gil_malloc, hooks_gil_calloc, hooks_gil_realloc, hooks_gil_free};
        if (domains[n] == PYMEM_DOMAIN_RAW) {
            hooks = (PyMemAllocatorEx){&inner[n], hooks_raw_malloc, hooks_raw_calloc, hooks_raw_realloc, hooks_raw_free};
        }
        PyMem_SetAllocator(domains[n], &hooks);
    }
}

int hooks_call_unhooked(int (*function)(void *), void *argument)
{
    PyMemAllocatorEx current;
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &current);
    if (installation_count > 0) {
        PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &inner_allocators[0][DOMAINS - 1]);
    }
    int result = function(argument);
    PyMem_SetAllocator(PYMEM_DOMAIN_OBJ, &current);
    return result;
}

/* Returns a reason, empty where all went well. */
static const char *hooks_install_and_check(void)
{
    if (block_map_start() < 0 || counters_start() < 0) {
        return "no address space for its tables";
    }
    if (installation_count == MAX_INSTALLATIONS) {
        return "another tool keeps taking its hooks out";
    }
    if (installation_count > 0) {
        block_map_clear();
        counters_reset();
    }
    hooks_set_allocators();

    if (!hooks_are_in_place()) {
        return "the interpreter does not use the hooks";
    }
    if (!threads_can_follow()) {
        return "a change of context cannot be seen";
    }
    if (!hooks_are_small_blocks_aligned()) {
        return "blocks are not aligned to 16 bytes";
    }
    int was_counting = atomic_exchange(&is_counting, 1);
    const char *failed = hooks_check_counting();
    atomic_store(&is_counting, was_counting);
    return failed;
}

int hooks_install(void)
{
    if (!*unavailable_reason) {
        const char *failed = interpreters_watch();
        failed = *failed ? failed : hooks_install_and_check();
        if (*failed) {
            unavailable_reason = failed;
            atomic_store(&is_counting, 0);
        }
    }
    return *unavailable_reason ? -1 : 0;
}

void hooks_stop(const char *why)
{
    if (*unavailable_reason) {
        return;
    }
    unavailable_reason = why;
    atomic_store(&is_counting, 0);
    if (installation_count > 0) {
        has_stopped = 1;
        black_box_stopped();
        block_map_clear(); /* so that blocks freed from now on change no figure */
    }
}

int hooks_have_stopped(void)
{
    return has_stopped;
}

const char *hooks_reason(void)
{
    return unavailable_reason;
}

void hooks_set_counting(int is_on)
{
    atomic_store(&is_counting, is_on && !*unavailable_reason);
}

int hooks_are_counting(void)
{
    return hooks_is_counting();
}

uint64_t hooks_lost_blocks(void)
{
    return atomic_load(&lost_blocks);
}
