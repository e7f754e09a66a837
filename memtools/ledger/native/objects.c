/* The Python types and the functions that concern the current owner. */

#include "objects.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#include "compat.h"
#include "counters.h"
#include "hooks.h"
#include "interpreters.h"
#include "layout.h"
#include "limits.h"
#include "threads.h"

struct runtime runtime;
uint64_t objects_session;

PyTypeObject *objects_owner_type;
PyTypeObject *objects_owner_class;
PyTypeObject *objects_account_type;
PyTypeObject *objects_slot_type;
PyTypeObject *objects_counter_type;
PyTypeObject *objects_totals_type;

static PyObject *active_variable; /* the context variable of the active owner */
static PyObject *make_slot;       /* called once in each thread */
static PyObject *slot_key, *switch_name;

/* The slot of this thread for as long as the thread has this state: a lookup in the state's dict takes ten times as
   long. A new state may have the address of an earlier one, but has another number. */
static _Thread_local struct {
    PyThreadState *state;
    uint64_t number;
    struct thread_slot *slot; /* borrowed */
} cached INITIAL_EXEC;

/* Initial values of an owner's fields. */
static PyObject *FLOAT_ZERO, *INFINITE, *INT_ZERO, *EMPTY_STRING, *EMPTY_TUPLE;

/* The types `OwnerFields`, `AccountFields` and `ThreadSlot`. */

static int objects_make_initial_values(void)
{
    FLOAT_ZERO = PyFloat_FromDouble(0.0);
    INFINITE = PyFloat_FromDouble(Py_HUGE_VAL);
    INT_ZERO = PyLong_FromLong(0);
    EMPTY_STRING = PyUnicode_FromString("");
    EMPTY_TUPLE = PyTuple_New(0);
    return FLOAT_ZERO && INFINITE && INT_ZERO && EMPTY_STRING && EMPTY_TUPLE ? 0 : -1;
}

struct owner *objects_new_owner(PyTypeObject *type, PyObject *name, PyObject *kind, PyObject *meter, PyObject *parent,
                              PyObject *account)
{
    struct owner *self = (struct owner *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
#define FIELD(field, initial) self->field = Py_NewRef(initial);
    OWNER_FIELDS(FIELD)
#undef FIELD
    Py_SETREF(self->name, Py_NewRef(name));
    Py_SETREF(self->kind, Py_NewRef(kind));
    Py_SETREF(self->meter, Py_NewRef(meter));
    Py_SETREF(self->parent, Py_NewRef(parent));
    Py_SETREF(self->account, Py_NewRef(account));
    return self;
}

static PyObject *objects_owner_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"name",   "kind",   "meter", "parent", "account", "include_children",
                               "budget", "is_untracked", NULL};
    PyObject *name, *kind, *meter, *parent, *account;
    PyObject *include_children = Py_True, *budget = Py_None, *is_untracked = Py_False;
    if (!PyArg_ParseTupleAndKeywords(args, names, "OOOOO|OOO:OwnerFields", keywords, &name, &kind, &meter, &parent,
                                     &account, &include_children, &budget, &is_untracked)) {
        return NULL;
    }
    struct owner *self = objects_new_owner(type, name, kind, meter, parent, account);
    if (self != NULL) {
        Py_SETREF(self->include_children, Py_NewRef(include_children));
        Py_SETREF(self->budget, Py_NewRef(budget));
        Py_SETREF(self->is_untracked, Py_NewRef(is_untracked));
    }
    return (PyObject *)self;
}

static int objects_owner_traverse(struct owner *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define FIELD(field, initial) VISIT_CONTAINER(self->field)
    OWNER_FIELDS(FIELD)
#undef FIELD
    return 0;
}

static int objects_owner_clear(struct owner *self)
{
#define FIELD(field, initial) Py_CLEAR(self->field);
    OWNER_FIELDS(FIELD)
#undef FIELD
    return 0;
}

