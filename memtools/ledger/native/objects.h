/* What is looked at for each step of each task and for each owner, where C finds it without asking Python: owners, their
   accounts, and what a thread is doing.

   An `Owner`, an `Account` and a `Slot` are what they are in Python (`_owner.py`, `_accounts.py`, `_current.py`), where the
   fields are explained; the types here only hold them. Any field may be set from Python to anything, or deleted, so it is `seats_owner` that
   tells whether one holds an owner.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_OBJECTS_H
#define MEMTOOLS_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

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

/* What the files of the module `memtools.ledger._native` share: its types and where they are found.

   Locking: all under the GIL. */

struct module_state {
    PyTypeObject *tally_type;
    PyTypeObject *account_type;
};

/* A number of the ledger's, held for as long as the object lives. */
typedef struct {
    PyObject_HEAD
    uint32_t number;
    uint64_t era;
    int is_shared; /* there was no number left: it has its parent's, and these figures to begin with */
    int64_t live_before;
    int64_t allocated_before;
    PyObject *stopper;
    int has_told; /* that a block was refused */
} Tally;

/* How often the hooks had to be put in place anew; a tally of an earlier era has lost blocks. */
extern uint64_t tally_era;

extern PyType_Spec tally_spec;

/* Who has the turn on this thread, and changing that; what `_current.py` does in Python.

   Locking: all under the GIL. */

/* Add what is in here to the module; `tally_type` tells an owner of the native meter by its `watch`. */
int turns_register(PyObject *module, PyTypeObject *tally_type);

/* The slot of this thread, a new reference; NULL with an exception. */
struct slot *turns_slot(void);

/* A slot is about to go. */
void turns_forget(struct slot *slot);

/* The innermost open owner of this context, a new reference, in `*owner`; NULL if there is none. -1 with an exception. */
int turns_active(struct owner **owner);

/* Charge `owner` (an owner, NULL or None for nobody) for what this thread makes; -1 with an exception. */
int turns_give(struct slot *slot, PyObject *owner);

/* What the two ways of the book share: what Python has given them to keep, the clock, the holds; see book.h.

   Locking: all under the GIL. */

struct kept {
    PyObject *owner_class;
    PyObject *active;
    PyObject *open_owners;   /* dict: by the id of each */
    PyObject *read_resident; /* called with nothing */
    PyObject *note_child;    /* called where a child may be one of the largest */
    PyObject *mark;          /* called when an account has ended a power of two of owners */
    PyObject *is_heard;      /* whether anybody listens to ends */
    PyObject *tell_end;      /* called then */
    PyObject *meter_name;
    PyObject *native_meter;
    PyObject *root;
    PyTypeObject *tally_type;
    PyTypeObject *holdings_type;
    int goes_long; /* whether no owner is plain, for now */
};

extern struct kept kept;

/* The time as `time.perf_counter` has it. */
double kept_now_s(void);

/* The resident size, read a millisecond ago at most, in `*bytes`; -1 with an exception. */
int kept_resident(double now, long long *bytes);

/* Begin to count, or give up one hold; how many hold. */
long long kept_hold(void);
long long kept_release(void);

#endif
