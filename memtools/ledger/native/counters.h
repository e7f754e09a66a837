/* Counters of bytes: live, peak and allocated bytes of each owner and of its descendants, exact at any time.

   Every owner has a counter, and counters form a tree. Its root, number 0, is the process, and also holds the blocks
   that were allocated while the thread had no current owner. A counter's figures include those of its descendants.

   Walking up the tree at each allocation would cost too much. So there is one segment for the whole interpreter: the
   counter that is charged at present, by how much its figures have risen since the segment began (`net`), and the
   highest that this was (`peak`). The segment is flushed, that is added to the counter and its ancestors, when another
   counter has to be charged, when a block is freed whose counter is neither the segment's nor a descendant of it, and
   when a caller reads figures. Between two flushes only one counter and its ancestors change, all by the same amount,
   and hence the peaks are exact, also with several threads.

   Nor does a flush walk up the tree, which would make deep nesting quadratic. The process and the counter itself are
   changed at once; the change for the ancestors between them is `pending` in the counter. At most one child of each
   counter has pending changes, those of its own descendants included, so that the counters with pending changes are
   one path down from each child of the process. They are folded into the parent, the deepest first, before the parent
   is read, or is charged itself, or in another branch: changes are hence applied in the order in which they came, and
   every peak is exact. While any counter has a limit, the ancestors of the segment's counter are kept up to date.

   A block is credited to the counter that it was charged to, whichever thread frees it.

   Accounts add up what the owners of one name hold, including closed owners whose counters still have live blocks. They
   form no tree here: Python, which knows the tree, adds up descendants, and an account that moves takes nothing along.

   Locking: every function is called under the GIL, except `counters_change_no_gil` and where a comment says so. */

#ifndef MEMTOOLS_COUNTERS_H
#define MEMTOOLS_COUNTERS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "black_box.h"
#include "block_map.h"
#include "compiler.h"

#define ROOT 0
#define NO_LIMIT INT64_MAX
#define NO_ACCOUNT 0 /* the account of counters that have none */
#define MAX_ACCOUNTS 65535

/* What the hooks know about the calling thread. */
struct thread_state {
    uint32_t counter;         /* charged with what this thread allocates */
    uint8_t inside_allocator; /* an inner allocator is at work, whose own blocks are not counted; or SELF_TEST */
    uint8_t enforcement_off;  /* the ledger's own records are being written, and no block is refused */
    uint8_t probed_domains;   /* one bit for each domain that was called during a SELF_TEST */
    uint8_t is_watched;       /* each allocation is noted in `record`, too */
    uint64_t context_version; /* the context for which `counter` was found; see threads.h */
    uint64_t state_id;
    uint64_t epoch;
    struct thread_record *record;
    uint32_t fallback;        /* charged in contexts without an owner; see `threads_charge_unowned` */
    uint32_t fallback_generation;
    uint32_t black_box_place; /* of this thread among the threads of the black box */
    uint32_t native_id;       /* as the system calls the thread */
};

#define SELF_TEST 2

extern _Thread_local struct thread_state thread_state INITIAL_EXEC;

/* A change of figures: afterwards, at its highest on the way, and the sum of the rises. */
struct change {
    int64_t net;
    int64_t peak;
    int64_t allocated;
};

struct counter {
    int64_t own;               /* bytes of the live blocks that carry its number */
    int64_t live;              /* `own` and the same of its descendants */
    int64_t peak;              /* the highest `live` so far */
    int64_t allocated;         /* all bytes ever charged to it and its descendants */
    int64_t live_at_open;      /* `live` of the process when the counter was opened */
    int64_t process_wide_peak; /* its peak when it was made process-wide, and later ones */
    int64_t limit;             /* the budget; NO_LIMIT for none */
    int64_t ask_at;            /* above this `live` the enforcer is asked */
    int64_t hard_limit;        /* a large block that would lead above this `live` is refused */
    int64_t refused_blocks;    /* how many blocks were refused */
    int64_t highest_refused;   /* the highest `live` that one of them would have led to */
    int64_t uncarried;         /* what threads that were begun in it, or below, have allocated for no owner */
    int64_t pool_bytes_at_open; /* of `threads_pool_bytes` */
    void *enforcer;            /* a Python callable, borrowed from the caller of `counters_set_limits` */
    struct change pending;     /* has been applied to it and not yet to its parent; unused below the process */
    uint32_t pending_child;    /* the only child with something pending, in it or below; ROOT for none */
    uint32_t generation;       /* tells counters apart that have had the same number */
    uint32_t parent;
    uint32_t child_count;
    uint32_t first_open_child; /* the open children form a list, linked by the next two fields */
    uint32_t next_open;
    uint32_t previous_open;
    uint32_t next_process_wide;
    uint32_t account; /* its own bytes count there, too: a block may only move to a counter of the same account */
    uint8_t is_in_use;
    uint8_t is_open;
    uint8_t is_referenced;   /* a Python object may still ask for its figures */
    uint8_t is_process_wide; /* its figures are those of the process */
    _Atomic(uint8_t) is_queued;
    _Atomic(uint32_t) next_queued;
    int64_t pending_rise;           /* the part of `no_gil_change` that is added after the falls of all counters */
    _Atomic(int64_t) no_gil_change; /* change of `own` without the GIL that has not been flushed yet */
};