static void objects_owner_dealloc(struct owner *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)objects_owner_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef owner_members[] = {
#define FIELD(field, initial) {#field, T_OBJECT_EX, offsetof(struct owner, field), 0, NULL},
    OWNER_FIELDS(FIELD)
#undef FIELD
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct owner, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(owner_doc, "The fields of an owner; see `_owner.PythonOwnerFields`.");

static PyType_Slot owner_slots[] = {
    {Py_tp_doc, (void *)owner_doc},
    {Py_tp_new, objects_owner_new},
    {Py_tp_traverse, objects_owner_traverse},
    {Py_tp_clear, objects_owner_clear},
    {Py_tp_dealloc, objects_owner_dealloc},
    {Py_tp_members, owner_members},
    {0, NULL},
};

static PyType_Spec owner_spec = {
    .name = "memtools.ledger._native.OwnerFields",
    .basicsize = sizeof(struct owner),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = owner_slots,
};

#define ACCOUNT_OBJECT_FIELDS(DO) \
    DO(children) DO(count) DO(totals) DO(kind) DO(checkpoints) DO(meter) DO(name) DO(note) DO(parent)

static int objects_account_traverse(struct account *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(field) Py_VISIT(self->field);
    ACCOUNT_OBJECT_FIELDS(VISIT)
#undef VISIT
    return 0;
}

static int objects_account_clear(struct account *self)
{
#define CLEAR(field) Py_CLEAR(self->field);
    ACCOUNT_OBJECT_FIELDS(CLEAR)
#undef CLEAR
    return 0;
}

static void objects_account_dealloc(struct account *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)objects_account_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef account_members[] = {
    {"children", T_OBJECT_EX, offsetof(struct account, children), 0, NULL},
    {"_count", T_OBJECT_EX, offsetof(struct account, count), 0, NULL},
    {"totals", T_OBJECT_EX, offsetof(struct account, totals), 0, NULL},
    {"kind", T_OBJECT_EX, offsetof(struct account, kind), 0, NULL},
    {"checkpoints", T_OBJECT_EX, offsetof(struct account, checkpoints), 0, NULL},
    {"meter", T_OBJECT_EX, offsetof(struct account, meter), 0, NULL},
    {"name", T_OBJECT_EX, offsetof(struct account, name), 0, NULL},
    {"note", T_OBJECT_EX, offsetof(struct account, note), 0, NULL},
    {"parent", T_OBJECT_EX, offsetof(struct account, parent), 0, NULL},
    {"active", T_LONGLONG, offsetof(struct account, active), 0, NULL},
    {"ended", T_LONGLONG, offsetof(struct account, ended), 0, NULL},
    {"started", T_LONGLONG, offsetof(struct account, started), 0, NULL},
    {"failed", T_LONGLONG, offsetof(struct account, failed), 0, NULL},
    {"peak", T_LONGLONG, offsetof(struct account, peak), 0, NULL},
    {"peak_sum", T_LONGLONG, offsetof(struct account, peak_sum), 0, NULL},
    {"retained", T_LONGLONG, offsetof(struct account, retained), 0, NULL},
    {"steps", T_LONGLONG, offsetof(struct account, steps), 0, NULL},
    {"duration_s", T_DOUBLE, offsetof(struct account, duration_s), 0, NULL},
    {"excludes_children", T_BOOL, offsetof(struct account, excludes_children), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(account_doc, "The sums of an account; see `_owner.Account`.");

static PyType_Slot account_slots[] = {
    {Py_tp_doc, (void *)account_doc},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_traverse, objects_account_traverse},
    {Py_tp_clear, objects_account_clear},
    {Py_tp_dealloc, objects_account_dealloc},
    {Py_tp_members, account_members},
    {0, NULL},
};

static PyType_Spec account_spec = {
    .name = "memtools.ledger._native.AccountFields",
    .basicsize = sizeof(struct account),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = account_slots,
};

static PyObject *objects_slot_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    if (PyTuple_GET_SIZE(args) > 0 || (names != NULL && PyDict_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "ThreadSlot() takes no arguments");
        return NULL;
    }
    struct thread_slot *self = (struct thread_slot *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->owner = Py_NewRef(Py_None);
    self->tracker = Py_NewRef(Py_None);
    self->scheduled_on = Py_NewRef(Py_None);
    self->untracked_candidates = PyList_New(0);
    if (self->untracked_candidates == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int objects_slot_traverse(struct thread_slot *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->tracker);
    Py_VISIT(self->untracked_candidates);
    Py_VISIT(self->scheduled_on);
    return 0;
}

static int objects_slot_clear(struct thread_slot *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->tracker);
    Py_CLEAR(self->untracked_candidates);
    Py_CLEAR(self->scheduled_on);
    return 0;
}

static void objects_slot_dealloc(struct thread_slot *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (cached.slot == self) {
        cached.slot = NULL;
    }
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)objects_slot_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef slot_members[] = {
    {"owner", T_OBJECT_EX, offsetof(struct thread_slot, owner), 0, NULL},
    {"tracker", T_OBJECT_EX, offsetof(struct thread_slot, tracker), 0, NULL},
    {"untracked_candidates", T_OBJECT_EX, offsetof(struct thread_slot, untracked_candidates), 0, NULL},
    {"scheduled_on", T_OBJECT_EX, offsetof(struct thread_slot, scheduled_on), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct thread_slot, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(slot_doc, "ThreadSlot()\n--\n\nWhat one thread is doing; see `_owner.PythonThreadSlot`.");

static PyType_Slot slot_type_slots[] = {
    {Py_tp_doc, (void *)slot_doc},
    {Py_tp_new, objects_slot_new},
    {Py_tp_traverse, objects_slot_traverse},
    {Py_tp_clear, objects_slot_clear},
    {Py_tp_dealloc, objects_slot_dealloc},
    {Py_tp_members, slot_members},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "memtools.ledger._native.ThreadSlot",
    .basicsize = sizeof(struct thread_slot),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slot_type_slots,
};

/* The type `Counter`. */

static PyObject *objects_counter_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"parent", NULL};
    PyObject *parent = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "|O:Counter", keywords, &parent)) {
        return NULL;
    }
    if (parent != Py_None && Py_TYPE(parent) != type) {
        PyErr_SetString(PyExc_TypeError, "parent is neither a Counter nor None");
        return NULL;
    }
    if (counters == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "install() comes first");
        return NULL;
    }
    interpreters_check();
    CounterObject *self = (CounterObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }

    uint32_t above = parent == Py_None ? ROOT : ((CounterObject *)parent)->number;
    while (!counters[above].is_open) {
        above = counters[above].parent;
    }
    self->session = objects_session;
    self->number = counters_open(above);
    counters[self->number].pool_bytes_at_open = threads_pool_bytes();
    if (self->number == ROOT) {
        self->is_shared = 1;
        self->number = above;
        counters_flush_into(above);
        self->live_before = counters[above].live;
        self->allocated_before = counters[above].allocated;
    }
    return (PyObject *)self;
}

