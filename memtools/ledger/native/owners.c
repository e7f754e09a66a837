/* What the book keeps, and what Python calls of it; see book.h. */

#include "owners.h"

#include <time.h>

#include "coroutine.h"
#include "counters.h"
#include "hooks.h"
#include "objects.h"

struct kept kept;

static long long holds;

/* What was read last, and when. */
#define LATELY_S 0.001
static double read_at = -1.0;
static long long resident;

double kept_now_s(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* as `time.perf_counter` */
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int kept_resident(double now, long long *bytes)
{
    if (now >= read_at && now - read_at <= LATELY_S) {
        *bytes = resident;
        return 0;
    }
    PyObject *size = PyObject_CallNoArgs(kept.read_resident);
    *bytes = size == NULL ? -1 : PyLong_AsLongLong(size);
    Py_XDECREF(size);
    if (*bytes == -1 && PyErr_Occurred()) {
        return -1;
    }
    read_at = now;
    resident = *bytes;
    return 0;
}

long long kept_hold(void)
{
    if (++holds == 1) {
        hooks_count(1);
    }
    return holds;
}

long long kept_release(void)
{
    if (--holds == 0) {
        hooks_count(0);
    }
    return holds;
}

PyDoc_STRVAR(open_doc, "open_plain($module, meter, kind, name, include_children, driver, /)\n--\n\n"
    "Open an owner of the native meter below the active one; None if it is not plain.");

static PyObject *native_open_plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "open_plain() takes five arguments");
        return NULL;
    }
    PyObject *owner = book_open_plain(args[0], args[1], args[2], args[3] == Py_True, args[4]);
    return owner == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : owner;
}

PyDoc_STRVAR(settle_doc, "settle_plain($module, owner, failed, back, /)\n--\n\n"
    "End an owner of the native meter and tell; return False, and do nothing, if it is not plain.");

static PyObject *native_settle_plain(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "settle_plain() takes an owner, whether it failed, and an owner or None");
        return NULL;
    }
    int has_settled = book_settle_plain(args[0], args[1] == Py_True, args[2]);
    return has_settled < 0 ? NULL : PyBool_FromLong(has_settled);
}

PyDoc_STRVAR(hold_doc, "hold($module, /)\n--\n\nBegin to count, until `release`; return how many hold.");

static PyObject *native_hold(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong(kept_hold());
}

PyDoc_STRVAR(release_doc, "release($module, /)\n--\n\nGive up one hold; after the last one new blocks are not counted.");

static PyObject *native_release(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong(kept_release());
}

PyDoc_STRVAR(keep_doc, "keep_book($module, owner_class, active, open_owners, read_resident, note_child, mark, is_heard, "
    "tell_end, meter_name, /)\n--\n\nSay where the books are, and who is told of what is rare.");

static PyObject *native_keep_book(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given[9];
    if (!PyArg_ParseTuple(args, "O!O!O!OOOOOU:keep_book", &PyType_Type, &given[0], &PyContextVar_Type, &given[1],
                          &PyDict_Type, &given[2], &given[3], &given[4], &given[5], &given[6], &given[7], &given[8])) {
        return NULL;
    }
    if (!PyType_IsSubtype((PyTypeObject *)given[0], seats_owner_type)) {
        PyErr_SetString(PyExc_TypeError, "not a class of owners");
        return NULL;
    }
    PyObject **places[9] = {&kept.owner_class, &kept.active, &kept.open_owners, &kept.read_resident, &kept.note_child,
                          &kept.mark, &kept.is_heard, &kept.tell_end, &kept.meter_name};
    for (int n = 0; n < 9; n++) {
        Py_XSETREF(*places[n], Py_NewRef(given[n]));
    }
    seats_owner_class = (PyTypeObject *)kept.owner_class; /* lives as long */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(root_doc, "keep_root($module, root, /)\n--\n\nSay which account is above all others.");

static PyObject *native_keep_root(PyObject *Py_UNUSED(module), PyObject *account)
{
    Py_XSETREF(kept.root, Py_NewRef(account));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(meter_doc, "keep_meter($module, meter, /)\n--\n\nSay whose owners may be plain ones.");

static PyObject *native_keep_meter(PyObject *Py_UNUSED(module), PyObject *meter)
{
    Py_XSETREF(kept.native_meter, Py_NewRef(meter));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(long_doc, "go_long($module, is_on, /)\n--\n\nOpen no owner the quick way: each opening has more to do for now.");

static PyObject *native_go_long(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    kept.goes_long = is_on == Py_True;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"go_long", native_go_long, METH_O, long_doc},
    {"hold", native_hold, METH_NOARGS, hold_doc},
    {"keep_book", native_keep_book, METH_VARARGS, keep_doc},
    {"keep_root", native_keep_root, METH_O, root_doc},
    {"keep_meter", native_keep_meter, METH_O, meter_doc},
    {"open_plain", (PyCFunction)(void (*)(void))native_open_plain, METH_FASTCALL, open_doc},
    {"release", native_release, METH_NOARGS, release_doc},
    {"settle_plain", (PyCFunction)(void (*)(void))native_settle_plain, METH_FASTCALL, settle_doc},
    {NULL, NULL, 0, NULL},
};

int book_register(PyObject *module, PyTypeObject *type_of_tallies, PyTypeObject *type_of_holdings)
{
    if (kept.tally_type == NULL) {
        kept.tally_type = (PyTypeObject *)Py_NewRef((PyObject *)type_of_tallies);
        kept.holdings_type = (PyTypeObject *)Py_NewRef((PyObject *)type_of_holdings);
    }
    return PyModule_AddFunctions(module, functions);
}

/* Opening plain owners; see book.h. */

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

/* Ending plain owners; see book.h. */

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
