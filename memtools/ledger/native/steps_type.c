/* The type of what is followed, as Python sees it; see steps.h, and driver.h for what it is for. */

#include "steps.h"

#include <structmember.h>

#include "driver.h"
#include "first_step.h"
#include "raised.h"
#include "seats.h"
#include "tasks.h"
#include "turns.h"

static PyTypeObject *steps_type;
static PyObject *close_name, *send_name, *name_name, *qualname_name, *task_kind;

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
