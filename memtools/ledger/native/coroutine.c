/* The task of a thread, and its name; see tasks.h. */

#include "coroutine.h"

#include <structmember.h>

#include "compat.h"
#include "objects.h"
#include "owners.h"

static PyObject *current_task;                /* given by `find_tasks` */
static PyObject *running_loop, *task_of_loop; /* given by `know_tasks`, once asyncio is there */
static PyObject *get_name_name;
static PyObject *close_name, *send_name, *name_name, *qualname_name, *task_kind;

int tasks_are_known(void)
{
    return current_task != NULL;
}

PyObject *tasks_current(void)
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

PyObject *tasks_name(PyObject *task, PyObject *coroutine)
{
    PyObject *name = task == Py_None ? NULL : PyObject_CallMethodNoArgs(task, get_name_name);
    if (name == NULL && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return NULL;
    }
    PyErr_Clear();
    if (name == NULL || (PyUnicode_CheckExact(name) && is_automatic(name))) {
        Py_XSETREF(name, PyObject_GetAttr(coroutine, qualname_name));
    }
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        Py_CLEAR(name);
    }
    return name;
}

PyDoc_STRVAR(find_doc, "find_tasks($module, current_task, /)\n--\n\nAsk that callable which task runs in this thread.");

static PyObject *native_find_tasks(PyObject *Py_UNUSED(module), PyObject *finder)
{
    Py_XSETREF(current_task, Py_NewRef(finder));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(know_doc, "know_tasks($module, running_loop, current_task, /)\n--\n\n"
    "Ask those two callables instead: which loop runs in this thread, and which task in that loop.");

static PyObject *native_know_tasks(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *running, *of_loop;
    if (!PyArg_ParseTuple(args, "OO:know_tasks", &running, &of_loop)) {
        return NULL;
    }
    Py_XSETREF(running_loop, Py_NewRef(running));
    Py_XSETREF(task_of_loop, Py_NewRef(of_loop));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"find_tasks", native_find_tasks, METH_O, find_doc},
    {"know_tasks", native_know_tasks, METH_VARARGS, know_doc},
    {NULL, NULL, 0, NULL},
};

int tasks_register(PyObject *module)
{
    if (get_name_name == NULL) {
        get_name_name = PyUnicode_InternFromString("get_name");
        if (get_name_name == NULL) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, functions);
}

/* The first step of what is followed; see first_step.h. */

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

/* The steps of a coroutine, from the loop's call to the coroutine and back; see driver.h. */

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

/* The type of what is followed, as Python sees it; see steps.h, and driver.h for what it is for. */

static PyTypeObject *steps_type;

/* As a coroutine does: who is dropped while suspended is closed. Otherwise its owner would stay open for ever. */
static void Steps_finalize(PyObject *self)
{
    if (((Steps *)self)->steps == 0 || ((Steps *)self)->has_ended) {
        return;
    }
    PyObject *passing = PyErr_Occurred() ? take_exception() : NULL;
    PyObject *result = PyObject_CallMethodNoArgs(self, close_name);
    if (result == NULL) {
        PyErr_WriteUnraisable(self);
    }
    Py_XDECREF(result);
    if (passing != NULL) {
        raise_again(passing);
    }
}

static int is_sendable(PyObject *inner)
{
    PyAsyncMethods *async = Py_TYPE(inner)->tp_as_async;
    if (async != NULL && async->am_send != NULL) {
        return 1;
    }
    PyObject *send = PyObject_GetAttr(inner, send_name); /* for the error that says so */
    Py_XDECREF(send);
    return send != NULL;
}

static int Steps_init(Steps *self, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"inner", "meter", "name", "kind", "budget", "include_children", "is_layered", "on_end",
                               "joins", NULL};
    int joins = 0;
    PyObject *inner, *meter, *name = Py_None, *kind = task_kind, *budget = Py_None;
    PyObject *include_children = Py_True, *is_layered = Py_False, *on_end = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "OO|$OOOOOOp:Driven", keywords, &inner, &meter, &name, &kind, &budget,
                                     &include_children, &is_layered, &on_end, &joins) ||
        !is_sendable(inner)) {
        return -1;
    }
    Py_XSETREF(self->inner, Py_NewRef(inner));
    Py_XSETREF(self->meter, Py_NewRef(meter));
    Py_XSETREF(self->name, Py_NewRef(name));
    Py_XSETREF(self->kind, Py_NewRef(kind));
    Py_XSETREF(self->budget, Py_NewRef(budget));
    Py_XSETREF(self->include_children, Py_NewRef(include_children));
    Py_XSETREF(self->is_layered, Py_NewRef(is_layered));
    Py_XSETREF(self->on_end, Py_NewRef(on_end));
    Py_XSETREF(self->owner, Py_NewRef(Py_None));
    Py_XSETREF(self->task, Py_NewRef(Py_None));
    self->joins = (char)joins;
    return 0;
}

