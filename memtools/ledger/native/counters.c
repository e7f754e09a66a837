/* The tree of tallies and the running segment; see tallies.h for how they work together. */

#include "counters.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "block_map.h"
#include "hooks.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

struct tally *tallies;
struct running running = {.room = NO_CEILING};

static uint32_t used = 1;  /* numbers below this have been given out at least once */
static uint32_t taken = 0; /* numbers in use, the process not counted */
static uint32_t free_number = 0;
static uint32_t orphans = 0; /* taken, but not held */
static uint32_t first_wide = 0; /* each knows the next by `next_wide` */
static int64_t wide_high;       /* the highest `live` of the process since the last of them was added */
static uint32_t opened = 0;
_Atomic(uint32_t) tallies_queue = QUEUE_END;
_Atomic(uint32_t) tallies_busy;

static void recycle_if_done(uint32_t number);

int tallies_start(void)
{
    if (tallies != NULL) {
        return 0;
    }
    void *made = mmap(NULL, MAX_TALLIES * sizeof(struct tally), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) {
        return -1;
    }
    tallies = made;
    tallies[NOBODY].ceiling = tallies[NOBODY].wall = tallies[NOBODY].brake = NO_CEILING;
    tallies[NOBODY].last = NO_CEILING;
    tallies[NOBODY].is_taken = tallies[NOBODY].is_open = tallies[NOBODY].is_held = 1;
    return 0;
}

/* Add a change to a tally and all above it. */
static void add(uint32_t number, int64_t net, int64_t high, int64_t allocated)
{
    for (;; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        if (tally->live + high > tally->peak) {
            tally->peak = tally->live + high;
        }
        tally->live += net;
        tally->allocated += allocated;
        if (number == NOBODY) {
            return;
        }
    }
}

/* Before the figures of the process change by a segment. All that follow it are told later, at once: they may be many. */
static void raise_wide(int64_t high)
{
    int64_t reached = tallies[NOBODY].live + high;
    if (reached > wide_high) {
        wide_high = reached;
    }
}

int64_t tallies_wide_peak(uint32_t number)
{
    const struct tally *tally = &tallies[number];
    return wide_high - tally->start > tally->widened ? wide_high - tally->start : tally->widened;
}

/* Have those that follow the process know how high it stood, before there is another one, which has not seen that. */
static void tell_wide(void)
{
    for (uint32_t number = first_wide; number != NOBODY; number = tallies[number].next_wide) {
        tallies[number].widened = tallies_wide_peak(number);
    }
    wide_high = tallies[NOBODY].live;
}

/* Add a change to a tally's own bytes, and so to its account's. */
static void add_own(uint32_t number, int64_t change)
{
    tallies[number].own += change;
    accounts_add(tallies[number].account, change);
}

/* Add what the running segment has seen; who calls sets its room anew. */
static void fold_segment(void)
{
    struct running *segment = &running;
    if (UNLIKELY(first_wide != NOBODY)) {
        raise_wide(segment->high);
    }
    add_own(segment->tally, segment->net + segment->lent);
    add(segment->tally, segment->net, segment->high, segment->allocated);
    segment->net = segment->high = segment->allocated = segment->lent = 0;
}

static void settle_segment(void)
{
    fold_segment();
    running.room = tallies_room();
}

static void add_unlocked(uint32_t number, int64_t change)
{
    int64_t rise = change > 0 ? change : 0;
    if (UNLIKELY(first_wide != NOBODY)) {
        raise_wide(rise);
    }
    add_own(number, change);
    add(number, change, rise, rise);
}

/* What threads without the GIL have changed. In which order is not known; falls go first, or a block that changed hands
   would count twice into the peak of those above both. The caller has settled the segment. */
static void settle_unlocked(void)
{
    uint32_t first = atomic_exchange(&tallies_queue, QUEUE_END);
    for (uint32_t number = first; number != QUEUE_END; number = atomic_load(&tallies[number].next_queued)) {
        int64_t change = atomic_exchange(&tallies[number].unlocked, 0);
        tallies[number].risen = change > 0 ? change : 0;
        if (change < 0) {
            add_unlocked(number, change);
        }
    }
    for (uint32_t number = first, next; number != QUEUE_END; number = next) {
        struct tally *tally = &tallies[number];
        next = atomic_load(&tally->next_queued);
        atomic_store(&tally->is_queued, 0); /* from here on another thread may queue it again */
        add_unlocked(number, tally->risen + atomic_exchange(&tally->unlocked, 0));
        recycle_if_done(number);
    }
    running.room = tallies_room();
}

