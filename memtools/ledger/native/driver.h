/* Follow a coroutine step by step; the hot half of `_driver.Driven`, which `_steps.PureSteps` is in Python.

   A step comes from the loop by `am_send` and goes to the coroutine the same way, so that nothing of Python's is called
   on its way: the owner that is active in the task's context gets the turn, the coroutine runs, the turn goes back. What
   is not plain is left to methods of the Python class above: the first step of one whose owner is not a plain one (book.h)
   by `_begin`, every end but that of a plain one's result by `_end`, a budget that may be exceeded by `_check_budgets`.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_DRIVER_H
#define MEMTOOLS_DRIVER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the type `Steps`, and all that it is built upon, to the module; -1 with an exception. */
int driver_register(PyObject *module, PyTypeObject *tally_type);

/* How many steps a `Steps` has taken; -1 with an exception where it is none. */
Py_ssize_t driver_steps(PyObject *driver);

#endif
