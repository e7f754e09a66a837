/* Stop an owner in flight when it crosses its ceiling.

   The allocation that crosses cannot raise: it runs in the middle of anything. It asks for a call at the next moment at
   which Python code may be interrupted:

   - in the main thread by `Py_AddPendingCall`, which is made for that: no lock is held, and the call may raise;
   - in any other thread by a helper, a thread of ours that waits for the GIL and leaves an exception for the one that
     crossed (`PyThreadState_SetAsyncExc`). That function takes a lock of the interpreter under which
     `sys._current_frames` allocates; called from inside a hook it could wait for itself.

   The helper is a thread of Python's, started where a budget is set and not where it is crossed: a thread that makes a
   state of its own for the GIL (`PyGILState_Ensure`) has it from the allocator without holding the GIL, and tracemalloc,
   if it is at work, waits for the GIL in the middle of that, where a `tracemalloc.stop()` pulls its tables from under it.
   It lives as long as anybody has a budget, and a moment longer.

   Whether to raise, and what, is for the stopper to say: a Python callable that is given the bytes used, the thread, and
   whether they were refused. It returns an exception (a class, where it is for another thread), None to let it be, or
   NotImplemented to be asked again a little later.

   Whoever wants the GIL has to wait for a switch interval (5 ms) before the thread that has it is asked to give it up: time
   for a runaway to make another 10 MB. So the thread that is to be stopped waits itself, once it has used half of its
   grace: inside of its hook, at most 20 ms, until that interval is over. It gives up the GIL soon after.

   Leaves to others: which ceiling is crossed (tallies.h), whether this is a good moment (`_in_flight.py`). */

#ifndef MEMTOOLS_LIMITS_H
#define MEMTOOLS_LIMITS_H

#include <stdint.h>

/* Say which thread makes pending calls: the main one, or after a fork the one that lives on. GIL. */
void budgets_set_main_thread(unsigned long thread);

/* In the child of a fork the helper, and all who waited for it, are no more. GIL. */
void budgets_after_fork(void);

/* Have the helper wait for requests, if this thread may need it. Where it cannot be started, owners are judged at their
   end. GIL, outside of hooks: it calls Python. */
void budgets_get_ready(void);

/* How many bytes an owner that was told may use on top, so that it can clean up. */
int64_t budgets_grace(int64_t ceiling);

/* Say how long a thread that wants the GIL waits before it asks for it. GIL. */
void budgets_set_interval(double seconds);

/* Ask that the owner of a tally be stopped; whether another thread has to do it. GIL, inside of a hook; allocates
   nothing of Python's and never waits. */
int budgets_cross(uint32_t number, int64_t used, int is_refused);

/* Whether it is this thread that the request to stop a tally is for. */
int budgets_are_for_this_thread(uint32_t number);

/* A block was refused instead, while the request was outstanding. */
void budgets_replace(uint32_t number, int64_t used);

/* Have this thread wait until the one that is to stop the owner has asked for the GIL. GIL, inside of a hook. */
void budgets_wait(uint32_t number);

#endif
