/* Which task runs in this thread, and what it is called; asked of asyncio, once that is loaded.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_TASKS_H
#define MEMTOOLS_TASKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Whether Python has said whom to ask. */
int tasks_are_known(void);

/* The task that runs in this thread, or None; a new reference, NULL with an exception. */
PyObject *tasks_current(void);

/* The name of a task (or None), or where that has a number only, the qualified name of its coroutine. A new reference; NULL
   where it is for Python to say, perhaps with an exception. */
PyObject *tasks_name(PyObject *task, PyObject *coroutine);

/* Add what is in here to the module; -1 with an exception. */
int tasks_register(PyObject *module);

#endif
