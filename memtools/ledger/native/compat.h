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

/* The raised exception, as it is: inside an allocator, where it must not be normalized. */
struct compat_raised {
    PyObject *error;
#if PY_VERSION_HEX < 0x030C0000
    PyObject *type, *trace;
#endif
};

/* Return whether an exception is raised, in a tenth of the time of `PyErr_Occurred`. */
static inline int compat_has_raised(const PyThreadState *state)
{
#if PY_VERSION_HEX >= 0x030C0000
    return state->current_exception != NULL;
#else
    return state->curexc_type != NULL;
#endif
}

/* Clear the raised exception and return it, if there is one. Allocates nothing, ends no object. */
static inline struct compat_raised compat_save_raised(const PyThreadState *state)
{
    struct compat_raised raised = {NULL};
    if (compat_has_raised(state)) {
#if PY_VERSION_HEX >= 0x030C0000
        raised.error = PyErr_GetRaisedException();
#else
        PyErr_Fetch(&raised.type, &raised.error, &raised.trace);
#endif
    }
    return raised;
}

/* Raise it again, and drop an exception that was raised meanwhile. */
static inline void compat_restore_raised(const PyThreadState *state, struct compat_raised raised)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (raised.error != NULL || compat_has_raised(state)) {
        PyErr_SetRaisedException(raised.error);
    }
#else
    if (raised.type != NULL || compat_has_raised(state)) {
        PyErr_Restore(raised.type, raised.error, raised.trace);
    }
#endif
}

#endif
