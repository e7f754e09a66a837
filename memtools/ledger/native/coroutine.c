/* The tracked coroutine: its first step, its steps, its end, and its Python type. */

#include "coroutine.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#include "compat.h"
#include "objects.h"
#include "owners.h"

typedef struct {
    PyObject_HEAD
    PyObject *weak_references;
    PyObject *inner;
    PyObject *meter;
    PyObject *name;
    PyObject *kind;
    PyObject *budget;
    PyObject *include_children;
    PyObject *is_stacked;
    PyObject *on_end;
    PyObject *owner;
    PyObject *task;
    PyObject *pending_error; /* to be thrown into the coroutine at the next step */
    PyObject *given_name;
    PyObject *given_qualname;
    Py_ssize_t steps;
    char has_ended;
    char nests_if_tracked; /* opens its owner under the tracker of the task, where there is one */
    char is_nested;        /* has done so: that tracker counts the steps */
} TrackedCoroutine;

#define EACH_OBJECT(DO)                                                                                             \
    DO(inner) DO(meter) DO(name) DO(kind) DO(budget) DO(include_children) DO(is_stacked) DO(on_end) DO(owner)       \
    DO(task) DO(pending_error) DO(given_name) DO(given_qualname)

static PyTypeObject *coroutine_type;

/* Given by `set_task_getter`, and by `set_loop_getters` once asyncio is loaded. */
static PyObject *current_task_callable;
static PyObject *running_loop_callable, *task_of_loop_callable;

/* Interned names of attributes and methods. */
static PyObject *check_name, *close_name, *end_name, *get_name_name, *name_name, *qualname_name, *start_name;
static PyObject *start_nested_name, *send_name, *throw_name, *value_name, *task_kind;

static int coroutine_make_names(void)
{
    struct {
        PyObject **name;
        const char *text;
    } const names[] = {
        {&check_name, "_check_budgets"},
        {&close_name, "close"},
        {&end_name, "_end"},
        {&get_name_name, "get_name"},
        {&name_name, "__name__"},
        {&qualname_name, "__qualname__"},
        {&send_name, "send"},
        {&start_name, "_start"},
        {&start_nested_name, "_start_nested"},
        {&task_kind, "task"},
        {&throw_name, "throw"},
        {&value_name, "value"},
    };
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        *names[n].name = PyUnicode_InternFromString(names[n].text);
        if (*names[n].name == NULL) {
            return -1;
        }
    }
    return 0;
}

/* There is no coroutine before `__init__`, nor after a garbage collection has cleared the object. */
static int coroutine_has_inner(const TrackedCoroutine *self)
{
    if (self->inner == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "there is no coroutine to track");
    }
    return self->inner != NULL;
}

/* Return the tracker that a field holds if its steps are counted in C, else NULL. */
static TrackedCoroutine *coroutine_from_tracker(PyObject *tracker)
{
    return tracker != NULL && PyObject_TypeCheck(tracker, coroutine_type) ? (TrackedCoroutine *)tracker : NULL;
}

Py_ssize_t coroutine_steps(PyObject *tracker)
{
    const TrackedCoroutine *tracked = coroutine_from_tracker(tracker);
    if (tracked != NULL) {
        return tracked->steps;
    }
    PyObject *steps = PyObject_GetAttrString(tracker, "steps");
    Py_ssize_t taken = steps == NULL ? -1 : PyLong_AsSsize_t(steps);
    Py_XDECREF(steps);
    return taken;
}

/* Returns 0 where no tracker counts the steps; -1 with an exception. */
static long long coroutine_steps_since_open(const struct owner *owner)
{
    if (owner->tracker == NULL || owner->tracker == Py_None) {
        return 0;
    }
    PyObject *tracker = PyObject_CallNoArgs(owner->tracker); /* a weak reference */
    if (tracker == NULL || tracker == Py_None) {
        Py_XDECREF(tracker);
        return tracker == NULL ? -1 : 0;
    }
    Py_ssize_t steps = coroutine_steps(tracker);
    Py_DECREF(tracker);
    return steps < 0 ? -1 : steps - PyLong_AsLongLong(owner->steps_at_open);
}

