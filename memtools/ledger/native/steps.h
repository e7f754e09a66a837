/* What is remembered of a coroutine that is followed, and its steps; see driver.h for how they go.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_STEPS_H
#define MEMTOOLS_STEPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyObject_HEAD
    PyObject *weak_references;
    PyObject *inner;
    PyObject *meter;
    PyObject *name;
    PyObject *kind;
    PyObject *budget;
    PyObject *include_children;
    PyObject *is_layered;
    PyObject *on_end;
    PyObject *owner;
    PyObject *task;
    PyObject *overrun; /* to be thrown in at the next step */
    PyObject *given_name;
    PyObject *given_qualname;
    Py_ssize_t steps;
    char has_ended;
    char joins;     /* opens its owner under the driver that follows the task already, where there is one */
    char is_joined; /* and did so: its steps are that driver's */
} Steps;

#define EACH_OBJECT(DO)                                                                                             \
    DO(inner) DO(meter) DO(name) DO(kind) DO(budget) DO(include_children) DO(is_layered) DO(on_end) DO(owner)       \
    DO(task) DO(overrun) DO(given_name) DO(given_qualname)

/* Make what the functions below need, once; -1 with an exception. */
int steps_start(void);

/* Whether there is a coroutine, else an exception: not before `__init__`, nor after a collection has cleared it. */
int steps_has_inner(const Steps *self);

/* What a field of a slot holds, if it is a driver with its steps in C; else NULL. */
Steps *steps_from(PyObject *driver);

/* The slot `am_send`, and the methods. */
PySendResult steps_am_send(PyObject *self, PyObject *value, PyObject **result);
PyObject *steps_send(PyObject *self, PyObject *value);
PyObject *steps_throw(Steps *self, PyObject *const *args, Py_ssize_t count);

#endif
