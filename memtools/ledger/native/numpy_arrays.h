/* Count what numpy's arrays hold, by a handler of numpy's own kind (NEP 49).

   numpy is met at run time, by the table of functions that it publishes, and needed for nothing before. Its handler is a
   context variable: it is set for one context, and those that are copied from it. Each array keeps the handler that made
   it, so arrays from before are none of ours, and those that we have made are freed by us for as long as they live; hence
   handlers, once made, stay for good. They wrap the handler that was there, which does the work.

   Locking: all under the GIL; the handler's own functions with or without it. */

#ifndef MEMTOOLS_NUMPY_ARRAYS_H
#define MEMTOOLS_NUMPY_ARRAYS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Take the capsule `_ARRAY_API`; -1 with an exception where it is not one that is known. */
int arrays_meet(PyObject *capsule);

/* Set the handler in this context, or take it out; -1 with an exception. Nothing is done before numpy was met. */
int arrays_follow(int is_on);

#endif
