/* The steps of a coroutine, from the loop's call to the coroutine and back; see driver.h. */

#include "driver.h"

#include "book.h"
#include "kept.h"
#include "raised.h"
#include "seats.h"
#include "steps.h"
#include "turns.h"

/* What a step has taken, and gives back. */
struct turn {
    struct slot *slot;
    PyObject *owner_before;
    PyObject *driver_before;
};

static PyObject *current_task;               /* given by `find_tasks` */
static PyObject *running_loop, *task_of_loop; /* given by `know_tasks`, once asyncio is there */
static PyObject *begin_name, *join_name, *end_name, *check_name, *throw_name, *value_name, *get_name_name, *qualname_name;

/* What a method returned, as `PyIter_Send` says it. */
static PySendResult as_sent(PyObject **result)
{
    if (*result != NULL) {
        return PYGEN_NEXT;
    }
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
        return PYGEN_ERROR;
    }
    PyObject *stop = take_exception();
    *result = PyObject_GetAttr(stop, value_name);
    Py_DECREF(stop);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* The same the other way round. */
static PyObject *as_returned(PySendResult status, PyObject *result)
{
    if (status != PYGEN_RETURN) {
        return result;
    }
    /* Made by a call: a tuple or an exception would be taken for something else by `PyErr_SetObject`. */
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop != NULL) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return NULL;
}

int steps_has_inner(const Steps *self)
{
    if (self->inner == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "there is no coroutine to follow");
    }
    return self->inner != NULL;
}

static PyObject *call_up(Steps *self, PyObject *method, PyObject *first, PyObject *second)
{
    PyObject *arguments[] = {(PyObject *)self, first, second};
    return PyObject_VectorcallMethod(method, arguments, second == NULL ? 2 : 3, NULL);
}

/* The task that runs in this thread, or None; NULL with an exception. */
static PyObject *find_task(void)
{
    if (running_loop == NULL) {
        return PyObject_CallNoArgs(current_task);
    }
    PyObject *loop = PyObject_CallNoArgs(running_loop);
    if (loop == NULL || loop == Py_None) {
        return loop;
    }
    PyObject *task = PyObject_CallOneArg(task_of_loop, loop);
    Py_DECREF(loop);
    return task;
}

/* Whether a loop has numbered the task, for want of a name. */
static int is_automatic(PyObject *name)
{
    static const char prefix[] = "Task-";
    Py_ssize_t length = PyUnicode_GetLength(name), at = sizeof prefix - 1;
    if (length <= at) {
        return length == 0 || PyUnicode_CompareWithASCIIString(name, "None") == 0; /* which 3.13.0 calls them all */
    }
    for (Py_ssize_t n = 0; n < length; n++) {
        Py_UCS4 one = PyUnicode_READ_CHAR(name, n);
        if (n < at ? one != (Py_UCS4)prefix[n] : one < '0' || one > '9') {
            return 0;
        }
    }
    return 1;
}

/* What its owner is called: as it was given, or as the task, or where that has a number only, as the coroutine. A new
   reference; NULL where it is for Python to say, perhaps with an exception. */
static PyObject *own_name(Steps *self)
{
    if (!PyUnicode_CheckExact(self->name)) {
        return NULL;
    }
    if (PyUnicode_GetLength(self->name) > 0) {
        return Py_NewRef(self->name);
    }
    PyObject *name = self->task == Py_None ? NULL : PyObject_CallMethodNoArgs(self->task, get_name_name);
    if (name == NULL && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return NULL;
    }
    PyErr_Clear();
    if (name == NULL || (PyUnicode_CheckExact(name) && is_automatic(name))) {
        Py_XSETREF(name, PyObject_GetAttr((PyObject *)self, qualname_name));
    }
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        Py_CLEAR(name);
    }
    return name;
}

static int may_be_plain(const Steps *self)
{
    return current_task != NULL && self->budget == Py_None && self->is_layered != Py_True && self->name != Py_None;
}