PyDoc_STRVAR(following_doc, "following($self, inner, /)\n--\n\nReturn another one, for that coroutine, made as this one was.");

static PyObject *Steps_following(Steps *self, PyObject *inner)
{
    if (self->meter == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "there is nothing to go by");
        return NULL;
    }
    if (!PyCoro_CheckExact(inner) && !is_sendable(inner)) {
        return NULL;
    }
    Steps *made = (Steps *)Py_TYPE(self)->tp_alloc(Py_TYPE(self), 0);
    if (made != NULL) {
        made->inner = Py_NewRef(inner);
        made->meter = Py_XNewRef(self->meter);
        made->name = Py_XNewRef(self->name);
        made->kind = Py_XNewRef(self->kind);
        made->budget = Py_XNewRef(self->budget);
        made->include_children = Py_XNewRef(self->include_children);
        made->is_layered = Py_XNewRef(self->is_layered);
        made->on_end = Py_XNewRef(self->on_end);
        made->owner = Py_NewRef(Py_None);
        made->task = Py_NewRef(Py_None);
        made->given_name = Py_XNewRef(self->given_name);
        made->given_qualname = Py_XNewRef(self->given_qualname);
        made->joins = self->joins;
    }
    return (PyObject *)made;
}

static int Steps_traverse(Steps *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(field) VISIT_CONTAINER(self->field)
    EACH_OBJECT(VISIT)
    return 0;
}

static int Steps_clear(Steps *self)
{
#define CLEAR(field) Py_CLEAR(self->field);
    EACH_OBJECT(CLEAR)
    return 0;
}

static void Steps_dealloc(Steps *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)Steps_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Names: those that were given to it, or else those of what it runs. */

static PyObject *Steps_get_qualname(Steps *self, void *Py_UNUSED(none))
{
    if (self->given_qualname != NULL) {
        return Py_NewRef(self->given_qualname);
    }
    if (!steps_has_inner(self)) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttr(self->inner, qualname_name);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        found = PyObject_GetAttr((PyObject *)Py_TYPE(self->inner), qualname_name);
    }
    return found;
}

static PyObject *Steps_get_name(Steps *self, void *none)
{
    if (self->given_name != NULL) {
        return Py_NewRef(self->given_name);
    }
    if (!steps_has_inner(self)) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttr(self->inner, name_name);
    if (found == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        found = Steps_get_qualname(self, none);
    }
    return found;
}

static int Steps_set_name(Steps *self, PyObject *given, void *Py_UNUSED(none))
{
    Py_XSETREF(self->given_name, Py_XNewRef(given));
    return 0;
}

static int Steps_set_qualname(Steps *self, PyObject *given, void *Py_UNUSED(none))
{
    Py_XSETREF(self->given_qualname, Py_XNewRef(given));
    return 0;
}

static PyObject *itself(PyObject *self)
{
    return Py_NewRef(self);
}

