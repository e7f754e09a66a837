/* Check the parts of the ledger that need no interpreter: the platform's calls, the block map, the counters.

   Compiled with `black_box.c`, `block_map.c` and `counters.c`; prints "checked" and returns 0, or names the line that does not hold. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../memtools/ledger/native/block_map.h"
#include "../../../memtools/ledger/native/counters.h"
#include "../../../memtools/ledger/native/platform.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

#define THREADS 4
#define CHANGES 20000
#define BLOCKS 3000

#ifdef _WIN32
typedef HANDLE thread_handle;
#define THREAD(name, argument) static DWORD WINAPI name(void *argument)

static thread_handle start(DWORD(WINAPI *run)(void *), void *argument)
{
    return CreateThread(NULL, 0, run, argument, 0, NULL);
}

static void join(thread_handle thread)
{
    (void)WaitForSingleObject(thread, INFINITE);
    (void)CloseHandle(thread);
}
#else
typedef pthread_t thread_handle;
#define THREAD(name, argument) static void *name(void *argument)

static thread_handle start(void *(*run)(void *), void *argument)
{
    thread_handle thread;
    CHECK(pthread_create(&thread, NULL, run, argument) == 0);
    return thread;
}

static void join(thread_handle thread)
{
    (void)pthread_join(thread, NULL);
}
#endif

static void check_memory(void)
{
    size_t size = (size_t)256 << 20; /* most of which is never touched */
    unsigned char *made = platform_map(size);
    CHECK(made != NULL);
    CHECK(made[0] == 0 && made[size / 2] == 0 && made[size - 1] == 0);
    memset(made + size / 2, 7, 10000);
    platform_unmap(made, size);

    made = platform_map((size_t)1 << 20);
    CHECK(made != NULL);
    memset(made, 7, (size_t)1 << 20);
    platform_clear(made, (size_t)1 << 20);
    for (size_t n = 0; n < (size_t)1 << 20; n++) {
        CHECK(made[n] == 0);
    }
    platform_unmap(made, (size_t)1 << 20);
}

static void check_clock(void)
{
    double before = platform_now_s();
    for (int n = 0; n < 1000; n++) {
        platform_yield();
        double now = platform_now_s();
        CHECK(now >= before);
        before = now;
    }
}

static platform_key key;
static _Atomic(int) ended;

PLATFORM_AT_END(count_end, value)
{
    ended += *(int *)value;
}

static int one = 1;

THREAD(set_value, wanted)
{
    CHECK(platform_get(key) == NULL);
    CHECK(platform_set(key, wanted) == 0);
    CHECK(platform_get(key) == wanted);
    return 0;
}

static void check_thread_ends(void)
{
    CHECK(platform_make_key(&key, count_end) == 0);
    thread_handle threads[THREADS];
    for (int n = 0; n < THREADS; n++) {
        threads[n] = start(set_value, n == 0 ? NULL : &one);
    }
    for (int n = 0; n < THREADS; n++) {
        join(threads[n]);
    }
    CHECK(ended == THREADS - 1);
    CHECK(platform_get(key) == NULL);
}

static size_t size_of_block(size_t n)
{
    static const size_t sizes[] = {1, 16, 17, 64, 500, 4096, 65535, 65536, 200000};
    return sizes[n % (sizeof sizes / sizeof *sizes)];
}

static void check_blocks(void)
{
    CHECK(block_map_start() == 0);
    char **blocks = malloc(BLOCKS * sizeof *blocks);
    CHECK(blocks != NULL);
    for (size_t n = 0; n < BLOCKS; n++) {
        blocks[n] = malloc(size_of_block(n) + 16);
        CHECK(blocks[n] != NULL);
        map_entry *at = block_map_find_or_add(blocks[n]);
        CHECK(at != NULL);
        CHECK(block_map_size(at) == 0);
        block_map_write(at, (uint32_t)(n % (MAX_COUNTERS - 1)), size_of_block(n));
    }
    for (size_t n = 0; n < BLOCKS; n++) {
        map_entry *at = block_map_find(blocks[n]);
        CHECK(block_map_size(at) == block_map_counted_size(size_of_block(n)));
        if (n % 2) {
            uint32_t counter = 0;
            CHECK(block_map_remove(at, &counter) == block_map_counted_size(size_of_block(n)));
            CHECK(counter == n % (MAX_COUNTERS - 1));
            CHECK(block_map_size(at) == 0);
        }
    }
    block_map_clear();
    for (size_t n = 0; n < BLOCKS; n++) {
        CHECK(block_map_size(block_map_find(blocks[n])) == 0);
        free(blocks[n]);
    }
    free(blocks);
    CHECK(block_map_find((void *)~(uintptr_t)0) == NULL);
}

