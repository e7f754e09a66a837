/* The table of accounts, and what Python sees of it; see accounts.h. */

#include "accounts.h"

#include "hooks.h"
#include "tallies.h"

#include <stdlib.h>

struct account {
    int64_t own;      /* bytes of the live blocks of its tallies */
    uint32_t tallies; /* how many have it */
    uint32_t next_free;
    uint8_t is_held;
};

static struct account *accounts;
static uint32_t used = 1; /* numbers below this have been given out at least once */
static uint32_t free_account = NO_ACCOUNT;

static void recycle_if_done(uint32_t number)
{
    struct account *account = &accounts[number];
    if (number != NO_ACCOUNT && !account->is_held && account->tallies == 0) {
        account->next_free = free_account;
        free_account = number;
    }
}

uint32_t accounts_open(void)
{
    /* Not Python's: or it would be charged to whoever opens the first. */
    if (accounts == NULL && (accounts = calloc(MAX_ACCOUNTS, sizeof *accounts)) == NULL) {
        return NO_ACCOUNT;
    }
    uint32_t number = free_account;
    if (number != NO_ACCOUNT) {
        free_account = accounts[number].next_free;
    }
    else if (used < MAX_ACCOUNTS) {
        number = used++;
    }
    else {
        return NO_ACCOUNT;
    }
    accounts[number] = (struct account){.is_held = 1};
    return number;
}

void accounts_release(uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].is_held = 0;
        recycle_if_done(number);
    }
}

int64_t accounts_live(uint32_t number)
{
    return accounts == NULL ? 0 : accounts[number].own;
}

void accounts_add(uint32_t number, int64_t change)
{
    if (number != NO_ACCOUNT) {
        accounts[number].own += change;
    }
}

void accounts_join(uint32_t tally, uint32_t number)
{
    if (number != NO_ACCOUNT) {
        accounts[number].tallies++;
        accounts[number].own += tallies[tally].own;
    }
    tallies[tally].account = number;
}

void accounts_part(uint32_t tally)
{
    uint32_t number = tallies[tally].account;
    tallies[tally].account = NO_ACCOUNT;
    if (number != NO_ACCOUNT) {
        accounts[number].own -= tallies[tally].own;
        accounts[number].tallies--;
        recycle_if_done(number);
    }
}

void accounts_forget(void)
{
    for (uint32_t number = 0; accounts != NULL && number < used; number++) {
        accounts[number].own = 0;
    }
}

typedef struct {
    PyObject_HEAD
    uint32_t number;
} Account;

uint32_t accounts_number(PyObject *account)
{
    return ((Account *)account)->number;
}

static PyObject *Account_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names))
{
    Account *self = (Account *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->number = accounts_open();
    }
    return (PyObject *)self;
}

static void Account_dealloc(Account *self)
{
    PyTypeObject *type = Py_TYPE(self);
    accounts_release(self->number);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(live_doc, "live_bytes($self, /)\n--\n\n"
    "Return the bytes of the live blocks that its owners have made; None where there was no number left for it, and\n"
    "where blocks are counted no more.");

static PyObject *Account_live_bytes(Account *self, PyObject *Py_UNUSED(none))
{
    if (self->number == NO_ACCOUNT || hooks_have_stopped()) {
        Py_RETURN_NONE;
    }
    if (tallies != NULL) {
        tallies_settle();
    }
    return PyLong_FromLongLong((long long)accounts_live(self->number));
}

static PyMethodDef methods[] = {
    {"live_bytes", (PyCFunction)Account_live_bytes, METH_NOARGS, live_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(account_doc, "Account()\n--\n\nWhat the owners of one account hold together, the ended ones included.");

static PyType_Slot type_slots[] = {
    {Py_tp_doc, (void *)account_doc}, {Py_tp_new, Account_new}, {Py_tp_dealloc, Account_dealloc},
    {Py_tp_methods, methods},         {0, NULL},
};

static PyType_Spec type_spec = {
    .name = "memtools.ledger._native.Account",
    .basicsize = sizeof(Account),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = type_slots,
};

PyTypeObject *accounts_make_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &type_spec, NULL);
}
