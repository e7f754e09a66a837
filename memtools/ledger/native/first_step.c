/* The first step of what is followed; see first_step.h. */

#include "first_step.h"

#include "book.h"
#include "kept.h"
#include "tasks.h"
#include "turns.h"

static PyObject *begin_name, *join_name;

/* What its owner is called: as it was given, or as its task. A new reference; NULL where it is for Python to say, perhaps
   with an exception. */
static PyObject *own_name(Steps *self)
{
    if (!PyUnicode_CheckExact(self->name)) {
        return NULL;
    }
    return PyUnicode_GetLength(self->name) > 0 ? Py_NewRef(self->name) : tasks_name(self->task, (PyObject *)self);
}

static int may_be_plain(const Steps *self)
{
    return tasks_are_known() && self->budget == Py_None && self->is_layered != Py_True && self->name != Py_None;
}

/* Open its own owner, if it is a plain one; 0 if not. -1 with an exception. */
static int begin_plainly(Steps *self)
{
    if (!may_be_plain(self)) {
        return 0;
    }
    PyObject *task = tasks_current();
    if (task == NULL) {
        return -1;
    }
    Py_XSETREF(self->task, task);
    PyObject *name = own_name(self);
    if (name == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    PyObject *owner = book_open_plain(self->meter, self->kind, name, self->include_children == Py_True, (PyObject *)self);
    Py_DECREF(name);
    if (owner == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_XSETREF(self->owner, owner);
    return 1;
}

/* Open its owner under the driver that follows this task, if a glance tells what is to be done: 1, or 0 if there is no
   driver, in `*is_joined`. 0 if Python has to see. -1 with an exception. */
static int join_plainly(Steps *self, struct slot *slot, int *is_joined)
{
    *is_joined = 0;
    if (slot->driver == Py_None && self->meter == kept.native_meter) {
        return 1; /* a meter that follows needs a driver */
    }
    Steps *driver = steps_from(slot->driver);
    if (driver == NULL || !may_be_plain(self) || !PyUnicode_CheckExact(self->name)) {
        return 0;
    }
    PyObject *task = tasks_current();
    PyObject *owner = NULL;
    if (task != NULL && task == driver->task) {
        owner = book_open_plain(self->meter, self->kind, self->name, self->include_children == Py_True,
                                (PyObject *)driver);
    }
    Py_XDECREF(task);
    if (owner == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_XSETREF(self->owner, owner);
    *is_joined = 1;
    return 1;
}

int first_step_join(Steps *self)
{
    struct slot *slot = turns_slot();
    if (slot == NULL) {
        return -1;
    }
    int is_joined, has_seen = join_plainly(self, slot, &is_joined);
    Py_DECREF(slot);
    if (has_seen == 0) {
        PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)self, join_name);
        is_joined = answer == Py_True;
        has_seen = answer == NULL ? -1 : 1;
        Py_XDECREF(answer);
    }
    if (has_seen > 0 && is_joined) {
        self->is_joined = 1;
        self->steps = 1;
    }
    return has_seen < 0 ? -1 : 0;
}

int first_step_begin(Steps *self, struct slot *slot)
{
    self->steps = 1;
    int has_begun = begin_plainly(self);
    if (has_begun != 0) {
        return has_begun < 0 ? -1 : 0;
    }
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)self, begin_name, (PyObject *)slot);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int first_step_start(void)
{
    begin_name = PyUnicode_InternFromString("_begin");
    join_name = PyUnicode_InternFromString("_join");
    return begin_name && join_name ? 0 : -1;
}