void tallies_settle(void)
{
    settle_segment();
    if (atomic_load_explicit(&tallies_queue, memory_order_relaxed) != QUEUE_END) {
        settle_unlocked();
    }
}

void tallies_settle_before(int64_t size)
{
    running.net -= size;
    running.allocated -= size;
    tallies_settle();
    running.net = running.allocated = size;
}

void tallies_turn_over(uint32_t number)
{
    uint32_t before = running.tally;
    fold_segment();
    if (UNLIKELY(atomic_load_explicit(&tallies_queue, memory_order_relaxed) != QUEUE_END)) {
        settle_unlocked();
    }
    running.tally = number;
    running.room = tallies_room();
    if (!tallies[before].is_held) {
        recycle_if_done(before);
    }
}

void tallies_credit_other(uint32_t number, int64_t size)
{
    uint32_t above = number;
    while (above != running.tally && above != NOBODY) {
        above = tallies[above].parent;
    }
    if (above != running.tally) {
        /* What both have above them falls now, and not at the end of the segment. */
        settle_segment();
        add(number, -size, 0, 0);
    }
    else {
        for (above = number; above != running.tally; above = tallies[above].parent) {
            tallies[above].live -= size;
        }
        running.net -= size;
        running.lent += size;
    }
    add_own(number, -size);
    if (!tallies[number].is_held) {
        recycle_if_done(number);
    }
}

void tallies_change_unlocked(uint32_t number, int64_t change)
{
    struct tally *tally = &tallies[number];
    atomic_fetch_add(&tally->unlocked, change);
    if (atomic_exchange(&tally->is_queued, 1)) {
        return;
    }
    uint32_t first = atomic_load(&tallies_queue);
    do {
        atomic_store(&tally->next_queued, first);
    } while (!atomic_compare_exchange_weak(&tallies_queue, &first, number));
}

/* What is open is always below what is open. */
static void link_open(uint32_t number, uint32_t parent)
{
    uint32_t next = tallies[parent].first_open_below;
    tallies[number].next_open = next;
    tallies[number].previous_open = NOBODY;
    if (next != NOBODY) {
        tallies[next].previous_open = number;
    }
    tallies[parent].first_open_below = number;
}

static void unlink_open(uint32_t number)
{
    uint32_t next = tallies[number].next_open, previous = tallies[number].previous_open;
    if (next != NOBODY) {
        tallies[next].previous_open = previous;
    }
    if (previous != NOBODY) {
        tallies[previous].next_open = next;
    }
    else {
        tallies[tallies[number].parent].first_open_below = next;
    }
}

uint32_t tallies_open(uint32_t parent)
{
    tallies_settle();
    if (UNLIKELY(free_number == 0 && used == MAX_TALLIES)) {
        sweep_tallies();
    }
    uint32_t number = free_number;
    if (number != 0) {
        free_number = tallies[number].parent;
    }
    else if (used < MAX_TALLIES) {
        number = used++;
    }
    else {
        return NOBODY;
    }

    struct tally *tally = &tallies[number];
    *tally = (struct tally){
        .parent = parent,
        .start = tallies[NOBODY].live,
        .ceiling = NO_CEILING,
        .wall = NO_CEILING,
        .brake = NO_CEILING,
        .last = NO_CEILING,
        .serial = ++opened,
        .is_taken = 1,
        .is_open = 1,
        .is_held = 1,
    };
    tallies[parent].below++;
    link_open(number, parent);
    taken++;
    return number;
}

/* Hang the open tallies below this one to its parent. */
static void move_open_ones_up(uint32_t number)
{
    struct tally *tally = &tallies[number];
    uint32_t child;
    while ((child = tally->first_open_below) != NOBODY) {
        unlink_open(child);
        tallies[child].parent = tally->parent;
        link_open(child, tally->parent);
        tally->live -= tallies[child].live;
        tally->below--;
        tallies[tally->parent].below++;
    }
}

void tallies_close(uint32_t number)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->is_open = 0;
    if (tally->ceiling != NO_CEILING) {
        tallies_limit(number, NO_CEILING, NO_CEILING, NULL);
    }
    if (tally->is_wide) {
        uint32_t *link = &first_wide;
        while (*link != number) {
            link = &tallies[*link].next_wide;
        }
        *link = tally->next_wide;
        tally->is_wide = 0;
    }
    move_open_ones_up(number);
    unlink_open(number);
}