/* Aligned, so that it occupies one cache line. */
struct segment {
    _Alignas(64) uint32_t counter;
    int64_t net;
    int64_t peak;
    int64_t limit_headroom; /* how far `net` may rise before a limit may be crossed */
    int64_t allocated;
    int64_t borrowed; /* the part of `net` that was freed of descendants */
};

extern HIDDEN struct counter *counters;
extern HIDDEN struct segment segment;

/* Counters that were changed without the GIL since the last flush. */
#define QUEUE_END UINT32_MAX
extern HIDDEN _Atomic(uint32_t) counters_queue;

/* How many threads without the GIL are between reading a block's counter and changing that counter. Any thread. */
extern HIDDEN _Atomic(uint32_t) counters_busy_threads;

/* What is done when the segment crosses a limit; `limits_start` sets it. GIL, inside a hook: no allocation, no Python
   call. */
extern HIDDEN void (*counters_on_limit_crossed)(void);

/* Map the table; -1 if there is no address space for it. GIL. */
int counters_start(void);

/* Open a counter below `parent`, which is open; ROOT when no number is left. GIL. */
uint32_t counters_open(uint32_t parent);

/* Close a counter. Its figures stay, and go on falling as its blocks are freed; its open children move to its parent
   and take their bytes along. GIL. */
void counters_close(uint32_t number);

/* Have an open counter report the figures of the whole process from now on. Its open children move to its parent,
   and the bytes charged so far stay counted there. GIL. */
void counters_make_process_wide(uint32_t number);

/* Tell that no object will ask for a counter's figures any more: the number becomes free when its last block is
   freed. GIL. */
void counters_release(uint32_t number);

/* Bring the figures of the process and of the accounts up to date, and the own bytes of all counters. GIL. */
void counters_flush(void);

/* The same, and the figures of one counter. GIL. */
void counters_flush_into(uint32_t number);

/* Apply what is pending to a counter and to its ancestors; the caller has flushed the segment, or adds it. GIL. */
void counters_settle_chain(uint32_t number);

/* Return how many steps from a counter to its parent flushes have taken so far. GIL. */
int64_t counters_count_folds(void);

/* Repair, in the child of a fork, what threads that exist no more were about to change. GIL. */
void counters_after_fork(void);

/* Return the highest bytes of the process above its size at the opening of a process-wide counter. GIL. */
int64_t counters_process_wide_peak(uint32_t number);

/* Set all live bytes to zero, for when the block map was cleared. GIL. */
void counters_reset(void);

/* Write every counter into the black box, which has just been opened. GIL. */
void counters_fill_black_box(void);

/* Return how many numbers are in use, the process not counted. GIL. */
uint32_t counters_in_use(void);

/* Set the limits of a counter, NO_LIMIT for none, and the callable to ask. GIL. */
void counters_set_limits(uint32_t number, int64_t limit, int64_t hard_limit, void *enforcer);

/* Return whether any open counter has a limit. Any thread, no GIL. */
int counters_have_limits(void);

/* Compute anew how far the segment may rise before a limit may be crossed. The answer stays safe, as frees only make
   room. GIL. */
void counters_update_limit_headroom(void);

/* Rare parts of the inline functions below. GIL. */
void counters_flush_before(int64_t size);
void counters_switch(uint32_t number);
void counters_credit_slow(uint32_t number, int64_t size);

/* Charge or credit without the GIL; the next flush adds the change to the figures. Any thread. */
void counters_change_no_gil(uint32_t number, int64_t change);

/* Charge a block to a counter. GIL. */
static inline void counters_charge(uint32_t number, size_t size)
{
    if (UNLIKELY(number != segment.counter)) {
        counters_switch(number);
    }
    segment.allocated += (int64_t)size;
    segment.net += (int64_t)size;
    black_box_change((int64_t)size);
    if (segment.net > segment.peak) {
        if (UNLIKELY(atomic_load_explicit(&counters_queue, memory_order_relaxed) != QUEUE_END)) {
            counters_flush_before((int64_t)size); /* else blocks freed without the GIL would count into the peak */
        }
        segment.peak = segment.net;
        if (UNLIKELY(segment.net > segment.limit_headroom)) {
            counters_on_limit_crossed();
        }
    }
}

/* Credit a block to the counter that it was charged to. GIL. */
static inline void counters_credit(uint32_t number, size_t size)
{
    if (LIKELY(number == segment.counter)) {
        segment.net -= (int64_t)size;
        black_box_change(-(int64_t)size);
    }
    else {
        counters_credit_slow(number, (int64_t)size);
    }
}

/* Open an account; NO_ACCOUNT when no number is left or the table cannot be allocated. GIL. */
uint32_t counters_open_account(void);

/* Tell that no object will ask for an account any more: the number becomes free with its last counter. GIL. */
void counters_release_account(uint32_t account);

/* Return the live bytes that an account's counters have been charged with, as of the last flush. GIL. */
int64_t counters_account_live(uint32_t account);

/* Count a counter's own bytes, present and future, in an account. GIL. */
void counters_join_account(uint32_t counter, uint32_t account);

/* Take a counter's own bytes out of its account. GIL. */
void counters_leave_account(uint32_t counter);

#endif
