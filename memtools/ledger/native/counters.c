/* The tree of counters, the segment, the accounts, and the merging of released counters. */

#include "counters.h"

#include <stdlib.h>

#include "platform.h"

_Thread_local struct thread_state thread_state;

struct counter *counters;
struct segment segment = {.limit_headroom = NO_LIMIT};
void (*counters_on_limit_crossed)(void);
_Atomic(uint32_t) counters_queue = QUEUE_END;
_Atomic(uint32_t) counters_busy_threads;

static uint32_t ever_used = 1; /* numbers below this have been given out at least once */
static uint32_t in_use = 0;    /* numbers in use, the process not counted */
static uint32_t released_alive = 0; /* in use, but no longer referenced */
static uint32_t free_number = 0;    /* the first of the free numbers, linked by `parent` */
static uint32_t last_generation = 0;
static uint32_t first_process_wide = 0; /* linked by `next_process_wide` */
static int64_t process_peak;            /* the highest `live` of the process since the latest of them was added */
static _Atomic(uint32_t) limited_count; /* open counters with a limit */
static int64_t counters_folds;          /* steps from a counter to its parent, for tests of the cost */

#define MAX_BORROW_DEPTH 8 /* how far above a freed block's counter the segment's one is looked for */

static void counters_recycle_if_done(uint32_t number);
static void counters_add_to_account(uint32_t account, int64_t change);
static void counters_reset_accounts(void);
static void counters_merge_released(void);

int counters_start(void)
{
    if (counters != NULL) {
        return 0;
    }
    void *made = platform_map(MAX_COUNTERS * sizeof(struct counter));
    if (made == NULL) {
        return -1;
    }
    counters = made;
    struct counter *root = &counters[ROOT];
    root->limit = root->ask_at = root->hard_limit = NO_LIMIT;
    root->is_in_use = root->is_open = root->is_referenced = 1;
    if (black_box_counters != NULL) {
        counters_fill_black_box();
    }
    return 0;
}

/* The black box: what is written there of each counter. */

static uint32_t counters_black_box_state(const struct counter *counter)
{
    return (counter->is_in_use ? BLACK_BOX_IN_USE : 0) | (counter->is_open ? BLACK_BOX_OPEN : 0) |
           (counter->is_referenced ? BLACK_BOX_REFERENCED : 0) |
           (counter->is_process_wide ? BLACK_BOX_PROCESS_WIDE : 0);
}

static NOINLINE void counters_write_record(uint32_t number)
{
    const struct counter *counter = &counters[number];
    black_box_write_counter(number, &(struct black_box_counter){
        .own = counter->own,
        .peak = counter->peak,
        .parent = counter->parent,
        .account = counter->account,
        .generation = counter->generation,
        .state = counters_black_box_state(counter),
    });
}

/* Write the state of a counter, and its links to others, none of which concern its bytes. */
static inline void counters_write_state(uint32_t number)
{
    if (UNLIKELY(black_box_counters != NULL)) {
        struct black_box_counter *record = &black_box_counters[number];
        BLACK_BOX_STORE(record->parent, counters[number].parent);
        BLACK_BOX_STORE(record->account, counters[number].account);
        BLACK_BOX_STORE(record->state, counters_black_box_state(&counters[number]));
    }
}

void counters_fill_black_box(void)
{
    if (counters == NULL) {
        return; /* no hook was installed so far: `counters_start` calls again */
    }
    counters_flush();
    for (uint32_t number = 0; number < ever_used; number++) {
        counters_write_record(number);
    }
    black_box_switch(segment.counter);
    BLACK_BOX_STORE(black_box_hot->change, 0);
    black_box_filled();
}

int counters_have_limits(void)
{
    return atomic_load_explicit(&limited_count, memory_order_relaxed) > 0;
}