void tallies_widen(uint32_t number)
{
    struct tally *tally = &tallies[number];
    if (tally->is_wide) {
        return;
    }
    tallies_settle();
    move_open_ones_up(number);
    tell_wide();
    tally->is_wide = 1;
    tally->widened = tally->peak;
    tally->next_wide = first_wide;
    first_wide = number;
}

void tallies_release(uint32_t number)
{
    if (tallies[number].is_open) {
        tallies_close(number);
    }
    tallies_settle();
    tallies[number].is_held = 0;
    orphans++;
    recycle_if_done(number);
}

void tallies_recycle(uint32_t number)
{
    recycle_if_done(number);
}

static void recycle_if_done(uint32_t number)
{
    while (number != NOBODY) {
        struct tally *tally = &tallies[number];
        if (!tally->is_taken || tally->is_held || tally->below != 0 || tally->own != 0 ||
            running.tally == number || atomic_load(&tally->is_queued)) {
            return;
        }
        uint32_t parent = tally->parent;
        tallies[parent].below--;
        accounts_part(number);
        tally->is_taken = 0;
        orphans--;
        tally->parent = free_number;
        free_number = number;
        taken--;
        number = parent;
    }
}

void tallies_forget(void)
{
    tallies_settle();
    for (uint32_t number = 0; number < used; number++) {
        tallies[number].own = tallies[number].live = 0;
    }
    accounts_forget();
    for (uint32_t number = 1; number < used; number++) {
        recycle_if_done(number);
    }
}

void tallies_after_fork(void)
{
    atomic_store(&tallies_busy, 0);
    atomic_store(&tallies_queue, QUEUE_END);
    for (uint32_t number = 0; number < used; number++) {
        struct tally *tally = &tallies[number];
        if (atomic_load(&tally->is_queued)) { /* what is only read stays shared with the parent */
            atomic_store(&tally->is_queued, 0);
        }
        if (atomic_load(&tally->unlocked) != 0) {
            tallies_change_unlocked(number, 0); /* whoever was about to queue it is no more */
        }
    }
    tallies_settle();
}

uint32_t tallies_orphans(void)
{
    return orphans;
}

uint32_t tallies_used(void)
{
    return used;
}

uint32_t tallies_in_use(void)
{
    return taken;
}

/* The table of accounts, and what Python sees of it; see accounts.h. */

struct account {
    int64_t own;      /* bytes of the live blocks of its tallies */
    uint32_t tallies; /* how many have it */
    uint32_t next_free;
    uint8_t is_held;
};

static struct account *accounts;
static uint32_t accounts_used = 1; /* numbers below this have been given out at least once */
static uint32_t free_account = NO_ACCOUNT;

static void recycle_account_if_done(uint32_t number)
{
    struct account *account = &accounts[number];
    if (number != NO_ACCOUNT && !account->is_held && account->tallies == 0) {
        account->next_free = free_account;
        free_account = number;
    }
}

uint32_t accounts_open(void)
{
    /* Not Python's: or it would be charged to whoever opens the first. */
    if (accounts == NULL && (accounts = calloc(MAX_ACCOUNTS, sizeof *accounts)) == NULL) {
        return NO_ACCOUNT;
    }
    uint32_t number = free_account;
    if (number != NO_ACCOUNT) {
        free_account = accounts[number].next_free;
    }
    else if (accounts_used < MAX_ACCOUNTS) {
        number = accounts_used++;
    }
    else {
        return NO_ACCOUNT;
    }
    accounts[number] = (struct account){.is_held = 1};
    return number;
}

void accounts_release(uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].is_held = 0;
        recycle_account_if_done(number);
    }
}

int64_t accounts_live(uint32_t number)
{
    return accounts == NULL ? 0 : accounts[number].own;
}

void accounts_add(uint32_t number, int64_t change)
{
    if (number != NO_ACCOUNT) {
        accounts[number].own += change;
    }
}

void accounts_join(uint32_t tally, uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].tallies++;
        accounts[number].own += tallies[tally].own;
    }
    tallies[tally].account = number;
}

void accounts_part(uint32_t tally)
{
    uint32_t number = tallies[tally].account;
    tallies[tally].account = NO_ACCOUNT;
    if (number != NO_ACCOUNT) {
        accounts[number].own -= tallies[tally].own;
        accounts[number].tallies--;
        recycle_account_if_done(number);
    }
}

void accounts_forget(void)
{
    for (uint32_t number = 0; accounts != NULL && number < accounts_used; number++) {
        accounts[number].own = 0;
    }
}

