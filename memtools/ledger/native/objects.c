/* The types that hold the fields of owners and slots; see seats.h. */

#include "objects.h"

#include <structmember.h>

#include "counters.h"
#include "hooks.h"
#include "interpreters.h"
#include "limits.h"

PyTypeObject *seats_owner_type;
PyTypeObject *seats_owner_class;
PyTypeObject *seats_account_type;
PyTypeObject *seats_slot_type;

/* What fields begin with. */
static PyObject *nought, *endless, *zero, *empty, *none_of_them;
#define nothing Py_None
#define yes Py_True
#define no Py_False

static int make_starts(void)
{
    nought = PyFloat_FromDouble(0.0);
    endless = PyFloat_FromDouble(Py_HUGE_VAL);
    zero = PyLong_FromLong(0);
    empty = PyUnicode_FromString("");
    none_of_them = PyTuple_New(0);
    return nought && endless && zero && empty && none_of_them ? 0 : -1;
}

struct owner *seats_new_owner(PyTypeObject *type, PyObject *name, PyObject *kind, PyObject *meter, PyObject *parent,
                              PyObject *account)
{
    struct owner *self = (struct owner *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
#define FIELD(field, start) self->field = Py_NewRef(start);
    OWNER_FIELDS(FIELD)
#undef FIELD
    Py_SETREF(self->name, Py_NewRef(name));
    Py_SETREF(self->kind, Py_NewRef(kind));
    Py_SETREF(self->meter, Py_NewRef(meter));
    Py_SETREF(self->parent, Py_NewRef(parent));
    Py_SETREF(self->account, Py_NewRef(account));
    return self;
}

static PyObject *Owner_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"name", "kind", "meter", "parent", "account", "include_children", "budget", "adrift", NULL};
    PyObject *name, *kind, *meter, *parent, *account;
    PyObject *include_children = yes, *budget = nothing, *adrift = no;
    if (!PyArg_ParseTupleAndKeywords(args, names, "OOOOO|OOO:OwnerFields", keywords, &name, &kind, &meter, &parent,
                                     &account, &include_children, &budget, &adrift)) {
        return NULL;
    }
    struct owner *self = seats_new_owner(type, name, kind, meter, parent, account);
    if (self != NULL) {
        Py_SETREF(self->include_children, Py_NewRef(include_children));
        Py_SETREF(self->budget, Py_NewRef(budget));
        Py_SETREF(self->adrift, Py_NewRef(adrift));
    }
    return (PyObject *)self;
}

static int Owner_traverse(struct owner *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define FIELD(field, start) VISIT_CONTAINER(self->field)
    OWNER_FIELDS(FIELD)
#undef FIELD
    return 0;
}

static int Owner_clear(struct owner *self)
{
#define FIELD(field, start) Py_CLEAR(self->field);
    OWNER_FIELDS(FIELD)
#undef FIELD
    return 0;
}

