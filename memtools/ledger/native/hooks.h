/* Hooks of Python's three allocator domains, their installation and their self-test.

   The hooks are installed once and stay for good: they stack with the hooks of tracemalloc, memray and the debug
   allocator, and a tool that is taken out of the middle of such a stack leaves dangling pointers in the other tools.
   While counting is off the hooks pass calls through, but still credit counted blocks that are freed.

   Locking: the hooks of the domains "obj" and "mem" run under the GIL, those of "raw" with or without it. No hook
   takes a lock, allocates for itself, or calls Python. Functions without another rule are called under the GIL. */

#ifndef MEMTOOLS_HOOKS_H
#define MEMTOOLS_HOOKS_H

#include <stddef.h>
#include <stdint.h>

/* Return why this process cannot be measured, empty if it can. GIL. */
const char *hooks_reason(void);

/* Install the hooks unless they are installed, and run the self-test; -1 if that fails, with a reason. GIL. */
int hooks_install(void);

/* Call a function that asks who allocates objects, as if there were no hooks. It must neither allocate nor free any. GIL. */
int hooks_call_unhooked(int (*function)(void *), void *argument);

/* Stop counting for good and clear the block map; figures stay as they are. GIL of any interpreter: the function
   touches nothing that the GIL of the main interpreter guards. */
void hooks_stop(const char *why);

/* Return whether counting was stopped for good after it had begun. GIL. */
int hooks_have_stopped(void);

/* Turn the counting of new blocks on or off. GIL. */
void hooks_set_counting(int is_on);

/* Return whether a block that this thread allocates now is to be counted. Any thread, no GIL. */
int hooks_are_counting(void);

/* Take a block out of the map and credit its counter; return its size, 0 if it was not counted. Called by the thread
   that is about to free the block. Any thread, no GIL. */
size_t hooks_untrack_no_gil(uint16_t *at);

/* Return how many blocks were not counted because the map could not grow. Any thread, no GIL. */
uint64_t hooks_lost_blocks(void);

/* Return whether allocations still reach the hooks: another tool may have restored the allocators that it found
   before the hooks were installed. Changes no figures. GIL, while the hooks count. */
int hooks_are_in_place(void);

#endif
