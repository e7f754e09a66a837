/* The type `Tally`: what one owner, and those below it, hold; see module.h. */

#include "module.h"

#include "accounts.h"
#include "budgets.h"
#include "hooks.h"
#include "interpreters.h"
#include "tallies.h"

uint64_t tally_era;

static PyObject *Tally_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"parent", NULL};
    PyObject *parent = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "|O:Tally", keywords, &parent)) {
        return NULL;
    }
    if (parent != Py_None && Py_TYPE(parent) != type) {
        PyErr_SetString(PyExc_TypeError, "parent is neither a Tally nor None");
        return NULL;
    }
    if (tallies == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "install() comes first");
        return NULL;
    }
    interpreters_look();
    Tally *self = (Tally *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }

    uint32_t above = parent == Py_None ? NOBODY : ((Tally *)parent)->number;
    while (!tallies[above].is_open) {
        above = tallies[above].parent;
    }
    self->era = tally_era;
    self->number = tallies_open(above);
    if (self->number == NOBODY) {
        self->is_shared = 1;
        self->number = above;
        self->live_before = tallies[above].live;
        self->allocated_before = tallies[above].allocated;
    }
    return (PyObject *)self;
}

static void Tally_dealloc(Tally *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (!self->is_shared && self->number != NOBODY) {
        if (here.tally == self->number) {
            here.tally = NOBODY; /* the number may be another's soon */
        }
        tallies_release(self->number);
    }
    Py_CLEAR(self->stopper);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(join_doc, "join($self, account, /)\n--\n\nHave its own bytes counted in that account, and in no other.");

static PyObject *Tally_join(Tally *self, PyObject *account)
{
    const struct module_state *state = PyType_GetModuleState(Py_TYPE(self));
    if (Py_TYPE(account) != state->account_type) {
        PyErr_SetString(PyExc_TypeError, "not an Account");
        return NULL;
    }
    if (!self->is_shared) {
        tallies_settle();
        accounts_part(self->number);
        accounts_join(self->number, accounts_number(account));
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nTake no more from tallies below; live bytes go on falling.");

static PyObject *Tally_close(Tally *self, PyObject *Py_UNUSED(none))
{
    if (!self->is_shared && tallies[self->number].is_open) {
        tallies_close(self->number);
    }
    Py_CLEAR(self->stopper);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(widen_doc, "widen($self, /)\n--\n\nFollow the whole process from now on, from where it stood at the opening.");

static PyObject *Tally_widen(Tally *self, PyObject *Py_UNUSED(none))
{
    if (!self->is_shared && tallies[self->number].is_open) {
        tallies_limit(self->number, NO_CEILING, NO_CEILING, NULL);
        tallies_widen(self->number);
    }
    Py_CLEAR(self->stopper);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(figures_doc, "figures($self, /)\n--\n\nReturn live, peak and allocated bytes up to now.");

static PyObject *Tally_figures(Tally *self, PyObject *Py_UNUSED(none))
{
    tallies_settle();
    const struct tally *tally = &tallies[self->number];
    int64_t live = tally->live - self->live_before;
    int64_t peak = tally->peak - self->live_before;
    if (tally->is_wide) {
        live = tallies[NOBODY].live - tally->start;
        peak = tallies_wide_peak(self->number);
    }
    int64_t allocated = tally->allocated - self->allocated_before;
    return Py_BuildValue("LLL", (long long)live, (long long)peak, (long long)allocated);
}

PyDoc_STRVAR(tell_doc, "tell_once($self, /)\n--\n\nReturn whether this is the first call: a refusal is told once.");

static PyObject *Tally_tell_once(Tally *self, PyObject *Py_UNUSED(none))
{
    int has_told = self->has_told;
    self->has_told = 1;
    return PyBool_FromLong(!has_told);
}

static PyObject *Tally_refused(Tally *self, void *Py_UNUSED(none))
{
    const struct tally *tally = &tallies[self->number];
    return Py_BuildValue("LL", self->is_shared ? 0 : (long long)tally->refused, (long long)tally->wanted);
}

static PyObject *Tally_is_shared(Tally *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->is_shared);
}

static PyObject *Tally_is_lost(Tally *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->era != tally_era);
}

PyDoc_STRVAR(limit_doc, "limit($self, ceiling_bytes, is_wall, stopper, /)\n--\n\n"
    "Have `stopper(used_bytes, thread, is_refused)` asked for an exception when live bytes cross the ceiling, and large\n"
    "blocks refused that would take them over it, or over the grace on top of it; until it is closed.");

static PyObject *Tally_limit(Tally *self, PyObject *args)
{
    long long ceiling;
    int is_wall;
    PyObject *stopper;
    if (!PyArg_ParseTuple(args, "LpO:limit", &ceiling, &is_wall, &stopper)) {
        return NULL;
    }
    if (!self->is_shared && tallies[self->number].is_open) {
        Py_XSETREF(self->stopper, Py_NewRef(stopper));
        int64_t wall = is_wall || ceiling >= NO_CEILING / 2 ? ceiling : ceiling + budgets_grace(ceiling);
        tallies_limit(self->number, ceiling, wall, stopper);
        budgets_get_ready();
    }
    Py_RETURN_NONE;
}

static PyMethodDef tally_methods[] = {
    {"close", (PyCFunction)Tally_close, METH_NOARGS, close_doc},
    {"widen", (PyCFunction)Tally_widen, METH_NOARGS, widen_doc},
    {"figures", (PyCFunction)Tally_figures, METH_NOARGS, figures_doc},
    {"join", (PyCFunction)Tally_join, METH_O, join_doc},
    {"limit", (PyCFunction)Tally_limit, METH_VARARGS, limit_doc},
    {"tell_once", (PyCFunction)Tally_tell_once, METH_NOARGS, tell_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tally_attributes[] = {
    {"is_shared", (getter)Tally_is_shared, NULL, "Whether it has no number of its own, but its parent's.", NULL},
    {"refused", (getter)Tally_refused, NULL, "How many blocks were refused, and what the largest would have led to.",
     NULL},
    {"is_lost", (getter)Tally_is_lost, NULL, "Whether blocks were forgotten since it was opened.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(tally_doc, "Tally(parent=None)\n--\n\nWhat one owner, and those below it, hold; held as long as this object.");

static PyType_Slot tally_slots[] = {
    {Py_tp_doc, (void *)tally_doc},       {Py_tp_new, Tally_new},
    {Py_tp_dealloc, Tally_dealloc},       {Py_tp_methods, tally_methods},
    {Py_tp_getset, tally_attributes},     {0, NULL},
};

PyType_Spec tally_spec = {
    .name = "memtools.ledger._native.Tally",
    .basicsize = sizeof(Tally),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tally_slots,
};