/* Open its own owner, if it is a plain one; 0 if not. -1 with an exception. */
static int begin_plainly(Steps *self)
{
    if (!may_be_plain(self)) {
        return 0;
    }
    PyObject *task = find_task();
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
    PyObject *task = find_task();
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

/* Before the first step of one that joins. -1 with an exception. */
static int join(Steps *self)
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

static int begin(Steps *self, struct slot *slot)
{
    self->steps = 1;
    int has_begun = begin_plainly(self);
    if (has_begun != 0) {
        return has_begun < 0 ? -1 : 0;
    }
    PyObject *result = call_up(self, begin_name, (PyObject *)slot, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int resume(Steps *self, struct slot *slot)
{
    self->steps++;
    struct owner *owner;
    if (turns_active(&owner) < 0) {
        return -1;
    }
    int failed = turns_give(slot, owner == NULL ? NULL : owner->charged);
    Py_XDECREF(owner);
    return failed;
}

/* Begin a step. -1 with an exception; even then the turn is to be given back. */
static int take_turn(Steps *self, struct turn *turn)
{
    struct slot *slot = turn->slot;
    turn->owner_before = Py_XNewRef(slot->owner);
    turn->driver_before = slot->driver;
    slot->driver = Py_NewRef((PyObject *)self);
    return self->steps == 0 ? begin(self, slot) : resume(self, slot);
}

/* Let go of all that may not outlive the end: a task holds its coroutine for good. What is left holds no container, so
   that collections need not look at it any more. */
static void let_go(Steps *self)
{
    Py_XSETREF(self->task, Py_NewRef(Py_None));
    Py_XSETREF(self->owner, Py_NewRef(Py_None));
    Py_XSETREF(self->on_end, Py_NewRef(Py_None));
    if (PyCoro_CheckExact(self->inner) && self->overrun == NULL && PyObject_GC_IsTracked((PyObject *)self)) {
        PyObject_GC_UnTrack(self);
    }
}

/* Settle the end of a coroutine that has returned, if its owner is a plain one; 0 if not. -1 with an exception. */
static int end_plainly(Steps *self, struct slot *slot, PyObject *owner_before)
{
    if (self->has_ended || seats_owner(self->owner) == NULL) {
        return 0;
    }
    PyObject *owner = Py_NewRef(self->owner);
    int has_settled = book_settle_plain(owner, 0, owner_before == NULL ? Py_None : owner_before);
    if (has_settled > 0) {
        self->has_ended = 1;
        PyObject *on_end = Py_XNewRef(self->on_end), *told = Py_NewRef(Py_None);
        let_go(self);
        if (!self->is_joined && turns_give(slot, owner_before) < 0) {
            has_settled = -1;
        }
        else if (on_end != Py_None && on_end != NULL) {
            Py_SETREF(told, PyObject_CallFunctionObjArgs(on_end, owner, Py_None, NULL));
        }
        has_settled = told == NULL ? -1 : has_settled;
        Py_XDECREF(told);
        Py_XDECREF(on_end);
    }
    Py_DECREF(owner);
    return has_settled;
}

/* Have the class above settle the end of the coroutine. -1 with an exception. */
static int end_by_class(Steps *self, PyObject *owner_before, PyObject *error)
{
    PyObject *handled = NULL;
    if (error != NULL) {
        /* As in an `except` block: what is raised in there has it for its context. */
        handled = PyErr_GetHandledException();
        PyErr_SetHandledException(error);
    }
    PyObject *settled = call_up(self, end_name, owner_before == NULL ? Py_None : owner_before, error ? error : Py_None);
    if (error != NULL) {
        PyErr_SetHandledException(handled);
        Py_XDECREF(handled);
    }
    Py_XDECREF(settled);
    return settled == NULL ? -1 : 0;
}

/* Settle the end; what that raises takes the place of the result. */
static PySendResult end(Steps *self, struct turn *turn, PySendResult status, PyObject **result)
{
    PyObject *error = status == PYGEN_ERROR ? take_exception() : NULL;
    int has_ended = error == NULL ? end_plainly(self, turn->slot, turn->owner_before) : 0;
    if (has_ended == 0) {
        has_ended = end_by_class(self, turn->owner_before, error) < 0 ? -1 : 1;
    }
    if (has_ended < 0) {
        Py_XDECREF(error);
        Py_CLEAR(*result);
        return PYGEN_ERROR;
    }
    if (error != NULL) {
        raise_again(error);
    }
    return status;
}

static int look_at_budgets(Steps *self)
{
    struct owner *owner;
    if (turns_active(&owner) < 0) {
        return -1;
    }
    int failed = 0;
    if (owner != NULL && seats_owner(owner->budgeted) != NULL) {
        PyObject *budgeted = Py_NewRef(owner->budgeted);
        PyObject *result = call_up(self, check_name, budgeted, NULL);
        failed = result == NULL ? -1 : 0;
        Py_XDECREF(result);
        Py_DECREF(budgeted);
    }
    Py_XDECREF(owner);
    return failed;
}

/* End a step; the turn's references go. */
static PySendResult give_turn_back(Steps *self, struct turn *turn, PySendResult status, PyObject **result)
{
    if (status != PYGEN_NEXT) {
        status = end(self, turn, status, result);
    }
    Py_XSETREF(turn->slot->driver, turn->driver_before);
    if (status == PYGEN_NEXT && (turns_give(turn->slot, turn->owner_before) < 0 || look_at_budgets(self) < 0)) {
        Py_CLEAR(*result);
        status = PYGEN_ERROR;
    }
    Py_XDECREF(turn->owner_before);
    Py_DECREF(turn->slot);
    return status;
}

/* Throw what the last look at the budgets has found. */
static PySendResult stop(Steps *self, PyObject **result)
{
    PyObject *overrun = self->overrun;
    self->overrun = NULL;
    *result = PyObject_CallMethodOneArg(self->inner, throw_name, overrun);
    Py_DECREF(overrun);
    return as_sent(result);
}

/* One step of one whose task another driver follows. */
static PySendResult send_joined(Steps *self, PyObject *value, PyObject **result)
{
    struct turn none = {.slot = NULL};
    PySendResult status = PyIter_Send(self->inner, value, result);
    return status == PYGEN_NEXT ? status : end(self, &none, status, result);
}

PySendResult steps_am_send(PyObject *object, PyObject *value, PyObject **result)
{
    Steps *self = (Steps *)object;
    *result = NULL;
    if (!steps_has_inner(self) || (self->joins && self->steps == 0 && join(self) < 0)) {
        return PYGEN_ERROR;
    }
    struct turn turn = {.slot = self->is_joined ? NULL : turns_slot()};
    if (turn.slot == NULL && !self->is_joined) {
        return PYGEN_ERROR;
    }
    Py_INCREF(self); /* the coroutine may let go of what holds us */
    PySendResult status = PYGEN_ERROR;
    if (self->is_joined) {
        status = send_joined(self, value, result);
        Py_DECREF(self);
        return status;
    }
    if (take_turn(self, &turn) == 0) {
        status = self->overrun == NULL || self->overrun == Py_None ? PyIter_Send(self->inner, value, result)
                                                                   : stop(self, result);
    }
    status = give_turn_back(self, &turn, status, result);
    Py_DECREF(self);
    return status;
}

PyObject *steps_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = steps_am_send(self, value, &result);
    return as_returned(status, result);
}

static PyObject *throw_inside(Steps *self, PyObject *const *args, Py_ssize_t count)
{
    /* One argument wherever possible: the other signature is deprecated since 3.12. */
    PyObject *arguments[4] = {self->inner, args[0]};
    size_t given = 1;
    if (count > 1 && args[1] != Py_None) {
        given = 3;
        arguments[2] = args[1];
        arguments[3] = count > 2 ? args[2] : Py_None;
    }
    return PyObject_VectorcallMethod(throw_name, arguments, given + 1, NULL);
}

PyObject *steps_throw(Steps *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or a type, a value and a traceback");
        return NULL;
    }
    if (!steps_has_inner(self)) {
        return NULL;
    }
    if (self->joins && self->steps == 0) {
        self->is_joined = 1; /* it will never begin, so nobody is charged */
        self->steps = 1;
    }
    struct turn turn = {.slot = self->is_joined ? NULL : turns_slot()};
    if (turn.slot == NULL && !self->is_joined) {
        return NULL;
    }
    Py_INCREF(self);
    PyObject *result = NULL;
    PySendResult status = PYGEN_ERROR;
    if (self->is_joined || take_turn(self, &turn) == 0) {
        result = throw_inside(self, args, count);
        status = as_sent(&result);
    }
    if (!self->is_joined) {
        status = give_turn_back(self, &turn, status, &result);
    }
    else if (status != PYGEN_NEXT) {
        status = end(self, &turn, status, &result);
    }
    Py_DECREF(self);
    return as_returned(status, result);
}

void steps_find_tasks(PyObject *finder)
{
    Py_XSETREF(current_task, Py_NewRef(finder));
}

void steps_know_tasks(PyObject *running, PyObject *of_loop)
{
    Py_XSETREF(running_loop, Py_NewRef(running));
    Py_XSETREF(task_of_loop, Py_NewRef(of_loop));
}

int steps_start(void)
{
    begin_name = PyUnicode_InternFromString("_begin");
    join_name = PyUnicode_InternFromString("_join");
    end_name = PyUnicode_InternFromString("_end");
    check_name = PyUnicode_InternFromString("_check_budgets");
    throw_name = PyUnicode_InternFromString("throw");
    value_name = PyUnicode_InternFromString("value");
    get_name_name = PyUnicode_InternFromString("get_name");
    qualname_name = PyUnicode_InternFromString("__qualname__");
    return begin_name && join_name && end_name && check_name && throw_name && value_name && get_name_name &&
                   qualname_name
               ? 0
               : -1;
}
