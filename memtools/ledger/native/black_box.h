/* The black box: a file that says at any moment what each counter holds, so that it can be read after a SIGKILL.

   The file is mapped and only ever written, never read back: whatever happens to it, no figure of the ledger changes.
   While there is no file, the stores of the hot path go to a variable that nothing reads, so that it has no branch.

   What a counter holds is `own` of its record; for the counter that is charged at present, plus `change`. Only the order
   of the stores keeps that right at every instruction, since a killed process finishes nothing:

   - A flush moves `change` into `own`: it stores `flushed_own`, then `flushing` (the number plus one), then `own`, then
     `change` = 0, then `flushing` = 0. Where a reader finds `flushing`, it takes `flushed_own` for that counter and
     ignores `change`.
   - A record that is used again is written with `state` = 0 first and its new `state` last.
   - While several records change together, `is_unsure` is set, and the reader says so.

   All of a process's stores are seen after its death in the order in which they were made, so a compiler must keep the
   order, no more. They are release stores for the readers of a process that lives, which may run on another processor.

   Not in the file: what threads without the GIL have changed since the last flush, and peaks since the last flush.

   The layout is that of `memtools/black_box/_layout.py`. Locking: every function is called under the GIL, except where
   a comment says so. The addresses stay mapped for good once there was a file, so that a store that comes late, of a
   thread without the GIL, meets memory. */

#ifndef MEMTOOLS_BLACK_BOX_H
#define MEMTOOLS_BLACK_BOX_H

#include <stddef.h>
#include <stdint.h>

#include "compiler.h"

#define BLACK_BOX_THREADS 256 /* number 0 is for the threads that have no place of their own */

struct black_box_hot {
    int64_t change;       /* of the counter that is charged, since the last flush */
    uint32_t counter;     /* its number */
    uint32_t flushing;    /* the number of the counter whose record is being written, plus one */
    int64_t flushed_own;  /* what that counter will hold, `change` being 0 */
    uint32_t used;        /* numbers below this have been given out */
    uint32_t is_unsure;   /* several records are being written */
    uint64_t lost_blocks; /* that were not counted */
    uint32_t has_stopped; /* counting has ended for good, and the figures no longer change */
    uint32_t is_counting; /* there is a ledger that writes here */
};

struct black_box_counter {
    int64_t own;
    int64_t peak;
    uint32_t parent;
    uint32_t account;
    uint32_t generation;
    uint32_t state; /* of the following */
};

#define BLACK_BOX_IN_USE 1u
#define BLACK_BOX_OPEN 2u
#define BLACK_BOX_REFERENCED 4u
#define BLACK_BOX_PROCESS_WIDE 8u

struct black_box_thread {
    uint32_t native_id;
    uint32_t counter;
    uint64_t unused;
};

/* Where the parts are in the file, in bytes. */
struct black_box_places {
    size_t hot, threads, counters, size;
};

extern HIDDEN struct black_box_hot *black_box_hot;
extern HIDDEN struct black_box_counter *black_box_counters; /* NULL while there is no file */
extern HIDDEN struct black_box_thread *black_box_threads;   /* the same */

#define BLACK_BOX_STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)

/* Map a file, which is as large as `places` says and has all its blocks; the room for counters is MAX_COUNTERS + 1. The
   records are unsure until `black_box_filled`. Keeps using the descriptor. 0, or an error number. GIL. */
int black_box_open(int fd, const struct black_box_places *places);

/* Tell that every record has been written. GIL. */
void black_box_filled(void);

/* Release the file, which stays as it is. GIL. */
void black_box_close(void);

/* Take care, now and then, that a file that is cut does no harm: another handler may have replaced this one. Returns
   whether the file was lost: cut, or its disk is gone. GIL. */
int black_box_check(void);

/* Write bytes at a place of the file; -1 where there is no file, or no such place. GIL. */
int black_box_write(size_t at, const void *bytes, size_t size);

/* Write a record of a counter anew. GIL, while there is a file. */
void black_box_write_counter(uint32_t number, const struct black_box_counter *record);

/* Note that counting has ended for good. The GIL of any interpreter. */
void black_box_stopped(void);

/* Note how many blocks were not counted. Any thread, no GIL. */
void black_box_lost_blocks(uint64_t count);

/* The counter that is charged has got a block of so many bytes, or fewer than none. GIL. */
static inline void black_box_change(int64_t change)
{
    /* Unsigned: what stands in the file may be anything, and must not make the sum undefined. */
    black_box_hot->change = (int64_t)((uint64_t)black_box_hot->change + (uint64_t)change);
}

/* What the charged counter had since the last flush is in `own` now. GIL. */
static inline void black_box_flush(uint32_t number, int64_t own)
{
    if (UNLIKELY(black_box_counters != NULL)) {
        struct black_box_hot *hot = black_box_hot;
        hot->flushed_own = own;
        BLACK_BOX_STORE(hot->flushing, number + 1);
        BLACK_BOX_STORE(black_box_counters[number].own, own);
        BLACK_BOX_STORE(hot->change, 0);
        BLACK_BOX_STORE(hot->flushing, 0);
    }
}

/* A counter holds so much, not counting the changes since the last flush. GIL. */
static inline void black_box_own(uint32_t number, int64_t own)
{
    if (UNLIKELY(black_box_counters != NULL)) {
        BLACK_BOX_STORE(black_box_counters[number].own, own);
    }
}

/* Another counter is charged from now on; the caller has flushed. GIL. */
static inline void black_box_switch(uint32_t number)
{
    BLACK_BOX_STORE(black_box_hot->counter, number);
}

/* Around changes of several records. GIL. */
static inline void black_box_set_unsure(uint32_t is_unsure)
{
    BLACK_BOX_STORE(black_box_hot->is_unsure, is_unsure);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* A thread charges a counter from now on; it has ended where `native_id` is 0. The thread itself, no GIL. */
static inline void black_box_thread(uint32_t place, uint32_t native_id, uint32_t counter)
{
    struct black_box_thread *threads = __atomic_load_n(&black_box_threads, __ATOMIC_RELAXED);
    if (UNLIKELY(threads != NULL)) {
        threads[place].native_id = native_id;
        BLACK_BOX_STORE(threads[place].counter, counter);
    }
}

#endif
