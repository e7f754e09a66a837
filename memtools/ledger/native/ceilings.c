/* The ceilings of tallies: how far it is to the nearest, and what happens when it is crossed; see tallies.h. */

#include "budgets.h"
#include "tallies.h"

static uint32_t limited_count; /* open tallies with a ceiling */

int64_t tallies_room(void)
{
    int64_t room = NO_CEILING;
    if (LIKELY(limited_count == 0)) {
        return room;
    }
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        const struct tally *tally = &tallies[number];
        if (tally->ceiling != NO_CEILING && !tally->is_asked && tally->ceiling - tally->live < room) {
            room = tally->ceiling - tally->live;
        }
    }
    return room;
}

void tallies_cross(void)
{
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        int64_t reached = tally->live + running.net;
        if (tally->ceiling != NO_CEILING && !tally->is_asked && reached > tally->ceiling) {
            tally->is_asked = 1;
            budgets_cross(number, reached);
            break; /* the innermost is told first */
        }
    }
    running.room = tallies_room();
}

void tallies_answered(uint32_t number)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->is_asked = 0;
    if (tally->ceiling != NO_CEILING) {
        tally->ceiling = tally->live + budgets_grace(tally->ceiling);
    }
    running.room = tallies_room();
}

void tallies_limit(uint32_t number, int64_t ceiling, void *stopper)
{
    struct tally *tally = &tallies[number];
    limited_count += (ceiling != NO_CEILING) - (tally->ceiling != NO_CEILING);
    tally->ceiling = ceiling;
    tally->stopper = stopper;
    tallies_settle();
}
