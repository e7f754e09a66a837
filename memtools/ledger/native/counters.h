/* Add up what owners hold: live and highest live bytes of each and of those below it, to the byte and at any time.

   Every owner has a tally, and tallies form a tree whose root, number 0, is the process: it also holds what was made
   while nobody had the turn. A tally's figures include those of the tallies below it.

   Walking up the tree at each allocation would be too dear. So there is one running segment for the whole interpreter:
   whose turn it is, how many bytes its figures have risen by (`net`), and the highest that this was (`high`). It is
   settled, that is added to the tally and all above it, when another tally has to be charged, when a block is freed
   that belongs neither to the one with the turn nor below it, and when somebody asks. In between only one tally, and
   those above it, change, and all by the same amount: hence the peaks are exact, with threads, too.

   A block is credited to whoever made it, whoever frees it.

   Locking: all under the GIL, except `tallies_change_unlocked`.
   Leaves to others: which block is whose (shadow.h), which allocations are seen (hooks.h). */

#ifndef MEMTOOLS_COUNTERS_H
#define MEMTOOLS_COUNTERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "block_map.h"

#define NOBODY 0

struct tally {
    int64_t own;       /* bytes of live blocks that carry its number */
    int64_t live;      /* the same, with those below it */
    int64_t peak;      /* the highest `live` so far */
    int64_t allocated; /* all bytes ever charged to it and those below */
    int64_t start;     /* `live` of the process when it was opened */
    int64_t widened;   /* its own peak when it became wide */
    int64_t ceiling;   /* `live` above which it is to be stopped */
    int64_t wall;      /* `live` above which no large block is made for it any more */
    int64_t brake;     /* `live` at which its thread waits for whoever is to stop it */
    int64_t last;      /* `live` above which no block at all is made while the answer is outstanding */
    int64_t refused;   /* how many blocks were not made for that */
    int64_t wanted;    /* the highest `live` that one of them would have led to */
    void *stopper;     /* what `budgets_cross` is to call; kept alive by whoever set it */
    uint32_t serial;   /* tells those apart that have had the same number */
    uint32_t parent;
    uint32_t below; /* how many tallies have it for a parent */
    uint32_t first_open_below; /* those of them that are open, each knows its neighbours */
    uint32_t next_open;
    uint32_t previous_open;
    uint32_t next_wide;
    uint32_t account; /* where its own bytes count, too: a block may only pass to a tally of the same account */
    uint8_t is_taken;
    uint8_t is_open;
    uint8_t is_held; /* somebody may still ask for its figures */
    uint8_t is_wide;  /* its peak is the process's */
    uint8_t is_asked; /* it has crossed its ceiling or met its wall, and the answer is outstanding */
    uint8_t brakes;   /* how often its thread may be made to wait for that answer */
    _Atomic(uint8_t) is_queued;
    _Atomic(uint32_t) next_queued;
    int64_t risen;             /* the part of `unlocked` that waits for the falls of others */
    _Atomic(int64_t) unlocked; /* change of `own` without the GIL that has not been settled yet */
};

struct running {
    _Alignas(64) uint32_t tally; /* all in one cache line */
    int64_t net;
    int64_t high;
    int64_t room; /* how far `net` may rise before a ceiling may be crossed */
    int64_t allocated;
    int64_t lent; /* the part of `net` that was freed of tallies below */
};

extern HIDDEN struct tally *tallies;
extern HIDDEN struct running running;

/* Tallies that were changed without the GIL, since the last settling. */
#define QUEUE_END UINT32_MAX
extern HIDDEN _Atomic(uint32_t) tallies_queue;

/* Map the table; -1 if there is no room for it. */
int tallies_start(void);

/* Open a tally below `parent`, which is open; 0 when there are no numbers left. */
uint32_t tallies_open(uint32_t parent);

/* Close a tally. Its figures stay, and go on falling as its blocks are freed; open tallies below it move to its parent
   and take their bytes along. */
void tallies_close(uint32_t number);

/* Have an open tally follow the whole process from now on: tallies below it move to its parent, and what it has made
   so far stays counted there. */
void tallies_widen(uint32_t number);

/* Nobody will ask for its figures any more: its number is free for others once its last block is. */
void tallies_release(uint32_t number);

/* Bring all figures up to date. */
void tallies_settle(void);

/* Have no number wait for a thread that is no more, in the child of a fork. */
void tallies_after_fork(void);

/* The highest that a wide tally has seen the process stand above its opening. */
int64_t tallies_wide_peak(uint32_t number);

/* Set all figures to zero, for when it is no longer known which blocks live. */
void tallies_forget(void);

/* How many numbers are taken; of these, how many that nobody holds; above all that have ever been given out. */
uint32_t tallies_in_use(void);
uint32_t tallies_orphans(void);
uint32_t tallies_used(void);

/* Free a number that nobody needs any more. */
void tallies_recycle(uint32_t number);

