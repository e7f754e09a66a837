/* What is looked at for each step of each task and for each owner, where C finds it without asking Python: owners, their
   accounts, and what a thread is doing.

   An `Owner`, an `Account` and a `Slot` are what they are in Python (`_owner.py`, `_accounts.py`, `_current.py`), where the
   fields are explained; the types here only hold them. Any field may be set from Python to anything, or deleted, so it is `seats_owner` that
   tells whether one holds an owner.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_SEATS_H
#define MEMTOOLS_SEATS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Show a collection a field, if it holds something that can be part of a cycle. Each generation of a collection asks for
   every field of every owner, most of which are numbers, names and None. */
#define VISIT_CONTAINER(held)                                       \
    if ((held) != NULL && PyType_IS_GC(Py_TYPE(held))) {            \
        Py_VISIT(held);                                             \
    }

/* The fields of an owner, and what they begin with. */
#define OWNER_FIELDS(FIELD)       \
    FIELD(account, nothing)       \
    FIELD(adrift, no)             \
    FIELD(allocated, nothing)     \
    FIELD(base, nought)           \
    FIELD(budget, nothing)        \
    FIELD(budgeted, nothing)      \
    FIELD(ceiling, endless)       \
    FIELD(charged, nothing)       \
    FIELD(child, nothing)         \
    FIELD(children, zero)         \
    FIELD(detached, no)           \
    FIELD(driver, nothing)        \
    FIELD(ended, no)              \
    FIELD(epoch, nought)          \
    FIELD(final, nothing)         \
    FIELD(freed_before, nought)   \
    FIELD(include_children, yes)  \
    FIELD(is_counted, yes)        \
    FIELD(is_layered, no)         \
    FIELD(kind, empty)            \
    FIELD(largest, none_of_them)  \
    FIELD(live, nought)           \
    FIELD(meter, nothing)         \
    FIELD(name, empty)            \
    FIELD(neighbours, nothing)    \
    FIELD(nested, no)             \
    FIELD(note, empty)            \
    FIELD(opened_at, nought)      \
    FIELD(outer, nothing)         \
    FIELD(overran, no)            \
    FIELD(parent, nothing)        \
    FIELD(payer, nothing)         \
    FIELD(peak, nought)           \
    FIELD(resident, zero)         \
    FIELD(shared, no)             \
    FIELD(steps_before, zero)     \
    FIELD(turn, nothing)          \
    FIELD(up, nothing)            \
    FIELD(watch, nothing)

struct owner {
    PyObject_HEAD
    PyObject *weak_references;
#define FIELD(name, start) PyObject *name;
    OWNER_FIELDS(FIELD)
#undef FIELD
};

struct account {
    PyObject_HEAD
    PyObject *children;
    PyObject *count;
    PyObject *holdings;
    PyObject *kind;
    PyObject *marks;
    PyObject *meter;
    PyObject *name;
    PyObject *note;
    PyObject *parent;
    long long active;
    long long ended;
    long long entered;
    long long failed;
    long long peak;
    long long peak_sum;
    long long retained;
    long long steps;
    double duration_s;
    char stands_alone;
};

struct slot {
    PyObject_HEAD
    PyObject *weak_references;
    PyObject *owner;
    PyObject *driver;
    PyObject *unwatched;
    PyObject *asked_loop;
};

extern PyTypeObject *seats_owner_type;
extern PyTypeObject *seats_account_type;
extern PyTypeObject *seats_slot_type;

/* Make the three types, once, and add them to the module; -1 with an exception. */
int seats_register(PyObject *module);

/* A new owner of the class, with the fields that differ from owner to owner; NULL with an exception. */
struct owner *seats_new_owner(PyTypeObject *type, PyObject *name, PyObject *kind, PyObject *meter, PyObject *parent,
                              PyObject *account);

/* The class of nearly all owners, once it is known: a look at it is all that most questions take. */
extern PyTypeObject *seats_owner_class;

/* The owner that a field holds, borrowed; NULL where it holds none. */
static inline struct owner *seats_owner(PyObject *held)
{
    if (held == NULL || held == Py_None) {
        return NULL;
    }
    if (Py_IS_TYPE(held, seats_owner_class) || PyObject_TypeCheck(held, seats_owner_type)) {
        return (struct owner *)held;
    }
    return NULL;
}

#endif
