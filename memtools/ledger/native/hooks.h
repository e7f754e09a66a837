/* See every allocation of Python's three domains.

   The hooks are installed once and stay for good: they stack with those of tracemalloc, memray and the debug allocator,
   and whoever is taken out of the middle of such a stack leaves the others' pointers dangling. While nobody counts they
   pass through, except that blocks counted before are still credited when they are freed.

   Locking: the hooks of the domains "obj" and "mem" run under the GIL, those of "raw" with or without it. None of them
   takes a lock, allocates, or calls into Python. Everything else in here is called under the GIL. */

#ifndef MEMTOOLS_HOOKS_H
#define MEMTOOLS_HOOKS_H

#include <stddef.h>
#include <stdint.h>

/* musl and others may refuse to load a library whose thread-local variables are at a fixed place; glibc keeps room for
   a few bytes, and the price of the general way is a function call at each allocation. */
#ifdef __GLIBC__
#define AT_FIXED_PLACE __attribute__((tls_model("initial-exec")))
#else
#define AT_FIXED_PLACE
#endif

struct here {
    uint32_t tally;    /* who is charged for what this thread makes */
    uint8_t is_inside; /* an allocator below us is at work: what it makes for itself is nobody's; or PROBING */
    uint8_t is_spared; /* our own books are being written: nothing is refused */
    uint8_t seen;      /* the domains that were called while PROBING, a bit for each */
};

#define PROBING 2

extern _Thread_local struct here here AT_FIXED_PLACE;

/* Why nothing can be counted here, empty if it can. */
const char *hooks_reason(void);

/* Install the hooks where they are not, and check that they see what they should; -1 if not, with a reason. */
int hooks_install(void);

/* Count no more, for good, and forget every block: figures stay as they are. GIL of any interpreter: touches none of what
   that of the main one guards. */
void hooks_stop(const char *why);

/* Whether blocks were counted once and are no more. */
int hooks_have_stopped(void);

/* Begin or end to count new blocks. */
void hooks_count(int is_on);

/* Whether what this thread makes now is to be counted. Any thread, no GIL. */
int hooks_are_counting(void);

/* Take a block out of the shadow and credit it; its size, 0 if it was not counted. Without the GIL. */
size_t hooks_forget_unlocked(uint16_t *at);

/* How many blocks were not counted for want of memory. */
uint64_t hooks_lost(void);

/* Check the hooks from the outside: allocate as Python does, and look at what was counted.

   Locking: under the GIL, while the hooks count. */

/* Whether allocations still reach us: another tool may have put back what it found before we came. Does not show in
   anybody's figures. */
int check_hooks_are_in_place(void);

/* Make, resize and free blocks; what was not counted as it should be, empty if all was. */
const char *check_counting(void);

#endif
