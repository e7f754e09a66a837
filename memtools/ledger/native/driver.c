/* The steps of a coroutine, from the loop's call to the coroutine and back; see driver.h. */

#include "driver.h"

#include <structmember.h>

#include "book.h"
#include "seats.h"
#include "turns.h"

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
} Steps;

#define EACH_OBJECT(DO)                                                                                             \
    DO(inner) DO(meter) DO(name) DO(kind) DO(budget) DO(include_children) DO(is_layered) DO(on_end) DO(owner)       \
    DO(task) DO(overrun) DO(given_name) DO(given_qualname)

/* What a step has taken, and gives back. */
struct turn {
    struct slot *slot;
    PyObject *owner_before;
    PyObject *driver_before;
};

static PyTypeObject *steps_type;
static PyObject *current_task; /* given by `find_tasks` */
static PyObject *begin_name, *end_name, *check_name, *close_name, *throw_name, *value_name, *send_name;
static PyObject *name_name, *qualname_name, *task_kind;

/* Exceptions as single objects, which they are in the API since 3.12. */

static PyObject *take_exception(void)
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

static void raise_again(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}

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

/* Whether there is a coroutine; not before `__init__`, nor after a collection has cleared us. */
static int has_inner(const Steps *self)
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

/* Open its own owner, if it is a plain one; 0 if not. -1 with an exception. */
static int begin_plainly(Steps *self)
{
    if (current_task == NULL || self->budget != Py_None || self->is_layered == Py_True || !PyUnicode_Check(self->name) ||
        PyUnicode_GetLength(self->name) == 0) {
        return 0;
    }
    PyObject *task = PyObject_CallNoArgs(current_task);
    if (task == NULL) {
        return -1;
    }
    Py_XSETREF(self->task, task);
    PyObject *owner = book_open_plain(self->meter, self->kind, self->name, self->include_children == Py_True,
                                      (PyObject *)self);
    if (owner == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    Py_XSETREF(self->owner, owner);
    return 1;
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
        Py_XSETREF(self->task, Py_NewRef(Py_None)); /* a task holds its coroutine for good */
        PyObject *told = Py_NewRef(Py_None);
        if (turns_give(slot, owner_before) < 0) {
            has_settled = -1;
        }
        else if (self->on_end != Py_None && self->on_end != NULL) {
            Py_SETREF(told, PyObject_CallFunctionObjArgs(self->on_end, owner, Py_None, NULL));
        }
        has_settled = told == NULL ? -1 : has_settled;
        Py_XDECREF(told);
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

static PySendResult Steps_am_send(PyObject *object, PyObject *value, PyObject **result)
{
    Steps *self = (Steps *)object;
    struct turn turn = {.slot = has_inner(self) ? turns_slot() : NULL};
    *result = NULL;
    if (turn.slot == NULL) {
        return PYGEN_ERROR;
    }
    Py_INCREF(self); /* the coroutine may let go of what holds us */
    PySendResult status = PYGEN_ERROR;
    if (take_turn(self, &turn) == 0) {
        status = self->overrun == NULL || self->overrun == Py_None ? PyIter_Send(self->inner, value, result)
                                                                   : stop(self, result);
    }
    status = give_turn_back(self, &turn, status, result);
    Py_DECREF(self);
    return status;
}

PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nRun one step.");

static PyObject *Steps_send(PyObject *self, PyObject *value)
{
    PyObject *result;
    PySendResult status = Steps_am_send(self, value, &result);
    return as_returned(status, result);
}

static PyObject *Steps_iternext(PyObject *self)
{
    return Steps_send(self, Py_None);
}

PyDoc_STRVAR(throw_doc, "throw($self, kind, error=None, trace=None, /)\n--\n\n"
    "Throw into the coroutine, inside a charged step; cancellation passes through here.");

static PyObject *Steps_throw(Steps *self, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception, or a type, a value and a traceback");
        return NULL;
    }
    struct turn turn = {.slot = has_inner(self) ? turns_slot() : NULL};
    if (turn.slot == NULL) {
        return NULL;
    }
    Py_INCREF(self);
    PyObject *result = NULL;
    PySendResult status = PYGEN_ERROR;
    if (take_turn(self, &turn) == 0) {
        /* One argument wherever possible: the other signature is deprecated since 3.12. */
        PyObject *arguments[4] = {self->inner, args[0]};
        size_t given = 1;
        if (count > 1 && args[1] != Py_None) {
            given = 3;
            arguments[2] = args[1];
            arguments[3] = count > 2 ? args[2] : Py_None;
        }
        result = PyObject_VectorcallMethod(throw_name, arguments, given + 1, NULL);
        status = as_sent(&result);
    }
    status = give_turn_back(self, &turn, status, &result);
    Py_DECREF(self);
    return as_returned(status, result);
}

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
    static char *keywords[] = {"inner", "meter", "name", "kind", "budget", "include_children", "is_layered", "on_end", NULL};
    PyObject *inner, *meter, *name = Py_None, *kind = task_kind, *budget = Py_None;
    PyObject *include_children = Py_True, *is_layered = Py_False, *on_end = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "OO|$OOOOOO:Driven", keywords, &inner, &meter, &name, &kind, &budget,
                                     &include_children, &is_layered, &on_end) ||
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
    return 0;
}