int coroutine_close_owner_fast(PyObject *owner, int failed)
{
    if (!owners_may_close_fast(owner)) {
        return 0;
    }
    long long steps = coroutine_steps_since_open((const struct owner *)owner);
    return PyErr_Occurred() ? -1 : owners_close_fast(owner, failed, steps);
}

/* The task of the calling thread, and its name. asyncio is asked, once it is loaded. */

static int coroutine_tasks_are_known(void)
{
    return current_task_callable != NULL;
}

/* Returns a new reference, or None; NULL with an exception. */
static PyObject *coroutine_current_task(void)
{
    if (running_loop_callable == NULL) {
        return PyObject_CallNoArgs(current_task_callable);
    }
    PyObject *loop = PyObject_CallNoArgs(running_loop_callable);
    if (loop == NULL || loop == Py_None) {
        return loop;
    }
    PyObject *task = PyObject_CallOneArg(task_of_loop_callable, loop);
    Py_DECREF(loop);
    return task;
}

/* Return whether the event loop has generated the name, because the task was given none. */
static int coroutine_is_generated_name(PyObject *name)
{
    static const char prefix[] = "Task-";
    Py_ssize_t length = PyUnicode_GetLength(name), at = sizeof prefix - 1;
    if (length <= at) {
        /* Python 3.13.0 calls every such task "None". */
        return length == 0 || PyUnicode_CompareWithASCIIString(name, "None") == 0;
    }
    for (Py_ssize_t n = 0; n < length; n++) {
        Py_UCS4 one = PyUnicode_READ_CHAR(name, n);
        if (n < at ? one != (Py_UCS4)prefix[n] : one < '0' || one > '9') {
            return 0;
        }
    }
    return 1;
}

/* Return the name of a task (or None), or the qualified name of its coroutine if the task's name is generated. A new
   reference; NULL where the Python code has to find the name, perhaps with an exception. */
static PyObject *coroutine_task_name(PyObject *task, PyObject *coroutine)
{
    PyObject *name = task == Py_None ? NULL : PyObject_CallMethodNoArgs(task, get_name_name);
    if (name == NULL && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return NULL;
    }
    PyErr_Clear();
    if (name == NULL || (PyUnicode_CheckExact(name) && coroutine_is_generated_name(name))) {
        Py_XSETREF(name, PyObject_GetAttr(coroutine, qualname_name));
    }
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        Py_CLEAR(name);
    }
    return name;
}

PyDoc_STRVAR(task_getter_doc, "set_task_getter($module, current_task, /)\n--\n\n"
    "Set the callable that returns the task of this thread.");

