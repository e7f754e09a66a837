/* Opening plain owners; see book.h. */

#include "book.h"

#include "accounts.h"
#include "check.h"
#include "driver.h"
#include "hooks.h"
#include "kept.h"
#include "module.h"
#include "seats.h"
#include "tallies.h"
#include "turns.h"

/* Put a new value into a field; NULL is an exception. */
static int put(PyObject **field, PyObject *made)
{
    if (made == NULL) {
        return -1;
    }
    Py_XSETREF(*field, made);
    return 0;
}

/* The account of that kind and name among those above, itself included: a function that calls itself has one account. */
static struct account *account_among(struct account *above, PyObject *kind, PyObject *name)
{
    while (above->parent != NULL && above->parent != Py_None) { /* the root is nobody's account */
        int is_same = above->name == name || (above->name != NULL && PyUnicode_CheckExact(above->name) &&
                                              PyUnicode_CheckExact(name) && PyUnicode_Compare(above->name, name) == 0);
        if (is_same && above->kind == kind) {
            return above;
        }
        if (!PyObject_TypeCheck(above->parent, seats_account_type)) {
            return NULL;
        }
        above = (struct account *)above->parent;
    }
    return NULL;
}

/* The account of a plain owner, borrowed; NULL, perhaps with an exception. */
static struct account *known_account(struct account *above, PyObject *kind, PyObject *name, int include_children)
{
    if (above->children == NULL || !PyDict_CheckExact(above->children)) {
        return NULL;
    }
    PyObject *key = PyTuple_Pack(2, kind, name);
    if (key == NULL) {
        return NULL;
    }
    PyObject *found = PyDict_GetItemWithError(above->children, key);
    Py_DECREF(key);
    struct account *account = (struct account *)found;
    if (found == NULL && (PyErr_Occurred() || (account = account_among(above, kind, name)) == NULL)) {
        return NULL;
    }
    if (!PyObject_TypeCheck((PyObject *)account, seats_account_type)) {
        return NULL;
    }
    int is_plain = account->holdings != NULL && Py_IS_TYPE(account->holdings, kept.holdings_type) &&
                   account->meter == kept.meter_name && account->stands_alone == !include_children;
    return is_plain ? account : NULL;
}

/* Whether one above that is open has the same account, so that its figures have those of this one in them. */
static int stands_below_itself(struct owner *parent, const struct account *account)
{
    for (; parent != NULL; parent = seats_owner(parent->parent)) {
        if (parent->account == (PyObject *)account && parent->ended == Py_False) {
            return 1;
        }
    }
    return 0;
}

/* The nearest one above that is counted by this meter, followed, and wants its children's figures. */
static PyObject *tally_above(struct owner *parent, PyObject *meter)
{
    while (parent != NULL && (parent->ended != Py_False || parent->adrift != Py_False || parent->meter != meter ||
                              parent->include_children != Py_True)) {
        parent = seats_owner(parent->parent);
    }
    int is_counted = parent != NULL && parent->watch != NULL && Py_IS_TYPE(parent->watch, kept.tally_type);
    return is_counted ? parent->watch : Py_None;
}

/* A task that starts its successor and ends, for ever: without this each would keep all that came before. */
static void forget_ended_above(struct owner *owner)
{
    struct owner *above;
    while ((above = seats_owner(owner->parent)) != NULL && above->ended != Py_False) {
        Py_SETREF(owner->parent, Py_XNewRef(above->parent));
    }
}

/* Whether it is one of the owners that a single call goes through, all of the same name. */
static int is_further_owner(const struct owner *parent, const struct account *account)
{
    return parent != NULL && parent->is_layered != Py_False && parent->account == (PyObject *)account;
}

