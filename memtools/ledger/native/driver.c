/* The steps of a coroutine, from the loop's call to the coroutine and back; see driver.h. */

#include "driver.h"

#include "book.h"
#include "first_step.h"
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

static PyObject *end_name, *check_name, *throw_name, *value_name;

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
    return self->steps == 0 ? first_step_begin(self, slot) : resume(self, slot);
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

/* One step of one that follows its coroutine itself. */
static PySendResult send_followed(Steps *self, PyObject *value, PyObject **result)
{
    struct turn turn = {.slot = turns_slot()};
    if (turn.slot == NULL) {
        return PYGEN_ERROR;
    }
    PySendResult status = PYGEN_ERROR;
    if (take_turn(self, &turn) == 0) {
        status = self->overrun == NULL || self->overrun == Py_None ? PyIter_Send(self->inner, value, result)
                                                                   : stop(self, result);
    }
    return give_turn_back(self, &turn, status, result);
}

/* After a step of one whose task another driver follows: there is no turn to give back. */
static PySendResult end_joined(Steps *self, PySendResult status, PyObject **result)
{
    struct turn none = {.slot = NULL};
    return status == PYGEN_NEXT ? status : end(self, &none, status, result);
}

static PySendResult send_joined(Steps *self, PyObject *value, PyObject **result)
{
    return end_joined(self, PyIter_Send(self->inner, value, result), result);
}

PySendResult steps_am_send(PyObject *object, PyObject *value, PyObject **result)
{
    Steps *self = (Steps *)object;
    *result = NULL;
    if (!steps_has_inner(self) || (self->joins && self->steps == 0 && first_step_join(self) < 0)) {
        return PYGEN_ERROR;
    }
    Py_INCREF(self); /* the coroutine may let go of what holds us */
    PySendResult status = self->is_joined ? send_joined(self, value, result) : send_followed(self, value, result);
    Py_DECREF(self);
    return status;
}

PyObject *steps_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = steps_am_send(self, value, &result);
    return as_returned(status, result);
}

static PySendResult throw_inside(Steps *self, PyObject *const *args, Py_ssize_t count, PyObject **result)
{
    /* One argument wherever possible: the other signature is deprecated since 3.12. */
    PyObject *arguments[4] = {self->inner, args[0]};
    size_t given = 1;
    if (count > 1 && args[1] != Py_None) {
        given = 3;
        arguments[2] = args[1];
        arguments[3] = count > 2 ? args[2] : Py_None;
    }
    *result = PyObject_VectorcallMethod(throw_name, arguments, given + 1, NULL);
    return as_sent(result);
}

static PySendResult throw_followed(Steps *self, PyObject *const *args, Py_ssize_t count, PyObject **result)
{
    struct turn turn = {.slot = turns_slot()};
    if (turn.slot == NULL) {
        return PYGEN_ERROR;
    }
    PySendResult status = take_turn(self, &turn) == 0 ? throw_inside(self, args, count, result) : PYGEN_ERROR;
    return give_turn_back(self, &turn, status, result);
}

static PySendResult throw_joined(Steps *self, PyObject *const *args, Py_ssize_t count, PyObject **result)
{
    return end_joined(self, throw_inside(self, args, count, result), result);
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
    Py_INCREF(self);
    PyObject *result = NULL;
    PySendResult status = self->is_joined ? throw_joined(self, args, count, &result)
                                          : throw_followed(self, args, count, &result);
    Py_DECREF(self);
    return as_returned(status, result);
}

int steps_start(void)
{
    end_name = PyUnicode_InternFromString("_end");
    check_name = PyUnicode_InternFromString("_check_budgets");
    throw_name = PyUnicode_InternFromString("throw");
    value_name = PyUnicode_InternFromString("value");
    return end_name && check_name && throw_name && value_name ? 0 : -1;
}