static PyObject *coroutine_py_set_task_getter(PyObject *Py_UNUSED(module), PyObject *callable)
{
    Py_XSETREF(current_task_callable, Py_NewRef(callable));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(loop_getters_doc, "set_loop_getters($module, running_loop, current_task, /)\n--\n\n"
    "Set two faster callables: one returns the loop of this thread, the other one the task of a loop.");

static PyObject *coroutine_py_set_loop_getters(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *running, *of_loop;
    if (!PyArg_ParseTuple(args, "OO:set_loop_getters", &running, &of_loop)) {
        return NULL;
    }
    Py_XSETREF(running_loop_callable, Py_NewRef(running));
    Py_XSETREF(task_of_loop_callable, Py_NewRef(of_loop));
    Py_RETURN_NONE;
}

static PyMethodDef coroutine_functions[] = {
    {"set_task_getter", coroutine_py_set_task_getter, METH_O, task_getter_doc},
    {"set_loop_getters", coroutine_py_set_loop_getters, METH_VARARGS, loop_getters_doc},
    {NULL, NULL, 0, NULL},
};

/* The first step: open the owner. */

/* Return the given name or the name of the task, a new reference; NULL where the Python code has to find the name,
   perhaps with an exception. */
static PyObject *coroutine_owner_name(TrackedCoroutine *self)
{
    if (!PyUnicode_CheckExact(self->name)) {
        return NULL;
    }
    return PyUnicode_GetLength(self->name) > 0 ? Py_NewRef(self->name)
                                               : coroutine_task_name(self->task, (PyObject *)self);
}

static int coroutine_may_use_fast_path(const TrackedCoroutine *self)
{
    return coroutine_tasks_are_known() && self->budget == Py_None && self->is_stacked != Py_True &&
           self->name != Py_None;
}

/* Open the coroutine's owner; returns 0 where the fast path declines, -1 with an exception. */
static int coroutine_start_fast(TrackedCoroutine *self)
{
    if (!coroutine_may_use_fast_path(self)) {
        return 0;
    }
    PyObject *task = coroutine_current_task();
    if (task == NULL) {
        return -1;
    }
    Py_XSETREF(self->task, task);
    PyObject *name = coroutine_owner_name(self);
    if (name == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    PyObject *owner = owners_open_fast(self->meter, self->kind, name, self->include_children == Py_True,
                                       (PyObject *)self, self->steps);
    Py_DECREF(name);
    if (owner == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_XSETREF(self->owner, owner);
    return 1;
}

/* Open the owner under the tracker that this thread runs, if that is the tracker of this task. Returns 1 if the
   question is settled, with the answer in `*is_nested`; 0 where the Python code has to decide; -1 with an exception. */
static int coroutine_start_nested_fast(TrackedCoroutine *self, struct thread_slot *slot, int *is_nested)
{
    *is_nested = 0;
    if (slot->tracker == Py_None && self->meter == runtime.native_meter) {
        return 1; /* there is no tracker, and the native meter needs one: this coroutine becomes it */
    }
    TrackedCoroutine *tracker = coroutine_from_tracker(slot->tracker);
    if (tracker == NULL || !coroutine_may_use_fast_path(self) || !PyUnicode_CheckExact(self->name)) {
        return 0;
    }
    PyObject *task = coroutine_current_task();
    PyObject *owner = NULL;
    if (task != NULL && task == tracker->task) {
        owner = owners_open_fast(self->meter, self->kind, self->name, self->include_children == Py_True,
                                 (PyObject *)tracker, tracker->steps);
    }
    Py_XDECREF(task);
    if (owner == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_XSETREF(self->owner, owner);
    *is_nested = 1;
    return 1;
}

/* Where the task has a tracker already, open the owner there. -1 with an exception. */
static int coroutine_nest_if_tracked(TrackedCoroutine *self)
{
    struct thread_slot *slot = objects_thread_slot();
    if (slot == NULL) {
        return -1;
    }
    int is_nested, is_settled = coroutine_start_nested_fast(self, slot, &is_nested);
    Py_DECREF(slot);
    if (is_settled == 0) {
        PyObject *answer = PyObject_CallMethodNoArgs((PyObject *)self, start_nested_name);
        is_nested = answer == Py_True;
        is_settled = answer == NULL ? -1 : 1;
        Py_XDECREF(answer);
    }
    if (is_settled > 0 && is_nested) {
        self->is_nested = 1;
        self->steps = 1;
    }
    return is_settled < 0 ? -1 : 0;
}

/* Open the owner of a coroutine that is its own tracker. -1 with an exception. */
static int coroutine_start(TrackedCoroutine *self, struct thread_slot *slot)
{
    self->steps = 1;
    int has_started = coroutine_start_fast(self);
    if (has_started != 0) {
        return has_started < 0 ? -1 : 0;
    }
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)self, start_name, (PyObject *)slot);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The steps: from the event loop to the coroutine and back. */

/* What a step has changed in the slot of its thread. */
struct step {
    struct thread_slot *slot;
    PyObject *previous_owner;
    PyObject *previous_tracker;
};

/* Convert the result of a method call to that of `PyIter_Send`. */
static PySendResult coroutine_as_send_result(PyObject **result)
{
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *stop = compat_take_exception();
    *result = PyObject_GetAttr(stop, value_name);
    Py_DECREF(stop);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* Convert the result of `PyIter_Send` to that of a method call. */
static PyObject *coroutine_as_return_value(PySendResult status, PyObject *result)
{
    if (status != PYGEN_RETURN) {
        return result;
    }
    /* By a call, because `PyErr_SetObject` would take a tuple for arguments and an exception for the one to raise. */
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

static PyObject *coroutine_call_subclass(TrackedCoroutine *self, PyObject *method, PyObject *first, PyObject *second)
{
    PyObject *arguments[] = {(PyObject *)self, first, second};
    return PyObject_VectorcallMethod(method, arguments, second == NULL ? 2 : 3, NULL);
}

static int coroutine_resume_owner(TrackedCoroutine *self, struct thread_slot *slot)
{
    self->steps++;
    struct owner *owner;
    if (!runtime.has_other_meters) {
        return 0; /* the hooks find the owner from the context */
    }
    if (objects_active_owner(&owner) < 0) {
        return -1;
    }
    int failed = objects_set_current(slot, owner == NULL ? NULL : owner->charged_to);
    Py_XDECREF(owner);
    return failed;
}

/* Make the owner of this step the current one; -1 with an exception, and even then the step has to be ended by
   `coroutine_suspend`. */
static int coroutine_resume(TrackedCoroutine *self, struct step *step)
{
    struct thread_slot *slot = step->slot;
    step->previous_owner = Py_XNewRef(slot->owner);
    step->previous_tracker = slot->tracker;
    slot->tracker = Py_NewRef((PyObject *)self);
    return self->steps == 0 ? coroutine_start(self, slot) : coroutine_resume_owner(self, slot);
}

/* A task keeps its coroutine for good, so drop all that must not live as long. The fields that are left hold no
   container, so that garbage collections need not visit the object any more. */
static void coroutine_release_references(TrackedCoroutine *self)
{
    Py_XSETREF(self->task, Py_NewRef(Py_None));
    Py_XSETREF(self->owner, Py_NewRef(Py_None));
    Py_XSETREF(self->on_end, Py_NewRef(Py_None));
    if (PyCoro_CheckExact(self->inner) && self->pending_error == NULL && PyObject_GC_IsTracked((PyObject *)self)) {
        PyObject_GC_UnTrack(self);
    }
}

/* Close the owner of a coroutine that has returned; returns 0 where the fast path declines, -1 with an exception. */
static int coroutine_finish_fast(TrackedCoroutine *self, struct thread_slot *slot, PyObject *previous_owner)
{
    if (self->has_ended || objects_as_owner(self->owner) == NULL) {
        return 0;
    }
    PyObject *owner = Py_NewRef(self->owner);
    int has_closed = coroutine_close_owner_fast(owner, 0);
    if (has_closed > 0) {
        self->has_ended = 1;
        PyObject *on_end = Py_XNewRef(self->on_end), *called = Py_NewRef(Py_None);
        coroutine_release_references(self);
        if (!self->is_nested && runtime.has_other_meters && objects_set_current(slot, previous_owner) < 0) {
            has_closed = -1;
        }
        else if (on_end != Py_None && on_end != NULL) {
            Py_SETREF(called, PyObject_CallFunctionObjArgs(on_end, owner, Py_None, NULL));
        }
        has_closed = called == NULL ? -1 : has_closed;
        Py_XDECREF(called);
        Py_XDECREF(on_end);
    }
    Py_DECREF(owner);
    return has_closed;
}

/* Have the Python subclass close the owner. -1 with an exception. */
static int coroutine_finish_slow(TrackedCoroutine *self, PyObject *previous_owner, PyObject *error)
{
    PyObject *handled = NULL;
    if (error != NULL) {
        /* As in an `except` block, so that an exception raised by the subclass has this one as its context. */
        handled = PyErr_GetHandledException();
        PyErr_SetHandledException(error);
    }
    PyObject *next = previous_owner == NULL ? Py_None : previous_owner;
    PyObject *closed = coroutine_call_subclass(self, end_name, next, error == NULL ? Py_None : error);
    if (error != NULL) {
        PyErr_SetHandledException(handled);
        Py_XDECREF(handled);
    }
    Py_XDECREF(closed);
    return closed == NULL ? -1 : 0;
}

/* Close the owner; an exception raised by that replaces the coroutine's result. */
static PySendResult coroutine_finish(TrackedCoroutine *self, struct step *step, PySendResult status, PyObject **result)
{
    PyObject *error = status == PYGEN_ERROR ? compat_take_exception() : NULL;
    int has_ended = error == NULL ? coroutine_finish_fast(self, step->slot, step->previous_owner) : 0;
    if (has_ended == 0) {
        has_ended = coroutine_finish_slow(self, step->previous_owner, error) < 0 ? -1 : 1;
    }
    if (has_ended < 0) {
        Py_XDECREF(error);
        Py_CLEAR(*result);
        return PYGEN_ERROR;
    }
    if (error != NULL) {
        compat_raise_exception(error);
    }
    return status;
}

static int coroutine_check_budgets(TrackedCoroutine *self)
{
    struct owner *owner;
    if (runtime.budgeted_owners == 0) {
        return 0;
    }
    if (objects_active_owner(&owner) < 0) {
        return -1;
    }
    int failed = 0;
    if (owner != NULL && objects_as_owner(owner->nearest_budgeted) != NULL) {
        PyObject *budgeted = Py_NewRef(owner->nearest_budgeted);
        PyObject *result = coroutine_call_subclass(self, check_name, budgeted, NULL);
        failed = result == NULL ? -1 : 0;
        Py_XDECREF(result);
        Py_DECREF(budgeted);
    }
    Py_XDECREF(owner);
    return failed;
}

/* Make the previous owner the current one again, and release the references of the step. */
static PySendResult coroutine_suspend(TrackedCoroutine *self, struct step *step, PySendResult status, PyObject **result)
{
    if (status != PYGEN_NEXT) {
        status = coroutine_finish(self, step, status, result);
    }
    Py_XSETREF(step->slot->tracker, step->previous_tracker);
    if (status == PYGEN_NEXT &&
        ((runtime.has_other_meters && objects_set_current(step->slot, step->previous_owner) < 0) ||
         coroutine_check_budgets(self) < 0)) {
        Py_CLEAR(*result);
        status = PYGEN_ERROR;
    }
    Py_XDECREF(step->previous_owner);
    Py_DECREF(step->slot);
    return status;
}

/* The check of the budgets after the previous step has found an excess. */
static PySendResult coroutine_throw_pending_error(TrackedCoroutine *self, PyObject **result)
{
    PyObject *error = self->pending_error;
    self->pending_error = NULL;
    *result = PyObject_CallMethodOneArg(self->inner, throw_name, error);
    Py_DECREF(error);
    return coroutine_as_send_result(result);
}

/* One step of a coroutine with a tracker of its own. */
static PySendResult coroutine_send_tracked(TrackedCoroutine *self, PyObject *value, PyObject **result)
{
    struct step step = {.slot = objects_thread_slot()};
    if (step.slot == NULL) {
        return PYGEN_ERROR;
    }
    PySendResult status = PYGEN_ERROR;
    if (coroutine_resume(self, &step) == 0) {
        int has_error = self->pending_error != NULL && self->pending_error != Py_None;
        status = has_error ? coroutine_throw_pending_error(self, result) : PyIter_Send(self->inner, value, result);
    }
    return coroutine_suspend(self, &step, status, result);
}

/* After a step of a nested coroutine, whose owner's tracker restores the previous owner. */
static PySendResult coroutine_finish_nested(TrackedCoroutine *self, PySendResult status, PyObject **result)
{
    struct step none = {.slot = NULL};
    return status == PYGEN_NEXT ? status : coroutine_finish(self, &none, status, result);
}

static PySendResult coroutine_send_nested(TrackedCoroutine *self, PyObject *value, PyObject **result)
{
    return coroutine_finish_nested(self, PyIter_Send(self->inner, value, result), result);
}

static PySendResult coroutine_am_send(PyObject *object, PyObject *value, PyObject **result)
{
    TrackedCoroutine *self = (TrackedCoroutine *)object;
    *result = NULL;
    if (!coroutine_has_inner(self)) {
        return PYGEN_ERROR;
    }
    if (self->nests_if_tracked && self->steps == 0 && coroutine_nest_if_tracked(self) < 0) {
        return PYGEN_ERROR;
    }
    Py_INCREF(self); /* the coroutine may drop the last other reference to this object */
    PySendResult status = self->is_nested ? coroutine_send_nested(self, value, result)
                                          : coroutine_send_tracked(self, value, result);
    Py_DECREF(self);
    return status;
}

static PyObject *coroutine_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = coroutine_am_send(self, value, &result);
    return coroutine_as_return_value(status, result);
}

static PySendResult coroutine_throw_into(TrackedCoroutine *self, PyObject *const *args, Py_ssize_t count,
                                         PyObject **result)
{
    /* One argument wherever possible: Python 3.12 has deprecated the other signature. */
    PyObject *arguments[4] = {self->inner, args[0]};
    size_t given = 1;
    if (count > 1 && args[1] != Py_None) {
        given = 3;
        arguments[2] = args[1];
        arguments[3] = count > 2 ? args[2] : Py_None;
    }
    *result = PyObject_VectorcallMethod(throw_name, arguments, given + 1, NULL);
    return coroutine_as_send_result(result);
}

static PySendResult coroutine_throw_tracked(TrackedCoroutine *self, PyObject *const *args, Py_ssize_t count,
                                            PyObject **result)
{
    struct step step = {.slot = objects_thread_slot()};
    if (step.slot == NULL) {
        return PYGEN_ERROR;
    }
    PySendResult status = PYGEN_ERROR;
    if (coroutine_resume(self, &step) == 0) {
        status = coroutine_throw_into(self, args, count, result);
    }
    return coroutine_suspend(self, &step, status, result);
}

static PySendResult coroutine_throw_nested(TrackedCoroutine *self, PyObject *const *args, Py_ssize_t count,
                                           PyObject **result)
{
    return coroutine_finish_nested(self, coroutine_throw_into(self, args, count, result), result);
}

static PyObject *coroutine_throw(TrackedCoroutine *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or a type, a value and a traceback");
        return NULL;
    }
    if (!coroutine_has_inner(self)) {
        return NULL;
    }
    if (self->nests_if_tracked && self->steps == 0) {
        self->is_nested = 1; /* the coroutine will never start, so no owner is charged */
        self->steps = 1;
    }
    Py_INCREF(self);
    PyObject *result = NULL;
    PySendResult status = self->is_nested ? coroutine_throw_nested(self, args, count, &result)
                                          : coroutine_throw_tracked(self, args, count, &result);
    Py_DECREF(self);
    return coroutine_as_return_value(status, result);
}

/* The Python type `TrackedCoroutine`. */

/* A tracked coroutine that is dropped while suspended is closed, as CPython closes its own coroutines. Otherwise its
   owner would stay open for ever. */
static void coroutine_finalize(PyObject *self)
{
    if (((TrackedCoroutine *)self)->steps == 0 || ((TrackedCoroutine *)self)->has_ended) {
        return;
    }
    PyObject *passing = PyErr_Occurred() ? compat_take_exception() : NULL;
    PyObject *result = PyObject_CallMethodNoArgs(self, close_name);
    if (result == NULL) {
        PyErr_WriteUnraisable(self);
    }
    Py_XDECREF(result);
    if (passing != NULL) {
        compat_raise_exception(passing);
    }
}

static int coroutine_is_sendable(PyObject *inner)
{
    PyAsyncMethods *async = Py_TYPE(inner)->tp_as_async;
    if (async != NULL && async->am_send != NULL) {
        return 1;
    }
    PyObject *send = PyObject_GetAttr(inner, send_name); /* for its error message */
    Py_XDECREF(send);
    return send != NULL;
}

static int coroutine_init(TrackedCoroutine *self, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"inner", "meter", "name", "kind", "budget", "include_children", "is_stacked", "on_end",
                               "nest_if_tracked", NULL};
    int nests_if_tracked = 0;
    PyObject *inner, *meter, *name = Py_None, *kind = task_kind, *budget = Py_None;
    PyObject *include_children = Py_True, *is_stacked = Py_False, *on_end = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "OO|$OOOOOOp:TrackedCoroutine", keywords, &inner, &meter, &name, &kind,
                                     &budget, &include_children, &is_stacked, &on_end, &nests_if_tracked) ||
        (inner != Py_None && !coroutine_is_sendable(inner))) { /* None: only to be copied for coroutines */
        return -1;
    }
    Py_XSETREF(self->inner, Py_NewRef(inner));
    Py_XSETREF(self->meter, Py_NewRef(meter));
    Py_XSETREF(self->name, Py_NewRef(name));
    Py_XSETREF(self->kind, Py_NewRef(kind));
    Py_XSETREF(self->budget, Py_NewRef(budget));
    Py_XSETREF(self->include_children, Py_NewRef(include_children));
    Py_XSETREF(self->is_stacked, Py_NewRef(is_stacked));
    Py_XSETREF(self->on_end, Py_NewRef(on_end));
    Py_XSETREF(self->owner, Py_NewRef(Py_None));
    Py_XSETREF(self->task, Py_NewRef(Py_None));
    self->nests_if_tracked = (char)nests_if_tracked;
    return 0;
}

