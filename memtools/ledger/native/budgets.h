/* Stop an owner in flight when it crosses its ceiling.

   The allocation that crosses cannot raise: it runs in the middle of anything. It asks for a call at the next moment at
   which Python code may be interrupted:

   - in the main thread by `Py_AddPendingCall`, which is made for that: no lock is held, and the call may raise;
   - in any other thread by a thread that is started for this one purpose, waits for the GIL and leaves an exception for
     the one that crossed (`PyThreadState_SetAsyncExc`). That function takes a lock of the interpreter under which
     `sys._current_frames` allocates; called from inside a hook it could wait for itself.

   Whether to raise, and what, is for the stopper to say: a Python callable that is given the bytes used and the thread.
   It returns an exception (a class, where it is for another thread), None to let it be, or NotImplemented to be asked
   again a little later.

   Leaves to others: which ceiling is crossed (tallies.h), whether this is a good moment (`_in_flight.py`). */

#ifndef MEMTOOLS_BUDGETS_H
#define MEMTOOLS_BUDGETS_H

#include <stdint.h>

/* Say which thread makes pending calls: the main one, or after a fork the one that lives on. GIL. */
void budgets_set_main_thread(unsigned long thread);

/* How many bytes an owner that was told may use on top, so that it can clean up. */
int64_t budgets_grace(int64_t ceiling);

/* Ask that the owner of a tally be stopped. GIL, inside of a hook; allocates nothing of Python's and never waits. */
void budgets_cross(uint32_t number, int64_t used);

#endif
