/* The Python types of this module, except coroutines, and the current owner of a thread.

   `OwnerFields`, `AccountFields` and `ThreadSlot` hold the fields of owners, of accounts and of thread slots, where
   C code reads them without a Python call for each step and each owner. Keep the fields in step with
   `memtools/ledger/_owner.py`, which explains them. Python code may set any field to anything, or delete it, so
   `objects_as_owner` checks whether a field holds an owner.

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_OBJECTS_H
#define MEMTOOLS_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#include "compiler.h"

/* Visit a field if its object can be part of a cycle. Each garbage collection asks for every field of every owner,
   and most of them are numbers, names and None. */
#define VISIT_CONTAINER(field)                                      \
    if ((field) != NULL && PyType_IS_GC(Py_TYPE(field))) {          \
        Py_VISIT(field);                                            \
    }

/* The fields of an owner, and their initial values. */
#define OWNER_FIELDS(FIELD)                                         \
    FIELD(account, Py_None)                                         \
    FIELD(allocated, Py_None)                                       \
    FIELD(baseline, FLOAT_ZERO)                                     \
    FIELD(budget, Py_None)                                          \
    FIELD(charged_to, Py_None)                                      \
    FIELD(charging_parent, Py_None)                                 \
    FIELD(detached, Py_False)                                       \
    FIELD(eager_parent, Py_None)                                    \
    FIELD(ended, Py_False)                                          \
    FIELD(exceeded_reported, Py_False)                              \
    FIELD(final_usage, Py_None)                                     \
    FIELD(freed_before, FLOAT_ZERO)                                 \
    FIELD(home_context, Py_None)                                    \
    FIELD(include_children, Py_True)                                \
    FIELD(inline_child, Py_None)                                    \
    FIELD(is_counted, Py_True)                                      \
    FIELD(is_eager, Py_False)                                       \
    FIELD(is_recursive, Py_False)                                   \
    FIELD(is_stacked, Py_False)                                     \
    FIELD(is_untracked, Py_False)                                   \
    FIELD(kind, EMPTY_STRING)                                       \
    FIELD(largest_children, EMPTY_TUPLE)                            \
    FIELD(limit_bytes_in_flight, INFINITE)                          \
    FIELD(live, FLOAT_ZERO)                                         \
    FIELD(look_up_name, Py_None)                                    \
    FIELD(meter, Py_None)                                           \
    FIELD(meter_state, Py_None)                                     \
    FIELD(name, EMPTY_STRING)                                       \
    FIELD(nearest_budgeted, Py_None)                                \
    FIELD(note, EMPTY_STRING)                                       \
    FIELD(open_children, INT_ZERO)                                  \
    FIELD(opened_at, FLOAT_ZERO)                                    \
    FIELD(other_threads_at_open, Py_None)                           \
    FIELD(parent, Py_None)                                          \
    FIELD(peak, FLOAT_ZERO)                                         \
    FIELD(previous, Py_None)                                        \
    FIELD(resident_at_open, INT_ZERO)                               \
    FIELD(session, FLOAT_ZERO)                                      \
    FIELD(steps_at_open, INT_ZERO)                                  \
    FIELD(suspension, Py_None)                                      \
    FIELD(tracker, Py_None)                                         \
    FIELD(unowned_before, FLOAT_ZERO)

struct owner {
    PyObject_HEAD
    PyObject *weak_references;
#define FIELD(name, initial) PyObject *name;
    OWNER_FIELDS(FIELD)
#undef FIELD
};

struct account {
    PyObject_HEAD
    PyObject *children;
    PyObject *count;
    PyObject *totals; /* an `AccountTotals`, with the native meter */
    PyObject *kind;
    PyObject *checkpoints;
    PyObject *meter;
    PyObject *name;
    PyObject *note;
    PyObject *parent;
    long long active;
    long long ended;
    long long started;
    long long failed;
    long long peak;
    long long peak_sum;
    long long retained;
    long long steps;
    double duration_s;
    char excludes_children;
};

/* What one thread is doing. */
struct thread_slot {
    PyObject_HEAD
    PyObject *weak_references;
    PyObject *owner;
    PyObject *tracker;
    PyObject *untracked_candidates;
    PyObject *scheduled_on;
};

/* A counter, which is in use for as long as this object lives: the Python type `Counter`. */
typedef struct {
    PyObject_HEAD
    uint32_t number;
    uint64_t session;
    int is_shared; /* no number was left: it has its parent's, and subtracts the two figures below */
    int64_t live_before;
    int64_t allocated_before;
    PyObject *enforcer;
    int has_reported; /* that a block was refused */
} CounterObject;

/* What the Python code has registered for the fast path. */
struct runtime {
    PyObject *owner_class;
    PyObject *usage_type;              /* a named tuple */
    PyObject *active_variable;
    PyObject *open_owners;             /* dict: by the id of each */
    PyObject *read_resident;           /* called without arguments */
    PyObject *update_largest_children; /* called when a child may be one of the largest of its parent */
    PyObject *checkpoint_account;      /* called when an account has closed a power of two of owners */
    PyObject *has_listeners;           /* returns whether a listener wants to know of ends */
    PyObject *notify_ended;            /* called in that case */
    PyObject *meter_name;
    PyObject *native_meter;
    PyObject *root_account;
    int fast_path_disabled; /* each opening has more to do for now */
    long long budgeted_owners; /* open owners whose budget is checked after each step */
    int has_other_meters;   /* there are owners of a meter that has a current owner in each thread */
};

extern HIDDEN struct runtime runtime;

extern HIDDEN PyTypeObject *objects_owner_type;
extern HIDDEN PyTypeObject *objects_account_type;
extern HIDDEN PyTypeObject *objects_slot_type;
extern HIDDEN PyTypeObject *objects_counter_type;
extern HIDDEN PyTypeObject *objects_totals_type;

/* The class of nearly all owners, once it is known: most checks are one comparison with it. */
extern HIDDEN PyTypeObject *objects_owner_class;

/* How often the hooks had to be installed anew; a counter of an earlier session has lost blocks. */
extern HIDDEN uint64_t objects_session;

/* Create the types, once, and add types and functions to the module; -1 with an exception. GIL. */
int objects_register(PyObject *module);

/* Return a new owner of the class, with the fields that differ from owner to owner; NULL with an exception. GIL. */
struct owner *objects_new_owner(PyTypeObject *type, PyObject *name, PyObject *kind, PyObject *meter, PyObject *parent,
                                PyObject *account);

/* Return the number of an `AccountTotals`. GIL. */
uint32_t objects_account_number(PyObject *totals);

/* Return the slot of this thread, a new reference; NULL with an exception. GIL. */
struct thread_slot *objects_thread_slot(void);

/* Store the innermost open owner of this context, a new reference, or NULL if there is none; -1 with an exception.
   GIL. */
int objects_active_owner(struct owner **owner);

/* Charge an owner from now on, until another context becomes current; NULL or None for the one that is active in the
   context. With the tracemalloc meter it becomes the current owner of the thread, until the next call. -1 with an
   exception. GIL. */
int objects_set_current(struct thread_slot *slot, PyObject *owner);

/* Return the owner that a field holds, borrowed; NULL where it holds none. GIL. */
static inline struct owner *objects_as_owner(PyObject *held)
{
    if (held == NULL || held == Py_None) {
        return NULL;
    }
    if (Py_IS_TYPE(held, objects_owner_class) || PyObject_TypeCheck(held, objects_owner_type)) {
        return (struct owner *)held;
    }
    return NULL;
}

#endif