static int Steps_traverse(Steps *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(field) Py_VISIT(self->field);
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
    if (!has_inner(self)) {
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
    if (!has_inner(self)) {
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
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Steps, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef steps_attributes[] = {
    {"__name__", (getter)Steps_get_name, (setter)Steps_set_name, NULL, NULL},
    {"__qualname__", (getter)Steps_get_qualname, (setter)Steps_set_qualname, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef steps_methods[] = {
    {"send", Steps_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))Steps_throw, METH_FASTCALL, throw_doc},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(steps_doc, "The steps of a coroutine; see `_steps.PureSteps`.");

static PyType_Slot steps_slots[] = {
    {Py_tp_doc, (void *)steps_doc},    {Py_tp_new, PyType_GenericNew},    {Py_tp_init, Steps_init},
    {Py_tp_traverse, Steps_traverse},  {Py_tp_clear, Steps_clear},        {Py_tp_dealloc, Steps_dealloc},
    {Py_tp_finalize, Steps_finalize},  {Py_tp_members, steps_members},    {Py_tp_getset, steps_attributes},
    {Py_tp_methods, steps_methods},    {Py_tp_iter, itself},              {Py_tp_iternext, Steps_iternext},
    {Py_am_await, itself},             {Py_am_send, Steps_am_send},       {0, NULL},
};

static PyType_Spec steps_spec = {
    .name = "memtools.ledger._native.Steps",
    .basicsize = sizeof(Steps),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = steps_slots,
};

Py_ssize_t driver_steps(PyObject *driver)
{
    if (PyObject_TypeCheck(driver, steps_type)) {
        return ((Steps *)driver)->steps;
    }
    PyObject *steps = PyObject_GetAttrString(driver, "steps");
    Py_ssize_t taken = steps == NULL ? -1 : PyLong_AsSsize_t(steps);
    Py_XDECREF(steps);
    return taken;
}

static int make_names(void)
{
    struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&begin_name, "_begin"}, {&end_name, "_end"},     {&check_name, "_check_budgets"}, {&close_name, "close"},
        {&throw_name, "throw"},  {&value_name, "value"},  {&send_name, "send"},            {&name_name, "__name__"},
        {&task_kind, "task"},    {&qualname_name, "__qualname__"},
    };
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        *names[n].name = PyUnicode_InternFromString(names[n].text);
        if (*names[n].name == NULL) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(find_doc, "find_tasks($module, current_task, /)\n--\n\nAsk that callable which task runs in this thread.");

static PyObject *native_find_tasks(PyObject *Py_UNUSED(module), PyObject *finder)
{
    Py_XSETREF(current_task, Py_NewRef(finder));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"find_tasks", native_find_tasks, METH_O, find_doc},
    {NULL, NULL, 0, NULL},
};

int driver_register(PyObject *module, PyTypeObject *tally_type)
{
    if (seats_register(module) < 0 || turns_register(module, tally_type) < 0) {
        return -1;
    }
    if (steps_type == NULL) {
        if (make_names() < 0) {
            return -1;
        }
        steps_type = (PyTypeObject *)PyType_FromSpec(&steps_spec);
        if (steps_type == NULL) {
            return -1;
        }
    }
    return PyModule_AddType(module, steps_type) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
