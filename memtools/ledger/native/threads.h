/* Whom a thread charges: found from its context, and what threads allocate for no owner.

   The active owner is a context variable (objects.h). Every entering and leaving of a context changes
   `PyThreadState.context_ver`, whatever code does it: an event loop, `Context.run`, a worker thread, greenlet. So the hooks
   compare that number with the one they saw last, and look the owner up only where it has changed. Nothing runs at the
   switch itself, and no loop or library has to be known. The following do not change the number, and each calls
   `threads_forget` or sets the counter itself: setting the variable in a context that is current already, and the end
   of an owner, which other threads may be charging; for them there is `threads_epoch`.

   What no context carries is charged to no owner: a thread of the program's own, a plain executor. Such a thread has a
   record of what it has allocated for no owner, and of the owner in which it was begun. An owner reads both when it
   ends, and says that its figures are not exact.

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_THREADS_H
#define MEMTOOLS_THREADS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#include "compiler.h"
#include "counters.h"

#if PY_VERSION_HEX >= 0x030D0000
#define THREADS_STATE PyThreadState_GetUnchecked
#else
#define THREADS_STATE _PyThreadState_UncheckedGet
#endif

/* Changes when an owner ends, in whichever thread. */
extern HIDDEN uint64_t threads_epoch;

/* Store the number of the counter that the current context charges, ROOT for none; -1 where that cannot be told.
   `objects_register` sets it. Called inside a hook: no allocation, no Python call, the raised exception is kept. */
extern HIDDEN int (*threads_find_counter)(const PyThreadState *state, uint32_t *number);

/* Find the counter of this thread anew, or note what it allocates for no owner. Inside a hook. */
void threads_follow(const PyThreadState *state, size_t size);

/* Make sure that `thread_state.counter` is what the current context charges, before `size` bytes are allocated. */
static inline void threads_look(size_t size)
{
    /* NULL while the interpreter makes or ends a thread state. A state is told by its number: a new one may have the
       address of an earlier one. */
    const PyThreadState *state = THREADS_STATE();
    if (LIKELY(state != NULL) &&
        UNLIKELY(((state->context_ver ^ thread_state.context_version) | (state->id ^ thread_state.state_id) |
                  (threads_epoch ^ thread_state.epoch)) != 0)) {
        threads_follow(state, size);
    }
}

/* Return whether entering and leaving a context change what `threads_look` compares. Calls no Python code. */
int threads_can_follow(void);

/* Charge a counter from now on, until another context becomes current. */
void threads_charge(uint32_t number);

/* Charge a counter, ROOT for none, with what this thread allocates in contexts without an owner, while it is open. */
void threads_charge_unowned(uint32_t number);

/* Find the counter anew at the next allocation of this thread. */
void threads_forget(void);

/* Drop, in the child of a fork, the records of all other threads. */
void threads_after_fork(void);

/* Return what pool threads, and threads that may be some, have allocated for no owner so far. */
int64_t threads_pool_bytes(void);

/* Return whether what other threads have allocated for no owner is too much for the figures of an open counter to be
   exact: more than UNCARRIED_BYTES and UNCARRIED_SHARE of what it has allocated. Stores, if it is too much and else 0,
   what threads that were begun in the counter have allocated, and what pools have. */
int threads_may_have_worked_for(uint32_t number, int64_t *begun, int64_t *pooled);
#define UNCARRIED_BYTES ((int64_t)64 << 10)
#define UNCARRIED_SHARE 50 /* a fiftieth: 2 % */

/* Add the functions of this file to the module; -1 with an exception. */
int threads_register(PyObject *module);

#endif