PyDoc_STRVAR(copy_doc, "copy_for($self, inner, /)\n--\n\n"
    "Return a tracked coroutine for `inner` with the options of this one.");

static PyObject *coroutine_copy_for(TrackedCoroutine *self, PyObject *inner)
{
    if (self->meter == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "there are no options to copy");
        return NULL;
    }
    if (!PyCoro_CheckExact(inner) && !coroutine_is_sendable(inner)) {
        return NULL;
    }
    TrackedCoroutine *made = (TrackedCoroutine *)Py_TYPE(self)->tp_alloc(Py_TYPE(self), 0);
    if (made != NULL) {
        made->inner = Py_NewRef(inner);
        made->meter = Py_XNewRef(self->meter);
        made->name = Py_XNewRef(self->name);
        made->kind = Py_XNewRef(self->kind);
        made->budget = Py_XNewRef(self->budget);
        made->include_children = Py_XNewRef(self->include_children);
        made->is_stacked = Py_XNewRef(self->is_stacked);
        made->on_end = Py_XNewRef(self->on_end);
        made->owner = Py_NewRef(Py_None);
        made->task = Py_NewRef(Py_None);
        made->given_name = Py_XNewRef(self->given_name);
        made->given_qualname = Py_XNewRef(self->given_qualname);
        made->nests_if_tracked = self->nests_if_tracked;
    }
    return (PyObject *)made;
}

