/* What the files of the module `memtools.ledger._native` share: its types and where they are found.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_MODULE_H
#define MEMTOOLS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

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

#endif
