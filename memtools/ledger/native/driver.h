/* Follow a coroutine step by step; the hot half of `_driver.Driven`, which `_steps.PureSteps` is in Python.

   A step comes from the loop by `am_send` and goes to the coroutine the same way, so that nothing of Python's is called
   on its way: the owner that is active in the task's context gets the turn, the coroutine runs, the turn goes back. What
   is rare is left to methods of the Python class above: the first step (`_begin`), the end (`_end`), a budget that may be
   exceeded (`_check_budgets`).

   Locking: all under the GIL. */

#ifndef MEMTOOLS_DRIVER_H
#define MEMTOOLS_DRIVER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the type `Steps`, and all that it is built upon, to the module; -1 with an exception. */
int driver_register(PyObject *module, PyTypeObject *tally_type);

#endif