static int crossed;

static void count_crossing(void)
{
    crossed++;
    segment.limit_headroom = NO_LIMIT;
}

static void check_counters(void)
{
    CHECK(counters_start() == 0);
    counters_on_limit_crossed = count_crossing;
    uint32_t outer = counters_open(ROOT), inner = counters_open(outer);
    CHECK(outer != ROOT && inner != ROOT && counters_in_use() == 2);

    counters_charge(outer, 1000);
    counters_charge(inner, 500);
    counters_credit(inner, 200);
    counters_charge(inner, 50);
    counters_flush_into(inner);
    CHECK(counters[inner].live == 350 && counters[inner].peak == 500);
    counters_flush_into(outer);
    CHECK(counters[outer].live == 1350 && counters[outer].peak == 1500 && counters[outer].own == 1000);
    CHECK(counters[outer].allocated == 1550);

    counters_set_limits(inner, 1000, NO_LIMIT, &one);
    CHECK(counters_have_limits());
    counters_switch(inner);
    counters_update_limit_headroom();
    counters_charge(inner, 600);
    CHECK(crossed == 0);
    counters_charge(inner, 100);
    CHECK(crossed == 1);
    counters_set_limits(inner, NO_LIMIT, NO_LIMIT, NULL);
    CHECK(!counters_have_limits());

    counters_credit(inner, 1050);
    counters_close(inner);
    counters_switch(outer); /* the number of the segment stays in use */
    counters_release(inner);
    counters_flush();
    CHECK(counters_in_use() == 1);
    counters_credit(outer, 1000);
    counters_flush_into(outer);
    CHECK(counters[outer].live == 0 && counters[outer].peak == 2050);
    counters_close(outer);
    counters_switch(ROOT);
    counters_release(outer);
    counters_flush();
    CHECK(counters_in_use() == 0);
}

THREAD(change, number)
{
    for (int n = 0; n < CHANGES; n++) {
        counters_change_no_gil(*(uint32_t *)number, 48);
        counters_change_no_gil(*(uint32_t *)number, n % 2 ? -48 : -32);
    }
    return 0;
}

static void check_changes_by_threads(void)
{
    uint32_t number = counters_open(ROOT);
    thread_handle threads[THREADS];
    for (int n = 0; n < THREADS; n++) {
        threads[n] = start(change, &number);
    }
    for (int n = 0; n < 100; n++) {
        counters_flush();
        platform_yield();
    }
    for (int n = 0; n < THREADS; n++) {
        join(threads[n]);
    }
    counters_flush_into(number);
    CHECK(counters[number].live == (int64_t)THREADS * CHANGES / 2 * 16);
}

static void check_many_counters(void)
{
    uint32_t above = ROOT, opened = 0;
    uint32_t before = counters_in_use();
    for (; opened < 2000; opened++) {
        above = counters_open(opened % 50 ? above : ROOT);
        CHECK(above != ROOT);
        counters_charge(above, opened + 16);
    }
    counters_flush();
    CHECK(counters_in_use() == before + 2000);
    CHECK(counters[ROOT].live >= (int64_t)2000 * 1999 / 2);
}

THREAD(see_own_state, unused)
{
    (void)unused;
    CHECK(thread_state.counter == 0);
    thread_state.counter = 9;
    return 0;
}

int main(void)
{
    check_memory();
    check_clock();
    check_thread_ends();
    check_blocks();
    check_counters();
    check_changes_by_threads();
    check_many_counters();
    thread_state.counter = 5;
    join(start(see_own_state, NULL));
    CHECK(thread_state.counter == 5);
    puts("checked");
    return 0;
}