/* How many threads without the GIL are between reading whose a block is and saying so. */
extern _Atomic(uint32_t) tallies_busy;

/* Have a tally stopped above so many live bytes, and large blocks refused above the wall; NO_CEILING for never. */
#define NO_CEILING INT64_MAX
void tallies_limit(uint32_t number, int64_t ceiling, int64_t wall, void *stopper);

/* Whether any open tally has a ceiling. Any thread, no GIL. */
int tallies_are_limited(void);

/* How far the running segment may rise before a ceiling may be crossed; never too much, as frees only make room. */
int64_t tallies_room(void);

/* The owner has been told, or was let be: with room to clean up, it is asked about again when its grace is used up. */
void tallies_answered(uint32_t number, int has_room);

/* An answer was put off: its thread is in no single call of C. How soon it is to wait for the next attempt. */
void tallies_put_off(uint32_t number);

/* A block that a tally has just been charged with is not made after all. */
void tallies_take_back(uint32_t number, size_t size);

/* What may be refused at most: smaller blocks are also the interpreter's own, which does not always bear a refusal. */
#define LEAST_REFUSED ((size_t)1 << 16)

/* Whether a block would take a tally, or one above it, over its wall; the innermost is told. GIL, inside of a hook. */
int tallies_refuse(uint32_t number, size_t growth);

/* How many blocks were refused, of anybody's. */
int64_t tallies_refused(void);

/* The rare parts of the functions below. */
uint32_t tallies_cross(void);
void tallies_settle_before(int64_t size);
void tallies_turn_over(uint32_t number);
void tallies_credit_other(uint32_t number, int64_t size);

/* Charge or credit without the GIL: it shows in the figures when they are settled the next time. Any thread. */
void tallies_change_unlocked(uint32_t number, int64_t change);

/* Charge a block to a tally; the number of the one that it is too much for, and should be taken back for, or NOBODY. */
static inline uint32_t tallies_charge(uint32_t number, size_t size)
{
    if (UNLIKELY(number != running.tally)) {
        tallies_turn_over(number);
    }
    running.allocated += (int64_t)size;
    running.net += (int64_t)size;
    if (running.net > running.high) {
        if (UNLIKELY(atomic_load_explicit(&tallies_queue, memory_order_relaxed) != QUEUE_END)) {
            tallies_settle_before((int64_t)size); /* or what was freed without the GIL would count into the peak */
        }
        running.high = running.net;
        if (UNLIKELY(running.net > running.room)) {
            return tallies_cross();
        }
    }
    return NOBODY;
}

/* Credit a block to the tally that it was charged to. */
static inline void tallies_credit(uint32_t number, size_t size)
{
    if (LIKELY(number == running.tally)) {
        running.net -= (int64_t)size;
    }
    else {
        tallies_credit_other(number, (int64_t)size);
    }
}

/* Find numbers for new tallies when all are taken: tallies that nobody holds any more, and that live on only because of
   some blocks, are merged.

   A block may pass to a tally of the same account that counts for the same ones above: no figure changes that anybody
   can still ask for. So of all that have ended, one is left for each account below each tally that is held. The blocks
   are found by reading the whole shadow, which takes some milliseconds for each GiB of heap; it is done only when there
   are many to be merged.

   Locking: under the GIL, which is kept all the while; other threads may make and free raw blocks without it. */

/* Merge, where it is worth it. */
void sweep_tallies(void);

/* Add up what the owners of one account hold, those that have ended and that nobody asks about any more included.

   A tally lives on after its owner for as long as one of its blocks does, but nobody holds it then. Its account still
   knows: each change of a tally's own bytes is a change of its account's. Accounts are no tree here: what is in those
   below is added up where the tree is known (`_accounts.py`), so that one that changes its place takes nothing along.

   Locking: all under the GIL. */

#define NO_ACCOUNT 0 /* where those count that have none: nobody asks for it */
#define MAX_ACCOUNTS 65535

/* Begin one; NO_ACCOUNT when there are no numbers left, or no room for the table. */
uint32_t accounts_open(void);

/* Nobody asks for it any more: its number is free for others once its last tally is. */
void accounts_release(uint32_t account);

/* The bytes of the live blocks that its tallies have made, once all is settled. */
int64_t accounts_live(uint32_t account);

/* Add a change to what a tally's account holds. */
void accounts_add(uint32_t account, int64_t change);

/* Count a tally among an account's, or no more; its bytes come and go with it. */
void accounts_join(uint32_t tally, uint32_t account);
void accounts_part(uint32_t tally);

/* Set all to zero, as `tallies_forget` does. */
void accounts_forget(void);

/* The type `Account` of Python, to be added to the module; a new reference, NULL with an exception. */
PyTypeObject *accounts_make_type(PyObject *module);

/* The number of an `Account`. */
uint32_t accounts_number(PyObject *account);

#endif
