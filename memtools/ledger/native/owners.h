/* The fast path of opening and closing owners: the native meter's ordinary case of `memtools/ledger/_ledger.py`.

   The fast path takes an owner without a budget, tracked, whose account is known, and which closes with exact figures.
   It declines every other owner before it has changed anything, and the Python code, which can do all of it, goes on.
   Both paths keep the same records: fields of owners and accounts (objects.h), the current owner, the counters. One may
   close what the other opened. Keep both in step: what is added to opening or closing in Python is added here, or makes
   the fast path decline.

   Locking: every function is called under the GIL, and no Python code runs between the first and the last change of
   the records. */

#ifndef MEMTOOLS_OWNERS_H
#define MEMTOOLS_OWNERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Open an owner of a meter below the active one; `tracker` is None or the tracker whose steps count for the owner,
   and `steps` how many it has taken. Returns NULL if the fast path declines, perhaps with an exception. GIL. */
PyObject *owners_open_fast(PyObject *meter, PyObject *kind, PyObject *name, int include_children, PyObject *tracker,
                           Py_ssize_t steps);

/* Return whether an object is an owner that the fast path may close. GIL. */
int owners_may_close_fast(PyObject *owner);

/* Close an owner that has taken `steps` since it was opened, and notify listeners. Returns 0, with nothing changed, if
   the fast path declines; -1 with an exception. GIL. */
int owners_close_fast(PyObject *owner, int failed, long long steps);

/* Add the functions of this file to the module; -1 with an exception. GIL. */
int owners_register(PyObject *module);

#endif
