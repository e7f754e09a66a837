/* Who has the turn on this thread, and changing that; what `_current.py` does in Python.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_TURNS_H
#define MEMTOOLS_TURNS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "seats.h"

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

#endif