static void Owner_dealloc(struct owner *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)Owner_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef owner_members[] = {
#define FIELD(field, start) {#field, T_OBJECT_EX, offsetof(struct owner, field), 0, NULL},
    OWNER_FIELDS(FIELD)
#undef FIELD
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct owner, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(owner_doc, "The fields of an owner; see `_owner_fields.OwnerFields`.");

static PyType_Slot owner_slots[] = {
    {Py_tp_doc, (void *)owner_doc},     {Py_tp_new, Owner_new},         {Py_tp_traverse, Owner_traverse},
    {Py_tp_clear, Owner_clear},         {Py_tp_dealloc, Owner_dealloc}, {Py_tp_members, owner_members},
    {0, NULL},
};

static PyType_Spec owner_spec = {
    .name = "memtools.ledger._native.OwnerFields",
    .basicsize = sizeof(struct owner),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = owner_slots,
};

#define ACCOUNT_OBJECTS(DO) \
    DO(children) DO(count) DO(holdings) DO(kind) DO(marks) DO(meter) DO(name) DO(note) DO(parent)

static int Account_traverse(struct account *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
#define VISIT(field) Py_VISIT(self->field);
    ACCOUNT_OBJECTS(VISIT)
#undef VISIT
    return 0;
}

static int Account_clear(struct account *self)
{
#define CLEAR(field) Py_CLEAR(self->field);
    ACCOUNT_OBJECTS(CLEAR)
#undef CLEAR
    return 0;
}

static void Account_dealloc(struct account *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)Account_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef account_members[] = {
    {"children", T_OBJECT_EX, offsetof(struct account, children), 0, NULL},
    {"_count", T_OBJECT_EX, offsetof(struct account, count), 0, NULL},
    {"holdings", T_OBJECT_EX, offsetof(struct account, holdings), 0, NULL},
    {"kind", T_OBJECT_EX, offsetof(struct account, kind), 0, NULL},
    {"marks", T_OBJECT_EX, offsetof(struct account, marks), 0, NULL},
    {"meter", T_OBJECT_EX, offsetof(struct account, meter), 0, NULL},
    {"name", T_OBJECT_EX, offsetof(struct account, name), 0, NULL},
    {"note", T_OBJECT_EX, offsetof(struct account, note), 0, NULL},
    {"parent", T_OBJECT_EX, offsetof(struct account, parent), 0, NULL},
    {"active", T_LONGLONG, offsetof(struct account, active), 0, NULL},
    {"ended", T_LONGLONG, offsetof(struct account, ended), 0, NULL},
    {"entered", T_LONGLONG, offsetof(struct account, entered), 0, NULL},
    {"failed", T_LONGLONG, offsetof(struct account, failed), 0, NULL},
    {"peak", T_LONGLONG, offsetof(struct account, peak), 0, NULL},
    {"peak_sum", T_LONGLONG, offsetof(struct account, peak_sum), 0, NULL},
    {"retained", T_LONGLONG, offsetof(struct account, retained), 0, NULL},
    {"steps", T_LONGLONG, offsetof(struct account, steps), 0, NULL},
    {"duration_s", T_DOUBLE, offsetof(struct account, duration_s), 0, NULL},
    {"stands_alone", T_BOOL, offsetof(struct account, stands_alone), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(account_doc, "The sums of an account; see `_accounts.Account`.");

static PyType_Slot account_slots[] = {
    {Py_tp_doc, (void *)account_doc}, {Py_tp_new, PyType_GenericNew},     {Py_tp_traverse, Account_traverse},
    {Py_tp_clear, Account_clear},     {Py_tp_dealloc, Account_dealloc},   {Py_tp_members, account_members},
    {0, NULL},
};

static PyType_Spec account_spec = {
    .name = "memtools.ledger._native.AccountFields",
    .basicsize = sizeof(struct account),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = account_slots,
};

static PyObject *Slot_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    if (PyTuple_GET_SIZE(args) > 0 || (names != NULL && PyDict_GET_SIZE(names) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Slot() takes no arguments");
        return NULL;
    }
    struct slot *self = (struct slot *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->owner = Py_NewRef(Py_None);
    self->driver = Py_NewRef(Py_None);
    self->asked_loop = Py_NewRef(Py_None);
    self->unwatched = PyList_New(0);
    if (self->unwatched == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int Slot_traverse(struct slot *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->driver);
    Py_VISIT(self->unwatched);
    Py_VISIT(self->asked_loop);
    return 0;
}

static int Slot_clear(struct slot *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->driver);
    Py_CLEAR(self->unwatched);
    Py_CLEAR(self->asked_loop);
    return 0;
}

static void Slot_dealloc(struct slot *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    turns_forget(self);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs((PyObject *)self);
    }
    (void)Slot_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef slot_members[] = {
    {"owner", T_OBJECT_EX, offsetof(struct slot, owner), 0, NULL},
    {"driver", T_OBJECT_EX, offsetof(struct slot, driver), 0, NULL},
    {"unwatched", T_OBJECT_EX, offsetof(struct slot, unwatched), 0, NULL},
    {"asked_loop", T_OBJECT_EX, offsetof(struct slot, asked_loop), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct slot, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(slot_doc, "Slot()\n--\n\nWhat one thread is doing; see `_current.PureSlot`.");

static PyType_Slot slot_slots[] = {
    {Py_tp_doc, (void *)slot_doc}, {Py_tp_new, Slot_new},         {Py_tp_traverse, Slot_traverse},
    {Py_tp_clear, Slot_clear},     {Py_tp_dealloc, Slot_dealloc}, {Py_tp_members, slot_members},
    {0, NULL},
};

static PyType_Spec slot_spec = {
    .name = "memtools.ledger._native.Slot",
    .basicsize = sizeof(struct slot),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slot_slots,
};

int seats_register(PyObject *module)
{
    if (seats_owner_type == NULL) {
        if (make_starts() < 0) {
            return -1;
        }
        seats_owner_type = (PyTypeObject *)PyType_FromSpec(&owner_spec);
        seats_account_type = (PyTypeObject *)PyType_FromSpec(&account_spec);
        seats_slot_type = (PyTypeObject *)PyType_FromSpec(&slot_spec);
        if (seats_owner_type == NULL || seats_account_type == NULL || seats_slot_type == NULL) {
            return -1;
        }
    }
    if (PyModule_AddType(module, seats_owner_type) < 0 || PyModule_AddType(module, seats_account_type) < 0) {
        return -1;
    }
    return PyModule_AddType(module, seats_slot_type);
}

/* The type `Tally`: what one owner, and those below it, hold; see module.h. */

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

/* What Python sees of the table of accounts. */

typedef struct {
    PyObject_HEAD
    uint32_t number;
} AccountTotals;

uint32_t accounts_number(PyObject *account)
{
    return ((AccountTotals *)account)->number;
}

static PyObject *AccountTotals_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names))
{
    AccountTotals *self = (AccountTotals *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->number = accounts_open();
    }
    return (PyObject *)self;
}

static void AccountTotals_dealloc(AccountTotals *self)
{
    PyTypeObject *type = Py_TYPE(self);
    accounts_release(self->number);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(live_doc, "live_bytes($self, /)\n--\n\n"
    "Return the bytes of the live blocks that its owners have made; None where there was no number left for it, and\n"
    "where blocks are counted no more.");

static PyObject *AccountTotals_live_bytes(AccountTotals *self, PyObject *Py_UNUSED(none))
{
    if (self->number == NO_ACCOUNT || hooks_have_stopped()) {
        Py_RETURN_NONE;
    }
    if (tallies != NULL) {
        tallies_settle();
    }
    return PyLong_FromLongLong((long long)accounts_live(self->number));
}

static PyMethodDef totals_methods[] = {
    {"live_bytes", (PyCFunction)AccountTotals_live_bytes, METH_NOARGS, live_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(totals_doc, "Account()\n--\n\nWhat the owners of one account hold together, the ended ones included.");

static PyType_Slot totals_slots[] = {
    {Py_tp_doc, (void *)totals_doc}, {Py_tp_new, AccountTotals_new}, {Py_tp_dealloc, AccountTotals_dealloc},
    {Py_tp_methods, totals_methods},         {0, NULL},
};

static PyType_Spec totals_spec = {
    .name = "memtools.ledger._native.Account",
    .basicsize = sizeof(AccountTotals),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = totals_slots,
};

PyTypeObject *accounts_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &totals_spec, NULL);
}

/* Slots by thread, the active owner by context, and the change of turns; see turns.h. */

static PyTypeObject *tally_type;
static PyObject *active;    /* the context variable */
static PyObject *make_slot; /* called once in each thread */
static PyObject *slot_key, *switch_name;

static struct slot *slot_of_state(void)
{
    PyObject *of_thread = PyThreadState_GetDict();
    if (of_thread == NULL || make_slot == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "follow() comes first");
        return NULL;
    }
    PyObject *slot = PyDict_GetItemWithError(of_thread, slot_key);
    if (slot != NULL) {
        return (struct slot *)Py_NewRef(slot);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    slot = PyObject_CallNoArgs(make_slot);
    if (slot == NULL) {
        return NULL;
    }
    if (!Py_IS_TYPE(slot, seats_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "not a Slot");
        Py_CLEAR(slot);
    }
    else if (PyDict_SetItem(of_thread, slot_key, slot) < 0) {
        Py_CLEAR(slot);
    }
    return (struct slot *)slot;
}

/* The slot of this thread, as long as the thread has this state: a look into the state's dict takes ten times as long.
   States may come to the address of earlier ones, but have numbers of their own. */
static _Thread_local struct {
    PyThreadState *state;
    uint64_t number;
    struct slot *slot; /* borrowed */
} known AT_FIXED_PLACE;

void turns_forget(struct slot *slot)
{
    if (known.slot == slot) {
        known.slot = NULL;
    }
}

struct slot *turns_slot(void)
{
    PyThreadState *state = PyThreadState_Get();
    if (known.slot != NULL && known.state == state && known.number == PyThreadState_GetID(state)) {
        return (struct slot *)Py_NewRef((PyObject *)known.slot);
    }
    struct slot *slot = slot_of_state();
    known.state = state;
    known.number = PyThreadState_GetID(state);
    known.slot = slot;
    return slot;
}

int turns_active(struct owner **found)
{
    PyObject *owner = NULL;
    *found = NULL;
    if (active == NULL || PyContextVar_Get(active, Py_None, &owner) < 0) {
        return active == NULL ? 0 : -1;
    }
    struct owner *open = seats_owner(owner);
    if (open != NULL && open->ended == Py_False) {
        *found = open; /* the reference goes along */
        return 0;
    }
    while (open != NULL && open->ended != Py_False) {
        open = seats_owner(open->parent);
    }
    *found = (struct owner *)Py_XNewRef((PyObject *)open);
    Py_DECREF(owner);
    return 0;
}

static int is_native(const struct owner *owner)
{
    return owner == NULL || (owner->watch != NULL && Py_IS_TYPE(owner->watch, tally_type));
}

static int switch_by_meter(PyObject *meter, struct slot *slot, PyObject *owner)
{
    PyObject *arguments[] = {meter == NULL ? Py_None : meter, (PyObject *)slot, owner};
    PyObject *result = PyObject_VectorcallMethod(switch_name, arguments, 3, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int turns_give(struct slot *slot, PyObject *wanted)
{
    struct owner *owner = seats_owner(wanted);
    while (owner != NULL && owner->detached != Py_False) {
        owner = seats_owner(owner->outer); /* it has ended, or has been given up, since it had the turn */
    }
    struct owner *before = seats_owner(slot->owner);
    if (before == owner) {
        return 0;
    }
    if (is_native(before) && is_native(owner)) {
        here.is_spared = 0;
        here.tally = owner == NULL ? NOBODY : ((Tally *)owner->watch)->number;
        Py_XSETREF(slot->owner, Py_NewRef(owner == NULL ? Py_None : (PyObject *)owner));
        return 0;
    }

    Py_XINCREF(before);
    Py_XINCREF(owner);
    int failed = 0;
    if (before != NULL && (owner == NULL || owner->meter != before->meter)) {
        failed = switch_by_meter(before->meter, slot, Py_None);
    }
    if (!failed && owner != NULL) {
        failed = switch_by_meter(owner->meter, slot, (PyObject *)owner);
    }
    Py_XDECREF(before);
    Py_XDECREF(owner);
    return failed;
}

PyDoc_STRVAR(follow_doc, "follow($module, active, make_slot, /)\n--\n\n"
    "Take the active owner from that context variable, and the slot of a new thread from that callable.");

static PyObject *native_follow(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *variable, *maker;
    if (!PyArg_ParseTuple(args, "O!O:follow", &PyContextVar_Type, &variable, &maker)) {
        return NULL;
    }
    Py_XSETREF(active, Py_NewRef(variable));
    Py_XSETREF(make_slot, Py_NewRef(maker));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(active_doc, "active_owner($module, /)\n--\n\nReturn the innermost open owner of this context.");

static PyObject *native_active_owner(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    struct owner *owner;
    if (turns_active(&owner) < 0) {
        return NULL;
    }
    return owner == NULL ? Py_NewRef(Py_None) : (PyObject *)owner;
}

PyDoc_STRVAR(give_doc, "give_turn($module, slot, owner, /)\n--\n\n"
    "Charge `owner`, or nobody, for what this thread allocates from now on.");

static PyObject *native_give_turn(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !Py_IS_TYPE(args[0], seats_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "give_turn() takes a Slot and an owner or None");
        return NULL;
    }
    return turns_give((struct slot *)args[0], args[1]) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"active_owner", native_active_owner, METH_NOARGS, active_doc},
    {"follow", native_follow, METH_VARARGS, follow_doc},
    {"give_turn", (PyCFunction)(void (*)(void))native_give_turn, METH_FASTCALL, give_doc},
    {NULL, NULL, 0, NULL},
};

int turns_register(PyObject *module, PyTypeObject *type_of_tallies)
{
    if (slot_key == NULL) {
        slot_key = PyUnicode_InternFromString("memtools.ledger.slot");
        switch_name = PyUnicode_InternFromString("switch");
        if (slot_key == NULL || switch_name == NULL) {
            return -1;
        }
        tally_type = (PyTypeObject *)Py_NewRef((PyObject *)type_of_tallies);
    }
    return PyModule_AddFunctions(module, functions);
}
