/* What the two ways of the book share: what Python has given them to keep, the clock, the holds; see book.h.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_KEPT_H
#define MEMTOOLS_KEPT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

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
