/* What Python sees of the native ledger: `memtools.ledger._native`.

   On interpreters that run without the GIL, on machines without 64-bit addresses and where memory cannot be mapped, the
   module says so by `reason()` and does nothing else.

   Locking: every function is called under the GIL. Importing installs nothing. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "accounts.h"
#include "budgets.h"
#include "check.h"
#include "hooks.h"
#include "tallies.h"

#ifdef Py_GIL_DISABLED
#define UNSUPPORTED "it relies on the GIL, and this Python is free-threaded"
#elif UINTPTR_MAX < 0xFFFFFFFFFFFFFFFFu
#define UNSUPPORTED "it takes 64-bit addresses"
#else
#define UNSUPPORTED ""
#endif

static uint64_t era; /* counts how often the hooks had to be put in place anew */

typedef struct {
    PyObject_HEAD
    uint32_t number;
    uint64_t era;
    int is_shared; /* there was no number left: it has its parent's, and these figures to begin with */
    int64_t live_before;
    int64_t allocated_before;
    PyObject *stopper;
} Tally;

struct module_state {
    PyTypeObject *tally_type;
    PyTypeObject *account_type;
};

static PyObject *refuse(void)
{
    PyErr_Format(PyExc_RuntimeError, "the native ledger is not available: %s", hooks_reason());
    return NULL;
}

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
    Tally *self = (Tally *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }

    uint32_t above = parent == Py_None ? NOBODY : ((Tally *)parent)->number;
    while (!tallies[above].is_open) {
        above = tallies[above].parent;
    }
    self->era = era;
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
        tallies_limit(self->number, NO_CEILING, NULL);
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
        peak = tally->widened;
    }
    int64_t allocated = tally->allocated - self->allocated_before;
    return Py_BuildValue("LLL", (long long)live, (long long)peak, (long long)allocated);
}

static PyObject *Tally_is_shared(Tally *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->is_shared);
}

static PyObject *Tally_is_lost(Tally *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->era != era);
}

PyDoc_STRVAR(limit_doc, "limit($self, ceiling_bytes, stopper, /)\n--\n\n"
    "Have `stopper(used_bytes, thread)` asked for an exception when live bytes cross the ceiling, until it is closed.");

static PyObject *Tally_limit(Tally *self, PyObject *args)
{
    long long ceiling;
    PyObject *stopper;
    if (!PyArg_ParseTuple(args, "LO:limit", &ceiling, &stopper)) {
        return NULL;
    }
    if (!self->is_shared && tallies[self->number].is_open) {
        Py_XSETREF(self->stopper, Py_NewRef(stopper));
        tallies_limit(self->number, ceiling, stopper);
    }
    Py_RETURN_NONE;
}

