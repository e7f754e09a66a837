/* Limits of counters: the enforcement of budgets while the code runs.

   An allocation that crosses a soft limit cannot raise, because it may happen in the middle of any C code. It requests
   a call at the next point where Python code may be interrupted:

   - in the main thread by `Py_AddPendingCall`, which exists for that: no lock is held, and the call may raise;
   - in other threads by the enforcer thread, which waits for the GIL and sets an exception for the thread that crossed
     the limit (`PyThreadState_SetAsyncExc`). That function takes a lock of the interpreter under which
     `sys._current_frames` allocates; a call from inside a hook could wait for itself.

   The enforcer thread is a Python thread, and it is started where a budget is set, not where it is crossed. A thread
   that creates its own thread state (`PyGILState_Ensure`) allocates that state without holding the GIL; if tracemalloc
   is active, it waits for the GIL in the middle of that allocation, and a `tracemalloc.stop()` in another thread frees
   the tables that it uses. The thread lives as long as any owner has a budget, and a moment longer.

   The enforcer, a Python callable, decides whether to raise. It receives the bytes used, the thread, and whether a
   block was refused. It returns an exception (for another thread, a class), None to ignore the excess, or
   NotImplemented to be asked again a little later.

   A thread that wants the GIL waits for a switch interval (5 ms) before it asks the holder to release it, long enough
   for a runaway to allocate another 10 MB. So the thread that exceeds its limit waits itself, inside its hook, once
   half of its grace is used (`limits_wait`).

   What that costs: the waiting thread holds the GIL, so every thread of the process stands still. One wait takes at
   most 20 ms (MAX_POLLS times POLL_NS), and one crossing has at most nine of them (the first and THROTTLES more): up to
   180 ms for each time that a thread other than the main one exceeds a budget.

   This file has the name of a header of the C library, so its folder must not be on the include path (`-I`).

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_LIMITS_H
#define MEMTOOLS_LIMITS_H

#include <stddef.h>
#include <stdint.h>

/* No smaller block is refused by a hard limit: small blocks are also the interpreter's own, and not all of its code
   survives a refusal. */
#define MIN_REFUSED_SIZE ((size_t)1 << 16)

/* Have `counters` call this file when a limit is crossed. GIL, once, before any limit is set. */
void limits_start(void);

/* Say which thread runs pending calls: the main one, or after a fork the surviving one. GIL. */
void limits_set_main_thread(unsigned long thread);

/* Drop, in the child of a fork, the enforcer thread and all requests: their threads exist no more. GIL. */
void limits_after_fork(void);

/* Start the enforcer thread if the calling thread may need it. Where it cannot be started, budgets of this thread
   are checked when their owners close. GIL, outside of hooks: calls Python. */
void limits_start_enforcer_thread(void);

/* Return the bytes that an owner may use above its limit to clean up. GIL. */
int64_t limits_grace(int64_t limit);

/* Say how long a thread that wants the GIL waits before it asks for it. GIL. */
void limits_set_switch_interval(double seconds);

/* Return whether growth by a large block would exceed a hard limit of a counter or of an ancestor. Counts the
   refusal and requests enforcement for the innermost one. GIL, inside a hook: no allocation, no Python call. */
int limits_refuse(uint32_t number, size_t growth);

/* Account for a block that was charged and that the hook frees because it exceeds the emergency limit of a counter.
   GIL, inside a hook: no allocation, no Python call. */
void limits_undo_charge(uint32_t number, size_t size);

/* Return how many blocks of all owners were refused. GIL. */
int64_t limits_refused_blocks(void);

#endif