/* Merge the tallies that nobody holds any more; see sweep.h. */

#define LEAST_ORPHANS 1024 /* fewer are not worth the reading */
#define SLOTS 65536        /* of the table by account and place: a power of two, above MAX_TALLIES */
#define LOOKS 10000

struct scratch {
    uint32_t slots[SLOTS];          /* the one that is kept, for each account below each place */
    uint32_t kept[MAX_TALLIES];     /* by number: who gets its blocks */
    uint32_t places[MAX_TALLIES];   /* by number: the nearest one above that is held */
};

/* Those above both have counted its bytes all along, and so has the account. */
static void merge(uint32_t number, uint32_t kept, uint32_t place)
{
    struct tally *tally = &tallies[number];
    if (tally->parent != place) {
        tallies[tally->parent].below--;
        tally->parent = place;
        tallies[place].below++;
    }
    if (kept != number) {
        tallies[kept].own += tally->own;
        tallies[kept].live += tally->own;
        tally->live -= tally->own;
        tally->own = 0;
    }
}

static int is_orphan(uint32_t number)
{
    return number != NOBODY && tallies[number].is_taken && !tallies[number].is_held;
}

static uint32_t place_of(uint32_t number)
{
    do {
        number = tallies[number].parent;
    } while (is_orphan(number));
    return number;
}

static void choose(struct scratch *scratch)
{
    for (uint32_t number = 1; number < tallies_used(); number++) {
        scratch->kept[number] = number;
        if (!tallies[number].is_taken) {
            continue;
        }
        uint32_t place = scratch->places[number] = place_of(number);
        if (!is_orphan(number)) {
            continue;
        }
        uint32_t account = tallies[number].account;
        uint32_t slot = (account * 40503u + place * 2654435761u) % SLOTS;
        uint32_t other;
        while ((other = scratch->slots[slot]) != 0 &&
               (tallies[other].account != account || scratch->places[other] != place)) {
            slot = (slot + 1) % SLOTS;
        }
        if (other == 0) {
            scratch->slots[slot] = number;
        }
        else {
            scratch->kept[number] = other;
        }
    }
}

/* Other threads may clear the cell of a raw block meanwhile. */
static void relabel(cell *at, const uint32_t *kept)
{
    cell label = *at;
    uint32_t number = (uint32_t)(label >> 1) - 1;
    if (number != NOBODY && number < MAX_TALLIES && kept[number] != number) {
        cell wanted = (cell)(((kept[number] + 1) << 1) | (label & 1));
        (void)__atomic_compare_exchange_n(at, &label, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static void relabel_leaf(cell *leaf, const uint32_t *kept)
{
    for (size_t n = 0; n < LEAF_CELLS;) {
        uint64_t four;
        memcpy(&four, leaf + n, sizeof four);
        if (n % 4 == 0 && four == 0) {
            n += 4;
            continue;
        }
        cell label = leaf[n];
        if (label == 0 || label & 1) {
            if (label != 0) {
                relabel(leaf + n, kept);
            }
            n += 1;
            continue;
        }
        cell size = leaf[n + 1];
        relabel(leaf + n, kept);
        n += size != 0 ? 2 : 6; /* behind its size; the other cells of its granules are empty */
    }
}

/* Whoever has read a label before it was changed, and not yet credited it, has to be waited for. */
static int others_are_done(void)
{
    for (int look = 0; look < LOOKS; look++) {
        if (atomic_load(&tallies_busy) == 0) {
            return 1;
        }
        (void)sched_yield();
    }
    return 0;
}

void sweep_tallies(void)
{
    tallies_turn_over(NOBODY); /* settled, and nobody's segment */
    if (tallies_orphans() < LEAST_ORPHANS) {
        return;
    }
    struct scratch *scratch = mmap(NULL, sizeof *scratch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (scratch == MAP_FAILED) {
        return;
    }

    choose(scratch);
    for (size_t index = 0; index < LEAF_COUNT; index++) {
        cell *leaf = atomic_load(&shadow_leaves[index]);
        if (leaf != NULL) {
            relabel_leaf(leaf, scratch->kept);
        }
    }
    int are_done = others_are_done();
    tallies_settle();
    for (uint32_t number = 1; number < tallies_used(); number++) {
        if (tallies[number].is_taken) {
            merge(number, scratch->kept[number], scratch->places[number]);
        }
    }
    for (uint32_t number = 1; are_done && number < tallies_used(); number++) {
        tallies_recycle(number);
    }
    (void)munmap(scratch, sizeof *scratch);
}
