/* Follow a coroutine step by step; the hot half of `_driver.Driven`, which `_steps.PureSteps` is in Python.

   A step comes from the loop by `am_send` and goes to the coroutine the same way, so that nothing of Python's is called
   on its way: the owner that is active in the task's context gets the turn, the coroutine runs, the turn goes back. What
   is not plain is left to methods of the Python class above: the first step of one whose owner is not a plain one (book.h)
   by `_begin`, every end but that of a plain one's result by `_end`, a budget that may be exceeded by `_check_budgets`.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_COROUTINE_H
#define MEMTOOLS_COROUTINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "objects.h"

/* Add the type `Steps`, and all that it is built upon, to the module; -1 with an exception. */
int driver_register(PyObject *module, PyTypeObject *tally_type);

/* How many steps a `Steps` has taken; -1 with an exception where it is none. */
Py_ssize_t driver_steps(PyObject *driver);

/* What is remembered of a coroutine that is followed, and its steps; see driver.h for how they go.

   Locking: all under the GIL. */

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

/* The first step of what is followed (steps.h): whose it is, and who follows it.

   What is plain (book.h) is done here, all else by methods of the Python class above: `_begin` opens the owner of one that
   follows its coroutine itself, `_join` that of one whose task is followed already.

   Locking: all under the GIL. */

/* Have one that joins open its owner under the driver that follows the task, if there is one: it is joined then. -1 with an
   exception. */
int first_step_join(Steps *self);

/* Open the owner of one that follows its coroutine itself. -1 with an exception. */
int first_step_begin(Steps *self, struct slot *slot);

/* Make what these need, once; -1 with an exception. */
int first_step_start(void);

/* Which task runs in this thread, and what it is called; asked of asyncio, once that is loaded.

   Locking: all under the GIL. */

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