/* Make a plain owner: all that may fail, and nothing that others can see. A new reference. */
static struct owner *make_owner(PyObject *meter, PyObject *kind, PyObject *name, int include_children,
                                struct owner *parent, struct account *account, PyObject *driver)
{
    PyObject *above = parent == NULL ? Py_None : (PyObject *)parent;
    struct owner *owner = seats_new_owner((PyTypeObject *)kept.owner_class, name, kind, meter, above, (PyObject *)account);
    if (owner == NULL) {
        return NULL;
    }
    double now = kept_now_s();
    long long resident;
    int failed = kept_resident(now, &resident) < 0 || put(&owner->opened_at, PyFloat_FromDouble(now)) < 0 ||
                 put(&owner->resident, PyLong_FromLongLong(resident)) < 0 ||
                 put(&owner->base, PyFloat_FromDouble((double)hooks_lost())) < 0;
    if (!failed && driver != Py_None) {
        Py_ssize_t steps = driver_steps(driver);
        /* The present step counts. */
        failed = steps < 0 || put(&owner->steps_before, PyLong_FromSsize_t(steps - 1)) < 0 ||
                 put(&owner->driver, PyWeakref_NewRef(driver, NULL)) < 0;
    }
    if (!failed) {
        failed = put(&owner->watch, PyObject_CallOneArg((PyObject *)kept.tally_type, tally_above(parent, meter))) < 0;
    }
    if (failed || ((Tally *)owner->watch)->is_shared) {
        Py_CLEAR(owner);
        return NULL;
    }
    if (!include_children) {
        Py_SETREF(owner->include_children, Py_NewRef(Py_False));
    }
    return owner;
}

/* Have all know of it, and give it the turn; -1 with an exception, and nobody knows. */
static int enter(struct owner *owner, struct owner *parent, struct account *account, struct slot *slot)
{
    PyObject *key = PyLong_FromVoidPtr(owner);
    PyObject *token = key == NULL ? NULL : PyContextVar_Set(kept.active, (PyObject *)owner);
    if (token == NULL || PyDict_SetItem(kept.open_owners, key, (PyObject *)owner) < 0) {
        Py_XDECREF(token);
        Py_XDECREF(key);
        return -1;
    }
    Py_DECREF(token);
    Py_DECREF(key);

    account->entered++;
    account->active++;
    uint32_t number = ((Tally *)owner->watch)->number;
    accounts_join(number, accounts_number(account->holdings));
    if (parent != NULL) {
        forget_ended_above(parent);
        Py_SETREF(owner->budgeted, Py_XNewRef(parent->budgeted));
        /* Without a call below itself further up, an account just below is that of no owner above. */
        int may_be_nested = account->parent != parent->account || parent->nested != Py_False;
        if (may_be_nested && stands_below_itself(parent, account)) {
            Py_SETREF(owner->nested, Py_NewRef(Py_True));
        }
    }
    Py_SETREF(owner->charged, Py_NewRef((PyObject *)owner));
    Py_SETREF(owner->outer, Py_XNewRef(slot->owner));
    here.tally = number;
    Py_XSETREF(slot->owner, Py_NewRef((PyObject *)owner));
    return 0;
}

PyObject *book_open_plain(PyObject *meter, PyObject *kind, PyObject *name, int include_children, PyObject *driver)
{
    struct owner *parent = NULL;
    if (kept.goes_long || meter != kept.native_meter || kept.owner_class == NULL || tallies == NULL ||
        turns_active(&parent) < 0) {
        return NULL;
    }
    struct owner *owner = NULL;
    struct slot *slot = NULL;
    here.is_spared = 1; /* as in `NativeMeter.hold` */
    PyObject *above = parent == NULL ? kept.root : parent->account;
    struct account *account = above == NULL || !PyObject_TypeCheck(above, seats_account_type)
                                  ? NULL
                                  : known_account((struct account *)above, kind, name, include_children);
    Py_XINCREF(account);
    if (account != NULL && !is_further_owner(parent, account) && (slot = turns_slot()) != NULL) {
        (void)kept_hold();
        if (check_hooks_are_in_place()) {
            owner = make_owner(meter, kind, name, include_children, parent, account, driver);
        }
        if (owner != NULL && enter(owner, parent, account, slot) < 0) {
            Py_CLEAR(owner);
        }
        if (owner == NULL) {
            (void)kept_release();
        }
    }
    here.is_spared = 0;
    Py_XDECREF(slot);
    Py_XDECREF(account);
    Py_XDECREF(parent);
    return (PyObject *)owner;
}
