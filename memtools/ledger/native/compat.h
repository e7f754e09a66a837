/* The raised exception as a single object, as the C API has it since Python 3.12. Goes when 3.11 is no longer
   supported.

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_COMPAT_H
#define MEMTOOLS_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Clear the raised exception and return it, a new reference. */
static inline PyObject *compat_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace != NULL) {
        (void)PyException_SetTraceback(error, trace);
    }
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return error;
#endif
}

/* Raise an exception that was taken; steals the reference. */
static inline void compat_raise_exception(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}

#endif