static PyMemberDef steps_members[] = {
    {"_inner", T_OBJECT_EX, offsetof(Steps, inner), READONLY, NULL},
    {"_meter", T_OBJECT_EX, offsetof(Steps, meter), READONLY, NULL},
    {"name", T_OBJECT_EX, offsetof(Steps, name), 0, NULL},
    {"kind", T_OBJECT_EX, offsetof(Steps, kind), 0, NULL},
    {"budget", T_OBJECT_EX, offsetof(Steps, budget), 0, NULL},
    {"include_children", T_OBJECT_EX, offsetof(Steps, include_children), 0, NULL},
    {"is_layered", T_OBJECT_EX, offsetof(Steps, is_layered), 0, NULL},
    {"on_end", T_OBJECT_EX, offsetof(Steps, on_end), 0, NULL},
    {"owner", T_OBJECT_EX, offsetof(Steps, owner), 0, NULL},
    {"task", T_OBJECT_EX, offsetof(Steps, task), 0, NULL},
    {"_overrun", T_OBJECT, offsetof(Steps, overrun), 0, NULL},
    {"_steps", T_PYSSIZET, offsetof(Steps, steps), 0, NULL},
    {"_has_ended", T_BOOL, offsetof(Steps, has_ended), 0, NULL},
    {"joins", T_BOOL, offsetof(Steps, joins), 0, NULL},
    {"_is_joined", T_BOOL, offsetof(Steps, is_joined), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Steps, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef steps_attributes[] = {
    {"__name__", (getter)Steps_get_name, (setter)Steps_set_name, NULL, NULL},
    {"__qualname__", (getter)Steps_get_qualname, (setter)Steps_set_qualname, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nRun one step.");

PyDoc_STRVAR(throw_doc, "throw($self, kind, error=None, trace=None, /)\n--\n\n"
    "Throw into the coroutine, inside a charged step; cancellation passes through here.");

static PyObject *Steps_iternext(PyObject *self)
{
    return steps_send(self, Py_None);
}

PyDoc_STRVAR(subclass_doc, "__init_subclass__($type, /)\n--\n\nHave loops send to the class as they do to this one.");

/* Of the slots of a coroutine CPython passes on all but this one: up to 3.13 a class below would be asked by `__next__`,
   and its result would come as an exception. */
static PyObject *Steps_init_subclass(PyObject *type, PyObject *Py_UNUSED(none))
{
    PyAsyncMethods *async = ((PyTypeObject *)type)->tp_as_async;
    PyObject *send = PyObject_GetAttr(type, send_name), *ours = PyObject_GetAttr((PyObject *)steps_type, send_name);
    if (send != NULL && send == ours && async != NULL) {
        async->am_send = steps_am_send;
    }
    PyObject *result = send == NULL || ours == NULL ? NULL : Py_NewRef(Py_None);
    Py_XDECREF(send);
    Py_XDECREF(ours);
    return result;
}

static PyMethodDef steps_methods[] = {
    {"following", (PyCFunction)Steps_following, METH_O, following_doc},
    {"send", steps_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))steps_throw, METH_FASTCALL, throw_doc},
    {"__init_subclass__", Steps_init_subclass, METH_NOARGS | METH_CLASS, subclass_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(steps_doc, "The steps of a coroutine; see `_steps.PureSteps`.");

static PyType_Slot steps_slots[] = {
    {Py_tp_doc, (void *)steps_doc},    {Py_tp_new, PyType_GenericNew},    {Py_tp_init, Steps_init},
    {Py_tp_traverse, Steps_traverse},  {Py_tp_clear, Steps_clear},        {Py_tp_dealloc, Steps_dealloc},
    {Py_tp_finalize, Steps_finalize},  {Py_tp_members, steps_members},    {Py_tp_getset, steps_attributes},
    {Py_tp_methods, steps_methods},    {Py_tp_iter, itself},              {Py_tp_iternext, Steps_iternext},
    {Py_am_await, itself},             {Py_am_send, steps_am_send},       {0, NULL},
};

static PyType_Spec steps_spec = {
    .name = "memtools.ledger._native.Steps",
    .basicsize = sizeof(Steps),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = steps_slots,
};

Steps *steps_from(PyObject *driver)
{
    return driver != NULL && PyObject_TypeCheck(driver, steps_type) ? (Steps *)driver : NULL;
}

Py_ssize_t driver_steps(PyObject *driver)
{
    if (steps_from(driver) != NULL) {
        return ((Steps *)driver)->steps;
    }
    PyObject *steps = PyObject_GetAttrString(driver, "steps");
    Py_ssize_t taken = steps == NULL ? -1 : PyLong_AsSsize_t(steps);
    Py_XDECREF(steps);
    return taken;
}

static int make_names(void)
{
    close_name = PyUnicode_InternFromString("close");
    send_name = PyUnicode_InternFromString("send");
    name_name = PyUnicode_InternFromString("__name__");
    qualname_name = PyUnicode_InternFromString("__qualname__");
    task_kind = PyUnicode_InternFromString("task");
    return close_name && send_name && name_name && qualname_name && task_kind ? 0 : -1;
}

int driver_register(PyObject *module, PyTypeObject *tally_type)
{
    if (seats_register(module) < 0 || turns_register(module, tally_type) < 0) {
        return -1;
    }
    if (steps_type == NULL) {
        if (make_names() < 0 || steps_start() < 0 || first_step_start() < 0) {
            return -1;
        }
        steps_type = (PyTypeObject *)PyType_FromSpec(&steps_spec);
        if (steps_type == NULL) {
            return -1;
        }
    }
    return PyModule_AddType(module, steps_type) < 0 ? -1 : tasks_register(module);
}