void counters_update_limit_headroom(void)
{
    int64_t room = NO_LIMIT;
    if (LIKELY(!counters_have_limits())) {
        segment.limit_headroom = room;
        return;
    }
    counters_settle_chain(segment.counter);
    for (uint32_t number = segment.counter; number != ROOT; number = counters[number].parent) {
        const struct counter *counter = &counters[number];
        if (counter->ask_at != NO_LIMIT && counter->ask_at - counter->live < room) {
            room = counter->ask_at - counter->live;
        }
    }
    segment.limit_headroom = room;
}

/* Flushing. */

static inline void counters_apply(struct counter *counter, struct change change)
{
    if (counter->live + change.peak > counter->peak) {
        counter->peak = counter->live + change.peak;
        if (UNLIKELY(black_box_counters != NULL)) {
            BLACK_BOX_STORE(black_box_counters[counter - counters].peak, counter->peak);
        }
    }
    counter->live += change.net;
    counter->allocated += change.allocated;
}

/* Apply a change to a counter, and keep it for its parent after those that are pending. */
static inline void counters_apply_and_keep(struct counter *counter, struct change change)
{
    counters_apply(counter, change);
    if (counter->parent == ROOT) {
        return;
    }
    struct change *pending = &counter->pending;
    if (pending->net + change.peak > pending->peak) {
        pending->peak = pending->net + change.peak;
    }
    pending->net += change.net;
    pending->allocated += change.allocated;
}

/* Apply to a counter what is pending below it, from the bottom up. */
static void counters_settle_below(uint32_t number)
{
    uint32_t below = number;
    while (counters[below].pending_child != ROOT) {
        below = counters[below].pending_child;
    }
    while (below != number) {
        struct counter *counter = &counters[below];
        below = counter->parent;
        counters_apply_and_keep(&counters[below], counter->pending);
        counter->pending = (struct change){0};
        counters[below].pending_child = ROOT;
        counters_folds++;
    }
}

static inline void counters_settle(uint32_t number)
{
    if (counters[number].pending_child != ROOT) {
        counters_settle_below(number);
    }
}

/* Add a change to a counter, and keep it for its ancestors below the process. What is pending in other branches came
   earlier, so it is applied to the common ancestors first. */
static void counters_add_below_process(uint32_t number, struct change change)
{
    if (number == ROOT) {
        return;
    }
    counters_settle(number);
    uint32_t child = number, parent;
    while ((parent = counters[child].parent) != ROOT && counters[parent].pending_child != child) {
        counters_settle(parent);
        counters[parent].pending_child = child;
        counters_folds++;
        child = parent;
    }
    counters_apply_and_keep(&counters[number], change);
}

static void counters_add_up(uint32_t number, struct change change)
{
    if (change.net == 0 && change.peak == 0 && change.allocated == 0) {
        return; /* most flushes: an owner is read, closed and released one after the other */
    }
    counters_apply(&counters[ROOT], change);
    counters_add_below_process(number, change);
}

void counters_flush_into(uint32_t number)
{
    counters_flush();
    counters_settle(number);
}

void counters_settle_chain(uint32_t number)
{
    while (number != ROOT && counters[number].parent != ROOT) {
        number = counters[number].parent;
    }
    counters_settle(number);
}

int64_t counters_count_folds(void)
{
    return counters_folds;
}

/* Runs before the figures of the process change. The process-wide counters, which may be many, read the result
   later. */
static void counters_raise_process_peak(int64_t peak)
{
    int64_t reached = counters[ROOT].live + peak;
    if (reached > process_peak) {
        process_peak = reached;
    }
}

int64_t counters_process_wide_peak(uint32_t number)
{
    const struct counter *counter = &counters[number];
    int64_t since_open = process_peak - counter->live_at_open;
    return since_open > counter->process_wide_peak ? since_open : counter->process_wide_peak;
}

/* Store the process's peak in each process-wide counter before another one is added, which has not seen that peak. */
static void counters_store_process_peaks(void)
{
    for (uint32_t number = first_process_wide; number != ROOT; number = counters[number].next_process_wide) {
        counters[number].process_wide_peak = counters_process_wide_peak(number);
    }
    process_peak = counters[ROOT].live;
}