static void objects_counter_dealloc(CounterObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (!self->is_shared && self->number != ROOT) {
        threads_epoch++; /* another owner may get the number */
        counters_release(self->number);
        limits_watch_collector();
    }
    Py_CLEAR(self->enforcer);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(attach_doc, "attach_account($self, account, /)\n--\n\n"
    "Count the counter's own bytes in that account, and in no other one.");

static PyObject *objects_counter_attach_account(CounterObject *self, PyObject *account)
{
    if (!Py_IS_TYPE(account, objects_totals_type)) {
        PyErr_SetString(PyExc_TypeError, "not an AccountTotals");
        return NULL;
    }
    if (!self->is_shared) {
        counters_flush();
        counters_leave_account(self->number);
        counters_join_account(self->number, objects_account_number(account));
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nClose the counter; its live bytes go on falling.");

static PyObject *objects_counter_close(CounterObject *self, PyObject *Py_UNUSED(none))
{
    if (!self->is_shared && counters[self->number].is_open) {
        counters_close(self->number);
        limits_watch_collector();
    }
    threads_epoch++;
    Py_CLEAR(self->enforcer);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(process_wide_doc, "make_process_wide($self, /)\n--\n\n"
    "Report the whole process from now on, relative to its size at the opening.");

static PyObject *objects_counter_make_process_wide(CounterObject *self, PyObject *Py_UNUSED(none))
{
    if (!self->is_shared && counters[self->number].is_open) {
        counters_set_limits(self->number, NO_LIMIT, NO_LIMIT, NULL);
        counters_make_process_wide(self->number);
        threads_epoch++;
        limits_watch_collector();
    }
    Py_CLEAR(self->enforcer);
    Py_RETURN_NONE;
}

/* Steals a tuple whose items were made without a check; NULL with an exception if one of them failed. */
static PyObject *objects_complete_tuple(PyObject *made)
{
    if (PyErr_Occurred()) {
        Py_CLEAR(made);
    }
    return made;
}

PyDoc_STRVAR(read_doc, "read($self, /)\n--\n\nReturn live, peak and allocated bytes up to now.");

static PyObject *objects_counter_read(CounterObject *self, PyObject *Py_UNUSED(none))
{
    interpreters_check();
    counters_flush_into(self->number);
    const struct counter *counter = &counters[self->number];
    int64_t live = counter->live - self->live_before;
    int64_t peak = counter->peak - self->live_before;
    if (counter->is_process_wide) {
        live = counters[ROOT].live - counter->live_at_open;
        peak = counters_process_wide_peak(self->number);
    }
    PyObject *figures = PyTuple_New(COUNTER_FIGURES);
    if (figures == NULL) {
        return NULL;
    }
    PyTuple_SET_ITEM(figures, COUNTER_LIVE_BYTES, PyLong_FromLongLong(live));
    PyTuple_SET_ITEM(figures, COUNTER_PEAK_BYTES, PyLong_FromLongLong(peak));
    PyTuple_SET_ITEM(figures, COUNTER_ALLOCATED_BYTES, PyLong_FromLongLong(counter->allocated - self->allocated_before));
    return objects_complete_tuple(figures);
}

PyDoc_STRVAR(worked_doc, "others_may_have_worked($self, /)\n--\n\n"
    "Return what threads that were begun in it, and what pools, have allocated for no owner meanwhile, in bytes, each 0\n"
    "where it is too little to matter; None where both are.");

static PyObject *objects_counter_others(CounterObject *self, PyObject *Py_UNUSED(none))
{
    int64_t begun, pooled;
    if (self->is_shared || !threads_may_have_worked_for(self->number, &begun, &pooled)) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("LL", (long long)begun, (long long)pooled);
}

PyDoc_STRVAR(unowned_doc, "charge_unowned($self, /)\n--\n\n"
    "Count, until the counter is closed, what this thread allocates in contexts without an owner, too.");

static PyObject *objects_counter_charge_unowned(CounterObject *self, PyObject *Py_UNUSED(none))
{
    if (!self->is_shared && counters[self->number].is_open) {
        threads_charge_unowned(self->number);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(report_doc, "report_once($self, /)\n--\n\n"
    "Return whether this is the first call: a refusal is reported once.");

static PyObject *objects_counter_report_once(CounterObject *self, PyObject *Py_UNUSED(none))
{
    int has_reported = self->has_reported;
    self->has_reported = 1;
    return PyBool_FromLong(!has_reported);
}

static PyObject *objects_counter_refusals(CounterObject *self, void *Py_UNUSED(none))
{
    const struct counter *counter = &counters[self->number];
    PyObject *figures = PyTuple_New(REFUSAL_FIGURES);
    if (figures == NULL) {
        return NULL;
    }
    PyTuple_SET_ITEM(figures, REFUSAL_BLOCKS, PyLong_FromLongLong(self->is_shared ? 0 : counter->refused_blocks));
    PyTuple_SET_ITEM(figures, REFUSAL_HIGHEST_BYTES, PyLong_FromLongLong(counter->highest_refused));
    return objects_complete_tuple(figures);
}

static PyObject *objects_counter_is_shared(CounterObject *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->is_shared);
}

static PyObject *objects_counter_is_lost(CounterObject *self, void *Py_UNUSED(none))
{
    return PyBool_FromLong(self->session != objects_session);
}

PyDoc_STRVAR(limit_doc, "set_limit($self, limit_bytes, is_hard, enforcer, /)\n--\n\n"
    "Set the limit above which `enforcer(thread, frame, is_refused)` is called until the counter is closed, between two\n"
    "bytecodes, with the frame of the thread or None. One block that is large beside the limit is refused if `is_hard`.");

static PyObject *objects_counter_set_limit(CounterObject *self, PyObject *args)
{
    long long limit;
    int is_hard;
    PyObject *enforcer;
    if (!PyArg_ParseTuple(args, "LpO:set_limit", &limit, &is_hard, &enforcer)) {
        return NULL;
    }
    if (!self->is_shared && counters[self->number].is_open) {
        Py_XSETREF(self->enforcer, Py_NewRef(enforcer));
        counters_set_limits(self->number, limit, is_hard ? limit : NO_LIMIT, enforcer);
        limits_watch_collector();
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ask_doc, "ask_again($self, after_bytes, /)\n--\n\n"
    "Have the enforcer called again when the counter has grown by so many bytes, or never if they are negative.");

static PyObject *objects_counter_ask_again(CounterObject *self, PyObject *after_bytes)
{
    long long bytes = PyLong_AsLongLong(after_bytes);
    if (bytes == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (!self->is_shared && counters[self->number].is_open) {
        limits_ask_again(self->number, bytes);
    }
    Py_RETURN_NONE;
}

static PyMethodDef counter_methods[] = {
    {"close", (PyCFunction)objects_counter_close, METH_NOARGS, close_doc},
    {"make_process_wide", (PyCFunction)objects_counter_make_process_wide, METH_NOARGS, process_wide_doc},
    {"read", (PyCFunction)objects_counter_read, METH_NOARGS, read_doc},
    {"attach_account", (PyCFunction)objects_counter_attach_account, METH_O, attach_doc},
    {"charge_unowned", (PyCFunction)objects_counter_charge_unowned, METH_NOARGS, unowned_doc},
    {"others_may_have_worked", (PyCFunction)objects_counter_others, METH_NOARGS, worked_doc},
    {"set_limit", (PyCFunction)objects_counter_set_limit, METH_VARARGS, limit_doc},
    {"ask_again", (PyCFunction)objects_counter_ask_again, METH_O, ask_doc},
    {"report_once", (PyCFunction)objects_counter_report_once, METH_NOARGS, report_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef counter_attributes[] = {
    {"is_shared", (getter)objects_counter_is_shared, NULL, "Whether no number was left, so that it has its parent's.",
     NULL},
    {"refusals", (getter)objects_counter_refusals, NULL,
     "How many blocks were refused, and the highest live bytes that one would have led to.", NULL},
    {"is_lost", (getter)objects_counter_is_lost, NULL, "Whether the block map was cleared since it was opened.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(counter_doc, "Counter(parent=None)\n--\n\n"
    "Counter of an owner and its descendants; in use as long as this object lives.");

static PyType_Slot counter_slots[] = {
    {Py_tp_doc, (void *)counter_doc},
    {Py_tp_new, objects_counter_new},
    {Py_tp_dealloc, objects_counter_dealloc},
    {Py_tp_methods, counter_methods},
    {Py_tp_getset, counter_attributes},
    {0, NULL},
};

static PyType_Spec counter_spec = {
    .name = "memtools.ledger._native.Counter",
    .basicsize = sizeof(CounterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = counter_slots,
};

/* The type `AccountTotals`. */

typedef struct {
    PyObject_HEAD
    uint32_t number;
} AccountTotalsObject;

uint32_t objects_account_number(PyObject *account)
{
    return ((AccountTotalsObject *)account)->number;
}

static PyObject *objects_totals_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names))
{
    AccountTotalsObject *self = (AccountTotalsObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->number = counters_open_account();
    }
    return (PyObject *)self;
}

static void objects_totals_dealloc(AccountTotalsObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    counters_release_account(self->number);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(live_doc, "live_bytes($self, /)\n--\n\n"
    "Return the live bytes that the account's owners have allocated; None where no number was left for the account, and\n"
    "after counting has stopped.");

static PyObject *objects_totals_live_bytes(AccountTotalsObject *self, PyObject *Py_UNUSED(none))
{
    if (self->number == NO_ACCOUNT || hooks_have_stopped()) {
        Py_RETURN_NONE;
    }
    if (counters != NULL) {
        counters_flush();
    }
    return PyLong_FromLongLong((long long)counters_account_live(self->number));
}

PyDoc_STRVAR(number_doc, "number($self, /)\n--\n\n"
    "Return the account's number, which another account may get after its end; 0 where none was left.");

static PyObject *objects_totals_number(AccountTotalsObject *self, PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(self->number);
}

static PyMethodDef totals_methods[] = {
    {"live_bytes", (PyCFunction)objects_totals_live_bytes, METH_NOARGS, live_doc},
    {"number", (PyCFunction)objects_totals_number, METH_NOARGS, number_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(totals_doc, "AccountTotals()\n--\n\nThe live bytes of all owners of an account, closed ones included.");

static PyType_Slot totals_slots[] = {
    {Py_tp_doc, (void *)totals_doc},
    {Py_tp_new, objects_totals_new},
    {Py_tp_dealloc, objects_totals_dealloc},
    {Py_tp_methods, totals_methods},
    {0, NULL},
};

static PyType_Spec totals_spec = {
    .name = "memtools.ledger._native.AccountTotals",
    .basicsize = sizeof(AccountTotalsObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = totals_slots,
};

/* The slot of a thread, the active owner of a context, and the current owner. Keep in step with
   `memtools/ledger/_context.py`. */

static struct thread_slot *objects_slot_from_state(void)
{
    PyObject *of_thread = PyThreadState_GetDict();
    if (of_thread == NULL || make_slot == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "set_context() comes first");
        return NULL;
    }
    PyObject *slot = PyDict_GetItemWithError(of_thread, slot_key);
    if (slot != NULL) {
        return (struct thread_slot *)Py_NewRef(slot);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    slot = PyObject_CallNoArgs(make_slot);
    if (slot == NULL) {
        return NULL;
    }
    if (!Py_IS_TYPE(slot, objects_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "not a ThreadSlot");
        Py_CLEAR(slot);
    }
    else if (PyDict_SetItem(of_thread, slot_key, slot) < 0) {
        Py_CLEAR(slot);
    }
    return (struct thread_slot *)slot;
}

struct thread_slot *objects_thread_slot(void)
{
    PyThreadState *state = PyThreadState_Get();
    if (cached.slot != NULL && cached.state == state && cached.number == PyThreadState_GetID(state)) {
        return (struct thread_slot *)Py_NewRef((PyObject *)cached.slot);
    }
    struct thread_slot *slot = objects_slot_from_state();
    cached.state = state;
    cached.number = PyThreadState_GetID(state);
    cached.slot = slot;
    return slot;
}

/* Return whether an owner counts in a context: it is open, and its context is this one or it is inherited. */
static inline int objects_is_active(const struct owner *owner, const PyObject *context)
{
    return owner->ended == Py_False && (owner->home_context == Py_None || owner->home_context == context);
}

/* Return an owner or its nearest ancestor that is active in a context. */
static struct owner *objects_skip_inactive(struct owner *owner, const PyObject *context)
{
    while (owner != NULL && !objects_is_active(owner, context)) {
        owner = objects_as_owner(owner->parent);
    }
    return owner;
}

int objects_active_owner(struct owner **found)
{
    PyObject *owner = NULL;
    *found = NULL;
    if (active_variable == NULL || PyContextVar_Get(active_variable, Py_None, &owner) < 0) {
        return active_variable == NULL ? 0 : -1;
    }
    *found = objects_skip_inactive(objects_as_owner(owner), PyThreadState_Get()->context);
    Py_XINCREF(*found);
    Py_DECREF(owner);
    return 0;
}

static int objects_is_native(const struct owner *owner)
{
    return owner->meter_state != NULL && Py_IS_TYPE(owner->meter_state, objects_counter_type);
}

/* Nothing here may end an object: the context keeps the owner, and every owner keeps its parent. */
static int objects_find_counter(const PyThreadState *state, uint32_t *number)
{
    *number = ROOT;
    if (active_variable == NULL) {
        return 0;
    }
    PyObject *active = NULL;
    struct compat_raised raised = compat_save_raised(state);
    int failed = PyContextVar_Get(active_variable, Py_None, &active) < 0; /* a lookup may exceed the recursion limit */
    compat_restore_raised(state, raised);
    if (failed) {
        return -1;
    }
    struct owner *owner = objects_skip_inactive(objects_as_owner(active), state->context);
    for (; owner != NULL; owner = objects_skip_inactive(objects_as_owner(owner->parent), state->context)) {
        const struct owner *charged = objects_as_owner(owner->charged_to);
        if (charged != NULL && charged->detached == Py_False && objects_is_native(charged)) {
            *number = ((CounterObject *)charged->meter_state)->number;
            break;
        }
    }
    Py_DECREF(active);
    return 0;
}

static int objects_switch_by_meter(PyObject *meter, struct thread_slot *slot, PyObject *owner)
{
    PyObject *arguments[] = {meter == NULL ? Py_None : meter, (PyObject *)slot, owner};
    PyObject *result = PyObject_VectorcallMethod(switch_name, arguments, 3, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int objects_set_current(struct thread_slot *slot, PyObject *wanted)
{
    struct owner *owner = objects_as_owner(wanted);
    while (owner != NULL && owner->detached != Py_False) {
        owner = objects_as_owner(owner->previous); /* it was closed, or abandoned, since it was the current one */
    }
    threads_forget();
    if (owner != NULL && objects_is_native(owner)) {
        thread_state.enforcement_off = 0;
        threads_charge(((CounterObject *)owner->meter_state)->number);
        /* The slot holds owners of other meters only, whose figures have those of their children. */
        const struct owner *charged = owner;
        while (charged != NULL && (charged->detached != Py_False || objects_is_native(charged))) {
            owner = objects_as_owner(owner->parent);
            charged = owner == NULL ? NULL : objects_as_owner(owner->charged_to);
        }
        owner = (struct owner *)charged;
    }
    struct owner *before = objects_as_owner(slot->owner);
    if (before == owner) {
        return 0;
    }

    Py_XINCREF(before);
    Py_XINCREF(owner);
    int failed = 0;
    if (before != NULL && (owner == NULL || owner->meter != before->meter)) {
        failed = objects_switch_by_meter(before->meter, slot, Py_None);
    }
    if (!failed && owner != NULL) {
        failed = objects_switch_by_meter(owner->meter, slot, (PyObject *)owner);
    }
    Py_XDECREF(before);
    Py_XDECREF(owner);
    return failed;
}

PyDoc_STRVAR(context_doc, "set_context($module, active, make_slot, /)\n--\n\n"
    "Set the context variable of the active owner and the callable that makes the slot of a new thread.");

static PyObject *objects_py_set_context(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *variable, *maker;
    if (!PyArg_ParseTuple(args, "O!O:set_context", &PyContextVar_Type, &variable, &maker)) {
        return NULL;
    }
    Py_XSETREF(active_variable, Py_NewRef(variable));
    Py_XSETREF(make_slot, Py_NewRef(maker));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(active_doc, "active_owner($module, /)\n--\n\nReturn the innermost open owner of this context.");

static PyObject *objects_py_active_owner(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    struct owner *owner;
    if (objects_active_owner(&owner) < 0) {
        return NULL;
    }
    return owner == NULL ? Py_NewRef(Py_None) : (PyObject *)owner;
}

PyDoc_STRVAR(current_doc, "set_current($module, slot, owner, /)\n--\n\n"
    "Charge `owner` from now on, until another context becomes current; None for the active owner of the context.");

static PyObject *objects_py_set_current(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !Py_IS_TYPE(args[0], objects_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "set_current() takes a ThreadSlot and an owner or None");
        return NULL;
    }
    return objects_set_current((struct thread_slot *)args[0], args[1]) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(set_active_doc, "set_active($module, owner, /)\n--\n\n"
    "Make `owner`, or None, the active owner of this context.");

static PyObject *objects_py_set_active(PyObject *Py_UNUSED(module), PyObject *owner)
{
    PyObject *token = active_variable == NULL ? NULL : PyContextVar_Set(active_variable, owner);
    threads_forget();
    if (token == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_RuntimeError, "set_context() comes first");
    }
    Py_DECREF(token);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(context_of_doc, "current_context($module, /)\n--\n\n"
    "Return the context of this thread itself, not a copy; None before a variable was set in it.");

static PyObject *objects_py_current_context(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *context = PyThreadState_Get()->context;
    return Py_NewRef(context == NULL ? Py_None : context);
}

static PyMethodDef context_functions[] = {
    {"active_owner", objects_py_active_owner, METH_NOARGS, active_doc},
    {"current_context", objects_py_current_context, METH_NOARGS, context_of_doc},
    {"set_active", objects_py_set_active, METH_O, set_active_doc},
    {"set_context", objects_py_set_context, METH_VARARGS, context_doc},
    {"set_current", (PyCFunction)(void (*)(void))objects_py_set_current, METH_FASTCALL, current_doc},
    {NULL, NULL, 0, NULL},
};

static int objects_make_types(void)
{
    slot_key = PyUnicode_InternFromString("memtools.ledger.slot");
    switch_name = PyUnicode_InternFromString("switch");
    if (slot_key == NULL || switch_name == NULL || objects_make_initial_values() < 0) {
        return -1;
    }
    struct {
        PyTypeObject **type;
        PyType_Spec *spec;
    } const made[] = {
        {&objects_owner_type, &owner_spec},     {&objects_account_type, &account_spec}, {&objects_slot_type, &slot_spec},
        {&objects_counter_type, &counter_spec}, {&objects_totals_type, &totals_spec},
    };
    for (size_t n = 0; n < sizeof made / sizeof *made; n++) {
        *made[n].type = (PyTypeObject *)PyType_FromSpec(made[n].spec);
        if (*made[n].type == NULL) {
            return -1;
        }
    }
    return 0;
}

int objects_register(PyObject *module)
{
    threads_find_counter = objects_find_counter;
    if (objects_totals_type == NULL && objects_make_types() < 0) {
        return -1;
    }
    PyTypeObject *types[] = {objects_owner_type, objects_account_type, objects_slot_type, objects_counter_type,
                             objects_totals_type};
    for (size_t n = 0; n < sizeof types / sizeof *types; n++) {
        if (PyModule_AddType(module, types[n]) < 0) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, context_functions);
}
