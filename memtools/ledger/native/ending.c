/* Ending plain owners; see book.h. */

#include "book.h"

#include "check.h"
#include "driver.h"
#include "hooks.h"
#include "kept.h"
#include "module.h"
#include "seats.h"
#include "tallies.h"
#include "turns.h"

#define FIGURES 11
#define DURATION 6

static int is_plain(const struct owner *owner)
{
    return owner->ended == Py_False && owner->watch != NULL && Py_IS_TYPE(owner->watch, kept.tally_type) &&
           owner->turn == Py_None && owner->budget == Py_None && owner->adrift == Py_False &&
           owner->is_counted == Py_True && owner->detached == Py_False &&
           owner->note != NULL && PyUnicode_Check(owner->note) && PyUnicode_GetLength(owner->note) == 0 &&
           owner->account != NULL && PyObject_TypeCheck(owner->account, seats_account_type);
}

/* Whether its figures are to the byte. */
static int is_exact(const struct owner *owner)
{
    const Tally *tally = (const Tally *)owner->watch;
    return owner->name != NULL && !tally->is_shared && tally->era == tally_era && check_hooks_are_in_place() &&
           owner->base != NULL && PyFloat_Check(owner->base) && PyFloat_AsDouble(owner->base) == (double)hooks_lost();
}

/* Steps taken since the opening; 0 where no driver counts them. -1 with an exception. */
static long long steps_of(const struct owner *owner)
{
    if (owner->driver == NULL || owner->driver == Py_None) {
        return 0;
    }
    PyObject *driver = PyObject_CallNoArgs(owner->driver); /* a weak reference */
    if (driver == NULL || driver == Py_None) {
        Py_XDECREF(driver);
        return driver == NULL ? -1 : 0;
    }
    Py_ssize_t steps = driver_steps(driver);
    Py_DECREF(driver);
    return steps < 0 ? -1 : steps - PyLong_AsLongLong(owner->steps_before);
}

/* Write its figures into a tuple as `Usage` takes them; -1 with an exception. Starts no collection. */
static int fill(PyObject *final, const struct owner *owner, double now, long long resident, long long steps)
{
    const struct tally *tally = &tallies[((const Tally *)owner->watch)->number];
    long long live = tally->live, peak = tally->peak, allocated = tally->allocated;
    long long resident_before = PyLong_AsLongLong(owner->resident);
    double opened_at = PyFloat_AsDouble(owner->opened_at);
    if (PyErr_Occurred()) {
        return -1;
    }
    PyObject *made[FIGURES] = {
        Py_NewRef(owner->name),
        PyLong_FromLongLong(live),
        PyLong_FromLongLong(peak),
        PyLong_FromLongLong(allocated),
        PyLong_FromLongLong(allocated - live),
        PyLong_FromLongLong(resident - resident_before),
        PyFloat_FromDouble(now - opened_at),
        PyLong_FromLongLong(steps),
        Py_NewRef(kept.meter_name),
        Py_NewRef(Py_True),
        Py_NewRef(owner->note),
    };
    for (int n = 0; n < FIGURES; n++) {
        PyTuple_SET_ITEM(final, n, made[n]); /* NULL is what an item begins with */
    }
    return PyErr_Occurred() ? -1 : 0;
}

static void settle_account(struct account *account, const struct owner *owner, double duration_s, long long steps,
                           int failed)
{
    const struct tally *tally = &tallies[((const Tally *)owner->watch)->number];
    account->active--;
    account->ended++;
    account->failed += failed;
    account->steps += steps;
    account->peak_sum += tally->peak;
    if (owner->nested == Py_False) { /* else they are in those of one above */
        account->retained += tally->live;
        account->duration_s += duration_s;
    }
    if (tally->peak > account->peak) {
        account->peak = tally->peak;
    }
}

/* Whether a child is to be noted among the largest of its parent: not if it is like many before it. */
static int is_notable(const struct owner *parent, PyObject *name, long long peak)
{
    if (peak == 0 || parent->largest == NULL || !PyTuple_CheckExact(parent->largest)) {
        return peak != 0;
    }
    Py_ssize_t known = PyTuple_GET_SIZE(parent->largest);
    for (Py_ssize_t n = 0; n < known; n++) {
        PyObject *child = PyTuple_GET_ITEM(parent->largest, n);
        if (!PyTuple_CheckExact(child) || PyTuple_GET_SIZE(child) != 2) {
            return 1;
        }
        int is_last = known == 3 && n == 2;
        if ((is_last || PyTuple_GET_ITEM(child, 0) == name) && peak <= PyLong_AsLongLong(PyTuple_GET_ITEM(child, 1))) {
            return 0;
        }
    }
    return 1;
}