/* The segment has moved from another counter. The headroom of a child is safe for its parent; where it turns out too
   small, it is computed anew. */
static void counters_update_limit_headroom_from(uint32_t before)
{
    const struct counter *counter = &counters[segment.counter];
    if (before != ROOT && segment.counter != ROOT && counters[before].parent == segment.counter) {
        return;
    }
    if (before == ROOT || counter->parent != before) {
        counters_update_limit_headroom();
        return;
    }
    counters_settle(segment.counter);
    if (counter->ask_at != NO_LIMIT && counter->ask_at - counter->live < segment.limit_headroom) {
        segment.limit_headroom = counter->ask_at - counter->live;
    }
}

static void counters_add_own(uint32_t number, int64_t change)
{
    counters[number].own += change;
    black_box_own(number, counters[number].own);
    counters_add_to_account(counters[number].account, change);
}

/* Add what the segment has seen. The headroom shrinks by what the ancestors have grown. */
static void counters_flush_segment(void)
{
    if (UNLIKELY(first_process_wide != ROOT)) {
        counters_raise_process_peak(segment.peak);
    }
    int64_t change = segment.net + segment.borrowed;
    if (change != 0) {
        counters[segment.counter].own += change;
        black_box_flush(segment.counter, counters[segment.counter].own);
        counters_add_to_account(counters[segment.counter].account, change);
    }
    counters_add_up(segment.counter, (struct change){segment.net, segment.peak, segment.allocated});
    if (UNLIKELY(segment.limit_headroom != NO_LIMIT)) {
        segment.limit_headroom -= segment.net;
    }
    segment.net = segment.peak = segment.allocated = segment.borrowed = 0;
}

static void counters_add_no_gil(uint32_t number, int64_t change)
{
    int64_t rise = change > 0 ? change : 0;
    if (UNLIKELY(first_process_wide != ROOT)) {
        counters_raise_process_peak(rise);
    }
    counters_add_own(number, change);
    counters_add_up(number, (struct change){change, rise, rise});
}

/* Add what threads have changed without the GIL. The order of these changes is unknown. Falls are added first, else
   bytes that were freed under one counter and allocated under another would count twice into the peak of their
   common ancestors. The caller has flushed the segment. */
static void counters_flush_no_gil(void)
{
    uint32_t first = atomic_exchange(&counters_queue, QUEUE_END);
    for (uint32_t number = first; number != QUEUE_END; number = atomic_load(&counters[number].next_queued)) {
        int64_t change = atomic_exchange(&counters[number].no_gil_change, 0);
        counters[number].pending_rise = change > 0 ? change : 0;
        if (change < 0) {
            counters_add_no_gil(number, change);
        }
    }
    for (uint32_t number = first, next; number != QUEUE_END; number = next) {
        struct counter *counter = &counters[number];
        next = atomic_load(&counter->next_queued);
        atomic_store(&counter->is_queued, 0); /* from here on another thread may queue it again */
        counters_add_no_gil(number, counter->pending_rise + atomic_exchange(&counter->no_gil_change, 0));
        counters_recycle_if_done(number);
    }
    counters_update_limit_headroom();
}

void counters_flush(void)
{
    counters_flush_segment();
    if (atomic_load_explicit(&counters_queue, memory_order_relaxed) != QUEUE_END) {
        counters_flush_no_gil();
    }
}

void counters_flush_before(int64_t size)
{
    segment.net -= size;
    black_box_change(-size);
    segment.allocated -= size;
    counters_flush();
    segment.net = segment.allocated = size;
    black_box_change(size);
}

void counters_switch(uint32_t number)
{
    uint32_t before = segment.counter;
    counters_flush_segment();
    if (UNLIKELY(atomic_load_explicit(&counters_queue, memory_order_relaxed) != QUEUE_END)) {
        counters_flush_no_gil();
    }
    segment.counter = number;
    black_box_switch(number);
    if (UNLIKELY(counters_have_limits())) {
        counters_update_limit_headroom_from(before);
    }
    else {
        segment.limit_headroom = NO_LIMIT;
    }
    if (!counters[before].is_referenced) {
        counters_recycle_if_done(before);
    }
}

