/* Merge the tallies that nobody holds any more; see sweep.h. */

#include "sweep.h"

#include <sched.h>
#include <sys/mman.h>

#include "accounts.h"
#include "shadow.h"
#include "tallies.h"

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