/* End the owner in the books, in one piece, and take the turn from it. */
static int leave(struct owner *owner, struct slot *slot, PyObject *back, PyObject *final)
{
    Tally *tally = (Tally *)owner->watch;
    struct owner *outer = seats_owner(back == Py_None ? owner->outer : back);
    while (outer != NULL && outer->ended != Py_False) {
        outer = seats_owner(outer->outer);
    }
    tallies_close(tally->number);
    Py_SETREF(owner->detached, Py_NewRef(Py_True));
    Py_SETREF(owner->ended, Py_NewRef(Py_True));
    Py_SETREF(owner->final, Py_NewRef(final));
    Py_SETREF(owner->budgeted, Py_NewRef(Py_None));
    Py_XINCREF(outer);
    Py_SETREF(owner->outer, Py_NewRef(outer == NULL ? Py_None : (PyObject *)outer));
    int failed = slot->owner == (PyObject *)owner ? turns_give(slot, (PyObject *)outer) : 0;
    Py_XDECREF(outer);
    Py_SETREF(owner->charged, Py_NewRef(Py_None)); /* it is its own: a cycle */

    PyObject *key = PyLong_FromVoidPtr(owner);
    if (key == NULL || PyDict_DelItem(kept.open_owners, key) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(key);
    PyObject *now_active = NULL;
    failed = PyContextVar_Get(kept.active, Py_None, &now_active) < 0 || failed;
    if (now_active == (PyObject *)owner) {
        PyObject *token = PyContextVar_Set(kept.active, owner->parent);
        failed = token == NULL || failed;
        Py_XDECREF(token);
    }
    Py_XDECREF(now_active);
    return failed ? -1 : 0;
}

/* Tell Python what is rare, and the end, if anybody listens. */
static int tell(struct owner *owner, struct account *account, PyObject *final, long long peak, int failed)
{
    struct owner *parent = seats_owner(owner->parent);
    PyObject *result = PyObject_CallNoArgs(kept.is_heard);
    int has_listeners = result == Py_True;
    if (result != NULL && parent != NULL && is_notable(parent, owner->name, peak)) {
        Py_SETREF(result, PyObject_CallFunctionObjArgs(kept.note_child, owner->parent, owner->name, final, NULL));
    }
    if (result != NULL && account->ended >= 16 && (account->ended & (account->ended - 1)) == 0) {
        Py_SETREF(result, PyObject_CallOneArg(kept.mark, (PyObject *)account));
    }
    if (result != NULL && has_listeners) {
        Py_SETREF(result, PyObject_CallFunctionObjArgs(kept.tell_end, owner, failed ? Py_True : Py_False, NULL));
    }
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int book_settle_plain(PyObject *ending, int failed, PyObject *back)
{
    struct owner *owner = seats_owner(ending);
    double now = kept_now_s();
    if (owner == NULL || !is_plain(owner)) {
        return 0;
    }
    long long resident;
    if (kept_resident(now, &resident) < 0) {
        return -1;
    }
    long long steps = steps_of(owner);
    struct slot *slot = PyErr_Occurred() ? NULL : turns_slot();
    PyObject *final = slot == NULL ? NULL : PyTuple_New(FIGURES);
    if (final == NULL) {
        Py_XDECREF(slot);
        return -1;
    }
    /* Up to here other code may have run, in a collection or another thread. From here on it is in one piece. */
    int result = 0;
    if (is_plain(owner) && is_exact(owner)) {
        tallies_settle();
        result = fill(final, owner, now, resident, steps) < 0 ? -1 : 1;
    }
    if (result > 0) {
        struct account *account = (struct account *)Py_NewRef(owner->account);
        int64_t peak = tallies[((Tally *)owner->watch)->number].peak;
        settle_account(account, owner, PyFloat_AsDouble(PyTuple_GET_ITEM(final, DURATION)), steps, failed);
        int is_broken = leave(owner, slot, back == ending ? Py_None : back, final) < 0;
        (void)kept_release();
        result = is_broken || tell(owner, account, final, peak, failed) < 0 ? -1 : 1;
        Py_DECREF(account);
    }
    Py_DECREF(final);
    Py_DECREF(slot);
    return result;
}