static int counters_is_close_below(uint32_t number, uint32_t ancestor)
{
    for (int n = 0; n < MAX_BORROW_DEPTH && number != ROOT; n++) {
        number = counters[number].parent;
        if (number == ancestor) {
            return 1;
        }
    }
    return 0;
}

void counters_credit_slow(uint32_t number, int64_t size)
{
    struct change fall = {.net = -size};
    if (segment.counter == ROOT) {
        counters_add_below_process(number, fall);
        segment.net -= size;
        segment.borrowed += size;
    }
    else if (counters_is_close_below(number, segment.counter)) {
        counters_settle(segment.counter);
        for (uint32_t above = number; above != segment.counter; above = counters[above].parent) {
            counters[above].live -= size;
        }
        segment.net -= size;
        segment.borrowed += size;
    }
    else {
        /* The common ancestors fall now, in the middle of the segment, so the segment ends here. */
        counters_flush_segment();
        counters_add_up(number, fall);
    }
    counters_add_own(number, -size);
    if (!counters[number].is_referenced) {
        counters_recycle_if_done(number);
    }
}

void counters_change_no_gil(uint32_t number, int64_t change)
{
    struct counter *counter = &counters[number];
    atomic_fetch_add(&counter->no_gil_change, change);
    if (atomic_exchange(&counter->is_queued, 1)) {
        return;
    }
    uint32_t first = atomic_load(&counters_queue);
    do {
        atomic_store(&counter->next_queued, first);
    } while (!atomic_compare_exchange_weak(&counters_queue, &first, number));
}

/* Opening and closing. */

/* An open counter is always a child of an open counter. */
static void counters_link_open(uint32_t number, uint32_t parent)
{
    uint32_t next = counters[parent].first_open_child;
    counters[number].next_open = next;
    counters[number].previous_open = ROOT;
    if (next != ROOT) {
        counters[next].previous_open = number;
    }
    counters[parent].first_open_child = number;
}

static void counters_unlink_open(uint32_t number)
{
    uint32_t next = counters[number].next_open, previous = counters[number].previous_open;
    if (next != ROOT) {
        counters[next].previous_open = previous;
    }
    if (previous != ROOT) {
        counters[previous].next_open = next;
    }
    else {
        counters[counters[number].parent].first_open_child = next;
    }
}

uint32_t counters_open(uint32_t parent)
{
    counters_flush();
    if (UNLIKELY(free_number == 0 && ever_used == MAX_COUNTERS)) {
        counters_merge_released();
    }
    uint32_t number = free_number;
    if (number != 0) {
        free_number = counters[number].parent;
    }
    else if (ever_used < MAX_COUNTERS) {
        number = ever_used++;
    }
    else {
        return ROOT;
    }

    counters[number] = (struct counter){
        .parent = parent,
        .live_at_open = counters[ROOT].live,
        .limit = NO_LIMIT,
        .ask_at = NO_LIMIT,
        .hard_limit = NO_LIMIT,
        .generation = ++last_generation,
        .is_in_use = 1,
        .is_open = 1,
        .is_referenced = 1,
    };
    counters[parent].child_count++;
    counters_link_open(number, parent);
    in_use++;
    if (UNLIKELY(black_box_counters != NULL)) {
        counters_write_record(number);
    }
    return number;
}

static void counters_reparent_open_children(uint32_t number)
{
    struct counter *counter = &counters[number];
    uint32_t child;
    if (counter->first_open_child != ROOT) {
        counters_settle(number); /* what is pending below an open child is applied while it is this counter's */
    }
    while ((child = counter->first_open_child) != ROOT) {
        counters_unlink_open(child);
        counters[child].parent = counter->parent;
        counters_write_state(child);
        counters_link_open(child, counter->parent);
        counter->live -= counters[child].live;
        counter->child_count--;
        counters[counter->parent].child_count++;
    }
}

