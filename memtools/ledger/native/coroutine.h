/* Tracked coroutines: the part of `memtools/ledger/_coroutines.py` that runs at each step.
   `PythonTrackedCoroutine` does the same where this was not built.

   A step arrives from the event loop by `am_send` and continues to the coroutine the same way, without a Python call in
   between: the owner that is active in the task's context becomes the current one, the coroutine runs, and the previous
   owner becomes the current one again. Three cases are left to methods of the Python subclass: a first step whose owner
   the fast path declines (`_start`, or `_start_nested` under an existing tracker), an end that is not a plain result
   (`_end`), and a budget that may be exceeded (`_check_budgets`). Keep in step with the Python file.

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_COROUTINE_H
#define MEMTOOLS_COROUTINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the type `TrackedCoroutine` and the functions of this file to the module; -1 with an exception. GIL. */
int coroutine_register(PyObject *module);

/* Return how many steps a tracker has taken; -1 with an exception where the object is no tracker. GIL. */
Py_ssize_t coroutine_steps(PyObject *tracker);

/* Close an owner by the fast path, with the steps that its tracker has counted; see `owners_close_fast`. GIL. */
int coroutine_close_owner_fast(PyObject *owner, int failed);

#endif
