/* Counting of numpy's arrays by a memory handler (NEP 49).

   numpy is found at run time by the table of functions that it publishes, and this library works without it. A handler
   is the value of a context variable: it holds for one context and its copies. Each array keeps the handler that
   allocated it; arrays from before are not counted, and counted arrays are freed through this handler for as long as
   they live. Hence a handler, once made, stays for good. It wraps the previous handler, which does the work.

   numpy's default handler is one record for the whole process. The functions in it are replaced by those of a wrapper,
   so that arrays are counted in every context and thread, without a handler of each context's own. An array that was
   made before is not in the block map, and is freed by numpy's own function.

   Locking: the functions are called under the GIL; the handler's own functions run with or without it. */

#ifndef MEMTOOLS_NUMPY_ARRAYS_H
#define MEMTOOLS_NUMPY_ARRAYS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Take numpy's capsule `_ARRAY_API`; -1 with an exception where its version is unknown. GIL. */
int numpy_arrays_load_api(PyObject *capsule);

/* Count what numpy's default handler allocates from now on, for good; a second call does nothing. -1 with an exception
   where the handler is unknown. GIL. */
int numpy_arrays_wrap_default(PyObject *capsule);

/* Set the handler in this context, or take it out; -1 with an exception. Does nothing before the table was loaded.
   GIL. */
int numpy_arrays_set_counting(int is_on);

#endif