static PyMethodDef tally_methods[] = {
    {"close", (PyCFunction)Tally_close, METH_NOARGS, close_doc},
    {"widen", (PyCFunction)Tally_widen, METH_NOARGS, widen_doc},
    {"figures", (PyCFunction)Tally_figures, METH_NOARGS, figures_doc},
    {"join", (PyCFunction)Tally_join, METH_O, join_doc},
    {"limit", (PyCFunction)Tally_limit, METH_VARARGS, limit_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef tally_attributes[] = {
    {"is_shared", (getter)Tally_is_shared, NULL, "Whether it has no number of its own, but its parent's.", NULL},
    {"is_lost", (getter)Tally_is_lost, NULL, "Whether blocks were forgotten since it was opened.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(tally_doc, "Tally(parent=None)\n--\n\nWhat one owner, and those below it, hold; held as long as this object.");

static PyType_Slot tally_slots[] = {
    {Py_tp_doc, (void *)tally_doc},       {Py_tp_new, Tally_new},
    {Py_tp_dealloc, Tally_dealloc},       {Py_tp_methods, tally_methods},
    {Py_tp_getset, tally_attributes},     {0, NULL},
};

static PyType_Spec tally_spec = {
    .name = "memtools.ledger._native.Tally",
    .basicsize = sizeof(Tally),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tally_slots,
};

PyDoc_STRVAR(reason_doc, "reason($module, /)\n--\n\nReturn why nothing can be counted here, empty if it can.");

static PyObject *native_reason(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyUnicode_FromString(*UNSUPPORTED ? UNSUPPORTED : hooks_reason());
}

PyDoc_STRVAR(install_doc, "install($module, /)\n--\n\n"
    "Put the hooks in place, if they are not, and check them; return whether they can be relied upon.");

static PyObject *native_install(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (*UNSUPPORTED) {
        Py_RETURN_FALSE;
    }
    if (tallies != NULL) {
        era++;
    }
    return PyBool_FromLong(hooks_install() == 0);
}

PyDoc_STRVAR(count_doc, "count($module, is_on, /)\n--\n\nBegin or end to count new blocks.");

static PyObject *native_count(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    int on = PyObject_IsTrue(is_on);
    if (on < 0) {
        return NULL;
    }
    if (tallies == NULL) {
        return refuse();
    }
    hooks_count(on);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(in_place_doc, "are_in_place($module, /)\n--\n\n"
    "Return whether allocations reach the hooks; asked while they count.");

static PyObject *native_are_in_place(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(tallies != NULL && check_hooks_are_in_place());
}

PyDoc_STRVAR(switch_doc, "switch($module, tally, /)\n--\n\n"
    "Charge `tally`, or nobody, for what this thread makes from now on.");

static PyObject *native_switch(PyObject *module, PyObject *tally)
{
    if (tally == Py_None) {
        here.tally = NOBODY;
        Py_RETURN_NONE;
    }
    const struct module_state *state = PyModule_GetState(module);
    if (Py_TYPE(tally) != state->tally_type) {
        PyErr_SetString(PyExc_TypeError, "neither a Tally nor None");
        return NULL;
    }
    here.tally = ((Tally *)tally)->number;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(nobodys_doc, "nobodys_bytes($module, /)\n--\n\nReturn the live bytes made while nobody had the turn.");

static PyObject *native_nobodys_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (tallies == NULL) {
        return PyLong_FromLong(0);
    }
    tallies_settle();
    return PyLong_FromLongLong((long long)tallies[NOBODY].own);
}

PyDoc_STRVAR(tallies_in_use_doc, "tallies_in_use($module, /)\n--\n\nReturn how many of 32,766 numbers are taken.");

static PyObject *native_tallies_in_use(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(tallies_in_use());
}

PyDoc_STRVAR(lost_doc, "lost_blocks($module, /)\n--\n\nReturn how many blocks were not counted for want of memory.");

static PyObject *native_lost_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(hooks_lost());
}

PyDoc_STRVAR(main_thread_doc, "set_main_thread($module, ident, /)\n--\n\n"
    "Say which thread the interpreter takes for its main one.");

static PyObject *native_set_main_thread(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long thread = PyLong_AsUnsignedLong(ident);
    if (thread == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    budgets_set_main_thread(thread);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"are_in_place", native_are_in_place, METH_NOARGS, in_place_doc},
    {"count", native_count, METH_O, count_doc},
    {"install", native_install, METH_NOARGS, install_doc},
    {"lost_blocks", native_lost_blocks, METH_NOARGS, lost_doc},
    {"nobodys_bytes", native_nobodys_bytes, METH_NOARGS, nobodys_doc},
    {"reason", native_reason, METH_NOARGS, reason_doc},
    {"set_main_thread", native_set_main_thread, METH_O, main_thread_doc},
    {"switch", native_switch, METH_O, switch_doc},
    {"tallies_in_use", native_tallies_in_use, METH_NOARGS, tallies_in_use_doc},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->tally_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tally_spec, NULL);
    state->account_type = accounts_make_type(module);
    if (state->tally_type == NULL || state->account_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->tally_type) < 0 ? -1 : PyModule_AddType(module, state->account_type);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->tally_type);
    Py_VISIT(state->account_type);
    return 0;
}

static int clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->tally_type);
    Py_CLEAR(state->account_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* where there is none, the module does nothing but say so */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.ledger._native",
    .m_doc = "Count the bytes of each owner in the allocator itself.",
    .m_size = sizeof(struct module_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