void counters_set_limits(uint32_t number, int64_t limit, int64_t hard_limit, void *enforcer)
{
    struct counter *counter = &counters[number];
    int had_limit = counter->limit != NO_LIMIT, has_limit = limit != NO_LIMIT;
    (void)atomic_fetch_add(&limited_count, (uint32_t)has_limit - (uint32_t)had_limit);
    counter->limit = counter->ask_at = limit;
    counter->hard_limit = hard_limit;
    counter->enforcer = enforcer;
    counters_flush();
    counters_update_limit_headroom();
}

void counters_close(uint32_t number)
{
    struct counter *counter = &counters[number];
    counters_flush();
    counter->is_open = 0;
    if (counter->limit != NO_LIMIT) {
        counters_set_limits(number, NO_LIMIT, NO_LIMIT, NULL);
    }
    if (counter->is_process_wide) {
        uint32_t *link = &first_process_wide;
        while (*link != number) {
            link = &counters[*link].next_process_wide;
        }
        *link = counter->next_process_wide;
        counter->is_process_wide = 0;
    }
    counters_reparent_open_children(number);
    counters_unlink_open(number);
    counters_write_state(number);
}

void counters_make_process_wide(uint32_t number)
{
    struct counter *counter = &counters[number];
    if (counter->is_process_wide) {
        return;
    }
    counters_flush();
    counters_reparent_open_children(number);
    counters_settle(number);
    counters_store_process_peaks();
    counter->is_process_wide = 1;
    counters_write_state(number);
    counter->process_wide_peak = counter->peak;
    counter->next_process_wide = first_process_wide;
    first_process_wide = number;
}

void counters_release(uint32_t number)
{
    if (counters[number].is_open) {
        counters_close(number);
    }
    counters_flush();
    counters[number].is_referenced = 0;
    counters_write_state(number);
    released_alive++;
    counters_recycle_if_done(number);
}

/* Free the number of a counter that has neither a reference nor a block nor a child, and so on up the tree. */
static void counters_recycle_if_done(uint32_t number)
{
    while (number != ROOT) {
        struct counter *counter = &counters[number];
        if (!counter->is_in_use || counter->is_referenced || counter->child_count != 0 || counter->own != 0 ||
            segment.counter == number || atomic_load(&counter->is_queued)) {
            return;
        }
        uint32_t parent = counter->parent;
        if (counters[parent].pending_child == number) {
            counters_settle(parent);
        }
        counters[parent].child_count--;
        counters_leave_account(number);
        counter->is_in_use = 0;
        counters_write_state(number);
        released_alive--;
        counter->parent = free_number;
        free_number = number;
        in_use--;
        number = parent;
    }
}

static void counters_settle_all(void)
{
    for (uint32_t number = 1; number < ever_used; number++) {
        counters_settle(number);
    }
}

void counters_reset(void)
{
    counters_flush();
    counters_settle_all();
    black_box_set_unsure(1);
    for (uint32_t number = 0; number < ever_used; number++) {
        counters[number].own = counters[number].live = 0;
        black_box_own(number, 0);
    }
    black_box_set_unsure(0);
    counters_reset_accounts();
    for (uint32_t number = 1; number < ever_used; number++) {
        counters_recycle_if_done(number);
    }
}

void counters_after_fork(void)
{
    atomic_store(&counters_busy_threads, 0);
    atomic_store(&counters_queue, QUEUE_END);
    for (uint32_t number = 0; number < ever_used; number++) {
        struct counter *counter = &counters[number];
        if (atomic_load(&counter->is_queued)) { /* a store only where needed: pages that are only read stay shared */
            atomic_store(&counter->is_queued, 0);
        }
        if (atomic_load(&counter->no_gil_change) != 0) {
            counters_change_no_gil(number, 0); /* queue it anew: the thread that was about to is gone */
        }
    }
    counters_flush();
}

