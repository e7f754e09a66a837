/* The ceilings and walls of tallies: how far it is to the nearest, and what happens there; see tallies.h. */

#include "budgets.h"
#include "tallies.h"

#define BRAKES 8

static _Atomic(uint32_t) limited_count; /* open tallies with a ceiling */
static int64_t refused;

int tallies_are_limited(void)
{
    return atomic_load_explicit(&limited_count, memory_order_relaxed) > 0;
}

int64_t tallies_room(void)
{
    int64_t room = NO_CEILING;
    if (LIKELY(!tallies_are_limited())) {
        return room;
    }
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        const struct tally *tally = &tallies[number];
        int64_t next = tally->ceiling;
        if (tally->is_asked) {
            next = tally->brake < tally->last ? tally->brake : tally->last;
        }
        if (next != NO_CEILING && next - tally->live < room) {
            room = next - tally->live;
        }
    }
    return room;
}

static void tell(uint32_t number, int64_t reached, int is_refused)
{
    struct tally *tally = &tallies[number];
    tally->is_asked = 1;
    tally->brakes = BRAKES;
    /* Where somebody else has to come and stop it, it goes on until then. */
    int waits = budgets_cross(number, reached, is_refused);
    int64_t grace = budgets_grace(tally->ceiling);
    tally->brake = waits ? reached + grace / 2 : NO_CEILING;
    tally->last = is_refused ? NO_CEILING : reached + grace;
}

static void set_brake(uint32_t number)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->brake = NO_CEILING;
    if (tally->brakes > 0) {
        tally->brakes--;
        tally->brake = tally->live + budgets_grace(tally->ceiling) / BRAKES;
    }
    running.room = tallies_room();
}

void tallies_put_off(uint32_t number)
{
    tallies[number].last = NO_CEILING;
    set_brake(number);
}

uint32_t tallies_cross(void)
{
    uint32_t too_much = NOBODY;
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        int64_t reached = tally->live + running.net;
        if (tally->is_asked) {
            if (reached > tally->brake) {
                budgets_wait(number);
                set_brake(number);
            }
            if (reached > tally->last && too_much == NOBODY && budgets_are_for_this_thread(number)) {
                too_much = number;
            }
        }
        else if (tally->ceiling != NO_CEILING && reached > tally->ceiling) {
            tell(number, reached, 0);
            break; /* the innermost is told first */
        }
    }
    running.room = tallies_room();
    return too_much;
}

static void note_refusal(struct tally *tally, int64_t reached)
{
    refused++;
    tally->refused++;
    tally->wanted = reached > tally->wanted ? reached : tally->wanted;
}

void tallies_take_back(uint32_t number, size_t size)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    note_refusal(tally, tally->live + (int64_t)size);
    budgets_replace(number, tally->live + (int64_t)size);
    tally->last = tally->live + budgets_grace(tally->ceiling) / BRAKES; /* or nothing at all would work any more */
    running.room = tallies_room();
}

int tallies_refuse(uint32_t number, size_t growth)
{
    if (LIKELY(!tallies_are_limited())) {
        return 0;
    }
    if (number != running.tally) {
        tallies_turn_over(number);
    }
    tallies_settle();
    for (; number != NOBODY; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        int64_t reached = tally->live + (int64_t)growth;
        if (reached <= tally->wall) {
            continue;
        }
        note_refusal(tally, reached);
        if (tally->is_asked) {
            budgets_replace(number, reached);
        }
        else {
            tell(number, reached, 1);
            running.room = tallies_room();
        }
        return 1;
    }
    return 0;
}

int64_t tallies_refused(void)
{
    return refused;
}

void tallies_answered(uint32_t number, int has_room)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->is_asked = 0;
    tally->brake = tally->last = NO_CEILING;
    if (tally->ceiling != NO_CEILING && (has_room || tally->live > tally->ceiling)) {
        int64_t reached = tally->live > tally->ceiling ? tally->live : tally->ceiling;
        tally->ceiling = reached + budgets_grace(tally->ceiling);
    }
    running.room = tallies_room();
}

void tallies_limit(uint32_t number, int64_t ceiling, int64_t wall, void *stopper)
{
    struct tally *tally = &tallies[number];
    (void)atomic_fetch_add(&limited_count, (uint32_t)(ceiling != NO_CEILING) - (uint32_t)(tally->ceiling != NO_CEILING));
    tally->ceiling = ceiling;
    tally->wall = wall;
    tally->brake = tally->last = NO_CEILING;
    tally->stopper = stopper;
    tallies_settle();
}
