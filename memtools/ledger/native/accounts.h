/* Add up what the owners of one account hold, those that have ended and that nobody asks about any more included.

   A tally lives on after its owner for as long as one of its blocks does, but nobody holds it then. Its account still
   knows: each change of a tally's own bytes is a change of its account's. Accounts are no tree here: what is in those
   below is added up where the tree is known (`_accounts.py`), so that one that changes its place takes nothing along.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_ACCOUNTS_H
#define MEMTOOLS_ACCOUNTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define NO_ACCOUNT 0 /* where those count that have none: nobody asks for it */
#define MAX_ACCOUNTS 65535

/* Begin one; NO_ACCOUNT when there are no numbers left, or no room for the table. */
uint32_t accounts_open(void);

/* Nobody asks for it any more: its number is free for others once its last tally is. */
void accounts_release(uint32_t account);

/* The bytes of the live blocks that its tallies have made, once all is settled. */
int64_t accounts_live(uint32_t account);

/* Add a change to what a tally's account holds. */
void accounts_add(uint32_t account, int64_t change);

/* Count a tally among an account's, or no more; its bytes come and go with it. */
void accounts_join(uint32_t tally, uint32_t account);
void accounts_part(uint32_t tally);

/* Set all to zero, as `tallies_forget` does. */
void accounts_forget(void);

/* The type `Account` of Python, to be added to the module; a new reference, NULL with an exception. */
PyTypeObject *accounts_make_type(PyObject *module);

/* The number of an `Account`. */
uint32_t accounts_number(PyObject *account);

#endif
