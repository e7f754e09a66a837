/* Open and end owners in the plain case: what `_book.py` does for one of the native meter that is like many before it.

   Plain is an owner without a budget, followed, whose account is known; it ends with exact figures. Whatever is not
   plain is left to Python, which can do all of it; nothing has been changed then. Both keep the same books: fields of
   owners and accounts (seats.h), the turn (turns.h), the tallies (tallies.h), so one may open what the other ends.

   Locking: all under the GIL, and in one piece where the books are changed: no Python code runs in between. */

#ifndef MEMTOOLS_OWNERS_H
#define MEMTOOLS_OWNERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Open an owner of that meter below the active one; NULL, with no exception, if it is not plain. */
PyObject *book_open_plain(PyObject *meter, PyObject *kind, PyObject *name, int include_children, PyObject *driver);

/* End an owner, and tell; `back` or else the one before it gets the turn. 0, and nothing was done, if it is not plain;
   -1 with an exception. */
int book_settle_plain(PyObject *owner, int failed, PyObject *back);

/* Add what is in here to the module; -1 with an exception. */
int book_register(PyObject *module, PyTypeObject *tally_type, PyTypeObject *account_type);

#endif