static int coroutine_traverse(TrackedCoroutine *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(field) VISIT_CONTAINER(self->field)
    EACH_OBJECT(VISIT)
#undef VISIT
    return 0;
}

static int coroutine_clear(TrackedCoroutine *self)
{
#define CLEAR(field) Py_CLEAR(self->field);
    EACH_OBJECT(CLEAR)
#undef CLEAR
    return 0;
}

static void coroutine_dealloc(TrackedCoroutine *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)coroutine_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Names: the given ones, or else those of the inner coroutine. */

static PyObject *coroutine_get_qualname(TrackedCoroutine *self, void *Py_UNUSED(none))
{
    if (self->given_qualname != NULL) {
        return Py_NewRef(self->given_qualname);
    }
    if (!coroutine_has_inner(self)) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttr(self->inner, qualname_name);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        found = PyObject_GetAttr((PyObject *)Py_TYPE(self->inner), qualname_name);
    }
    return found;
}

static PyObject *coroutine_get_name(TrackedCoroutine *self, void *none)
{
    if (self->given_name != NULL) {
        return Py_NewRef(self->given_name);
    }
    if (!coroutine_has_inner(self)) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttr(self->inner, name_name);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        found = coroutine_get_qualname(self, none);
    }
    return found;
}

static int coroutine_set_name(TrackedCoroutine *self, PyObject *given, void *Py_UNUSED(none))
{
    Py_XSETREF(self->given_name, Py_XNewRef(given));
    return 0;
}

