/* Counting of numpy's arrays by a memory handler (NEP 49).

   numpy is found at run time by the table of functions that it publishes, and this library works without it. A handler
   is the value of a context variable: it holds for one context and its copies. Each array keeps the handler that
   allocated it; arrays from before are not counted, and counted arrays are freed through this handler for as long as
   they live. Hence a handler, once made, stays for good. It wraps the previous handler, which does the work.

   Locking: both functions are called under the GIL; the handler's own functions run with or without it. */

#ifndef MEMTOOLS_NUMPY_ARRAYS_H
#define MEMTOOLS_NUMPY_ARRAYS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Take numpy's capsule `_ARRAY_API`; -1 with an exception where its version is unknown. GIL. */
int numpy_arrays_load_api(PyObject *capsule);

/* Set the handler in this context, or take it out; -1 with an exception. Does nothing before the table was loaded.
   GIL. */
int numpy_arrays_set_counting(int is_on);

#endif