uint32_t counters_in_use(void)
{
    return in_use;
}

/* Accounts. */

struct account_totals {
    int64_t own;       /* bytes of the live blocks of its counters */
    uint32_t counters; /* how many counters it has */
    uint32_t next_free;
    uint8_t is_referenced;
};

static struct account_totals *accounts;
static uint32_t accounts_ever_used = 1;
static uint32_t free_account = NO_ACCOUNT; /* the first of the free accounts, linked by `next_free` */

static void counters_recycle_account_if_done(uint32_t number)
{
    struct account_totals *account = &accounts[number];
    if (number != NO_ACCOUNT && !account->is_referenced && account->counters == 0) {
        account->next_free = free_account;
        free_account = number;
    }
}

uint32_t counters_open_account(void)
{
    /* From the C library: a block of Python's allocators would be charged to the owner that opens the first account. */
    if (accounts == NULL && (accounts = calloc(MAX_ACCOUNTS, sizeof *accounts)) == NULL) {
        return NO_ACCOUNT;
    }
    uint32_t number = free_account;
    if (number != NO_ACCOUNT) {
        free_account = accounts[number].next_free;
    }
    else if (accounts_ever_used < MAX_ACCOUNTS) {
        number = accounts_ever_used++;
    }
    else {
        return NO_ACCOUNT;
    }
    accounts[number] = (struct account_totals){.is_referenced = 1};
    return number;
}

void counters_release_account(uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].is_referenced = 0;
        counters_recycle_account_if_done(number);
    }
}

int64_t counters_account_live(uint32_t number)
{
    return accounts == NULL ? 0 : accounts[number].own;
}

static void counters_add_to_account(uint32_t number, int64_t change)
{
    if (number != NO_ACCOUNT) {
        accounts[number].own += change;
    }
}

void counters_join_account(uint32_t counter, uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].counters++;
        accounts[number].own += counters[counter].own;
    }
    counters[counter].account = number;
    counters_write_state(counter);
}

void counters_leave_account(uint32_t counter)
{
    uint32_t number = counters[counter].account;
    counters[counter].account = NO_ACCOUNT;
    counters_write_state(counter);
    if (number != NO_ACCOUNT) {
        accounts[number].own -= counters[counter].own;
        accounts[number].counters--;
        counters_recycle_account_if_done(number);
    }
}

static void counters_reset_accounts(void)
{
    for (uint32_t number = 0; accounts != NULL && number < accounts_ever_used; number++) {
        accounts[number].own = 0;
    }
}

/* Merging of released counters, when all numbers are in use.

   A released counter keeps its number because some blocks carry it. A block may move to another released counter of
   the same account with the same nearest referenced ancestor (its anchor): that changes no figure that can still be
   read. So one released counter is left for each pair of account and anchor. The blocks are found by reading the
   whole map, which takes some milliseconds per GiB of heap, so it is done only when there are many counters to
   merge. The GIL is held all the while; other threads may allocate and free raw blocks without it. */

#define MIN_RELEASED 1024 /* fewer are not worth the reading */
#define SLOTS 65536       /* of the hash table: a power of two, above MAX_COUNTERS */
#define MAX_POLLS 10000

struct merge_plan {
    uint32_t slots[SLOTS];          /* a hash table by account and anchor of the counters that are kept */
    uint32_t targets[MAX_COUNTERS]; /* by number: the counter that gets its blocks */
    uint32_t anchors[MAX_COUNTERS]; /* by number: its nearest referenced ancestor */
};

static int counters_is_released(uint32_t number)
{
    return number != ROOT && counters[number].is_in_use && !counters[number].is_referenced;
}

static uint32_t counters_anchor_of(uint32_t number)
{
    do {
        number = counters[number].parent;
    } while (counters_is_released(number));
    return number;
}