static int coroutine_set_qualname(TrackedCoroutine *self, PyObject *given, void *Py_UNUSED(none))
{
    Py_XSETREF(self->given_qualname, Py_XNewRef(given));
    return 0;
}

static PyObject *coroutine_self(PyObject *self)
{
    return Py_NewRef(self);
}

static PyMemberDef coroutine_members[] = {
    {"_inner", T_OBJECT_EX, offsetof(TrackedCoroutine, inner), READONLY, NULL},
    {"_meter", T_OBJECT_EX, offsetof(TrackedCoroutine, meter), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(TrackedCoroutine, name), 0, NULL},
    {"kind", T_OBJECT_EX, offsetof(TrackedCoroutine, kind), 0, NULL},
    {"budget", T_OBJECT_EX, offsetof(TrackedCoroutine, budget), 0, NULL},
    {"include_children", T_OBJECT_EX, offsetof(TrackedCoroutine, include_children), 0, NULL},
    {"is_stacked", T_OBJECT_EX, offsetof(TrackedCoroutine, is_stacked), 0, NULL},
    {"on_end", T_OBJECT_EX, offsetof(TrackedCoroutine, on_end), 0, NULL},
    {"owner", T_OBJECT_EX, offsetof(TrackedCoroutine, owner), 0, NULL},
    {"task", T_OBJECT_EX, offsetof(TrackedCoroutine, task), 0, NULL},
    {"_pending_error", T_OBJECT, offsetof(TrackedCoroutine, pending_error), 0, NULL},
    {"_steps", T_PYSSIZET, offsetof(TrackedCoroutine, steps), 0, NULL},
    {"_has_ended", T_BOOL, offsetof(TrackedCoroutine, has_ended), 0, NULL},
    {"nest_if_tracked", T_BOOL, offsetof(TrackedCoroutine, nests_if_tracked), 0, NULL},
    {"_is_nested", T_BOOL, offsetof(TrackedCoroutine, is_nested), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TrackedCoroutine, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef coroutine_attributes[] = {
    {"__name__", (getter)coroutine_get_name, (setter)coroutine_set_name, NULL, NULL},
    {"__qualname__", (getter)coroutine_get_qualname, (setter)coroutine_set_qualname, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nRun one step.");

PyDoc_STRVAR(throw_doc, "throw($self, kind, error=None, trace=None, /)\n--\n\n"
    "Throw into the coroutine, inside a charged step; cancellation takes this way.");

static PyObject *coroutine_iternext(PyObject *self)
{
    return coroutine_send(self, Py_None);
}

PyDoc_STRVAR(subclass_doc, "__init_subclass__($type, /)\n--\n\n"
    "Let event loops send to the subclass as they do to this class.");

/* A subclass inherits all slots of a coroutine but `am_send`. Up to Python 3.13 event loops would call its
   `__next__`, which returns the result as an exception. */
static PyObject *coroutine_init_subclass(PyObject *type, PyObject *Py_UNUSED(none))
{
    PyAsyncMethods *async = ((PyTypeObject *)type)->tp_as_async;
    PyObject *send = PyObject_GetAttr(type, send_name);
    PyObject *own_send = PyObject_GetAttr((PyObject *)coroutine_type, send_name);
    if (send != NULL && send == own_send && async != NULL) {
        async->am_send = coroutine_am_send;
    }
    PyObject *result = send == NULL || own_send == NULL ? NULL : Py_NewRef(Py_None);
    Py_XDECREF(send);
    Py_XDECREF(own_send);
    return result;
}

static PyMethodDef coroutine_methods[] = {
    {"copy_for", (PyCFunction)coroutine_copy_for, METH_O, copy_doc},
    {"send", coroutine_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))coroutine_throw, METH_FASTCALL, throw_doc},
    {"__init_subclass__", coroutine_init_subclass, METH_NOARGS | METH_CLASS, subclass_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(coroutine_doc, "A tracked coroutine; see `_coroutines.PythonTrackedCoroutine`.");

static PyType_Slot coroutine_slots[] = {
    {Py_tp_doc, (void *)coroutine_doc},   {Py_tp_new, PyType_GenericNew},      {Py_tp_init, coroutine_init},
    {Py_tp_traverse, coroutine_traverse}, {Py_tp_clear, coroutine_clear},      {Py_tp_dealloc, coroutine_dealloc},
    {Py_tp_finalize, coroutine_finalize}, {Py_tp_members, coroutine_members},  {Py_tp_getset, coroutine_attributes},
    {Py_tp_methods, coroutine_methods},   {Py_tp_iter, coroutine_self},        {Py_tp_iternext, coroutine_iternext},
    {Py_am_await, coroutine_self},        {Py_am_send, coroutine_am_send},     {0, NULL},
};

static PyType_Spec coroutine_spec = {
    .name = "memtools.ledger._native.TrackedCoroutine",
    .basicsize = sizeof(TrackedCoroutine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = coroutine_slots,
};

int coroutine_register(PyObject *module)
{
    if (coroutine_type == NULL) {
        if (coroutine_make_names() < 0) {
            return -1;
        }
        coroutine_type = (PyTypeObject *)PyType_FromSpec(&coroutine_spec);
        if (coroutine_type == NULL) {
            return -1;
        }
    }
    return PyModule_AddType(module, coroutine_type) < 0 ? -1 : PyModule_AddFunctions(module, coroutine_functions);
}
