/* The types that hold the fields of owners and slots; see seats.h. */

#include "seats.h"

#include <structmember.h>

#include "turns.h"

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