static void counters_plan_merge(struct merge_plan *plan)
{
    for (uint32_t number = 1; number < ever_used; number++) {
        plan->targets[number] = number;
        if (!counters[number].is_in_use) {
            continue;
        }
        uint32_t anchor = plan->anchors[number] = counters_anchor_of(number);
        if (!counters_is_released(number)) {
            continue;
        }
        uint32_t account = counters[number].account;
        uint32_t slot = (account * 40503u + anchor * 2654435761u) % SLOTS;
        uint32_t other;
        while ((other = plan->slots[slot]) != 0 &&
               (counters[other].account != account || plan->anchors[other] != anchor)) {
            slot = (slot + 1) % SLOTS;
        }
        if (other == 0) {
            plan->slots[slot] = number;
        }
        else {
            plan->targets[number] = other;
        }
    }
}

/* The anchor and the account have counted the bytes all along, so only the two counters change. */
static void counters_merge_one(uint32_t number, uint32_t target, uint32_t anchor)
{
    struct counter *counter = &counters[number];
    if (counter->parent != anchor) {
        counters[counter->parent].child_count--;
        counter->parent = anchor;
        counters_write_state(number);
        counters[anchor].child_count++;
    }
    if (target != number) {
        counters[target].own += counter->own;
        counters[target].live += counter->own;
        counter->live -= counter->own;
        counter->own = 0;
        black_box_own(target, counters[target].own);
        black_box_own(number, 0);
    }
}

/* Another thread may clear the entry of a raw block meanwhile. */
static void counters_retag_entry(map_entry *at, const uint32_t *targets)
{
    map_entry tag = *at;
    uint32_t number = (uint32_t)(tag >> 1) - 1;
    if (number != ROOT && number < MAX_COUNTERS && targets[number] != number) {
        map_entry wanted = (map_entry)(((targets[number] + 1) << 1) | (tag & 1));
        (void)__atomic_compare_exchange_n(at, &tag, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static void counters_retag_page(map_entry *page, const uint32_t *targets)
{
    for (size_t n = 0; n < PAGE_ENTRIES;) {
        uint64_t four;
        memcpy(&four, page + n, sizeof four);
        if (n % 4 == 0 && four == 0) {
            n += 4;
            continue;
        }
        map_entry tag = page[n];
        if (tag == 0 || tag & 1) {
            if (tag != 0) {
                counters_retag_entry(page + n, targets);
            }
            n += 1;
            continue;
        }
        map_entry size = page[n + 1];
        counters_retag_entry(page + n, targets);
        n += size != 0 ? 2 : 6; /* skip the size; the other entries of the block's granules are empty */
    }
}

/* Wait for threads that read a tag before it was changed and have not credited its counter yet. Returns whether all
   are done. */
static int counters_wait_for_busy_threads(void)
{
    for (int poll = 0; poll < MAX_POLLS; poll++) {
        if (atomic_load(&counters_busy_threads) == 0) {
            return 1;
        }
        platform_yield();
    }
    return 0;
}

static void counters_merge_released(void)
{
    counters_switch(ROOT); /* flushes, and ends a segment that may belong to a counter to be merged */
    if (released_alive < MIN_RELEASED) {
        return;
    }
    struct merge_plan *plan = platform_map(sizeof *plan);
    if (plan == NULL) {
        return;
    }

    counters_plan_merge(plan);
    for (size_t index = 0; index < PAGE_COUNT; index++) {
        map_entry *page = atomic_load(&block_map_pages[index]);
        if (page != NULL) {
            counters_retag_page(page, plan->targets);
        }
    }
    int is_safe_to_recycle = counters_wait_for_busy_threads();
    counters_flush();
    counters_settle_all();
    black_box_set_unsure(1);
    for (uint32_t number = 1; number < ever_used; number++) {
        if (counters[number].is_in_use) {
            counters_merge_one(number, plan->targets[number], plan->anchors[number]);
        }
    }
    black_box_set_unsure(0);
    for (uint32_t number = 1; is_safe_to_recycle && number < ever_used; number++) {
        counters_recycle_if_done(number);
    }
    platform_unmap(plan, sizeof *plan);
}
