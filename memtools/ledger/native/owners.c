/* Opening and closing of owners on the fast path, and the functions by which Python configures it. */

#include "owners.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "counters.h"
#include "hooks.h"
#include "layout.h"
#include "objects.h"
#include "platform.h"
#include "threads.h"

#define MAX_SEARCHED 16 /* accounts above */

static long long hold_count;
static double resident_read_at = -1.0;
static long long last_resident;

static int owners_read_resident(double now, long long *bytes)
{
    if (now >= resident_read_at && now - resident_read_at <= RESIDENT_MAX_AGE_S) {
        *bytes = last_resident;
        return 0;
    }
    PyObject *size = PyObject_CallNoArgs(runtime.read_resident);
    *bytes = size == NULL ? -1 : PyLong_AsLongLong(size);
    Py_XDECREF(size);
    if (*bytes == -1 && PyErr_Occurred()) {
        return -1;
    }
    resident_read_at = now;
    last_resident = *bytes;
    return 0;
}

static long long owners_hold_counting(void)
{
    if (++hold_count == 1) {
        hooks_set_counting(1);
    }
    return hold_count;
}

static long long owners_release_counting(void)
{
    if (--hold_count == 0) {
        hooks_set_counting(0);
    }
    return hold_count;
}

/* Opening. Keep in step with `open_owner` and `_register` of `memtools/ledger/_ledger.py`. */

/* Steals the reference to the new value; NULL is an exception. */
static int owners_set_field(PyObject **field, PyObject *made)
{
    if (made == NULL) {
        return -1;
    }
    Py_XSETREF(*field, made);
    return 0;
}

static int owners_is_same_text(PyObject *one, PyObject *other)
{
    return one == other || (one != NULL && PyUnicode_CheckExact(one) && PyUnicode_CheckExact(other) &&
                            PyUnicode_Compare(one, other) == 0);
}

/* A function that calls itself has one account, so an account may be the account of a nested owner, too. Python, which
   knows whether a name is new, looks further up: each new name would search a deep chain in vain. */
static struct account *owners_find_in_ancestors(struct account *above, PyObject *kind, PyObject *name)
{
    /* The root account has no name. */
    for (int n = 0; n < MAX_SEARCHED && above->parent != NULL && above->parent != Py_None; n++) {
        if (owners_is_same_text(above->name, name) && owners_is_same_text(above->kind, kind)) {
            return above;
        }
        if (!PyObject_TypeCheck(above->parent, objects_account_type)) {
            return NULL;
        }
        above = (struct account *)above->parent;
    }
    return NULL;
}

/* Returns a borrowed reference; NULL where the fast path declines, perhaps with an exception. */
static struct account *owners_find_account(struct account *above, PyObject *kind, PyObject *name, int include_children)
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
    if (found == NULL && (PyErr_Occurred() || (account = owners_find_in_ancestors(above, kind, name)) == NULL)) {
        return NULL;
    }
    if (!PyObject_TypeCheck((PyObject *)account, objects_account_type)) {
        return NULL;
    }
    int is_fast = account->totals != NULL && Py_IS_TYPE(account->totals, objects_totals_type) &&
                  account->meter == runtime.meter_name && account->excludes_children == !include_children;
    return is_fast ? account : NULL;
}

/* Return whether an open ancestor has the same account, so that the account already counts this owner's bytes. */
static int owners_is_recursive(struct owner *parent, const struct account *account)
{
    for (; parent != NULL; parent = objects_as_owner(parent->parent)) {
        if (parent->account == (PyObject *)account && parent->ended == Py_False) {
            return 1;
        }
    }
    return 0;
}

/* Return the counter of the nearest ancestor that this meter tracks and that includes its children, borrowed, or
   None. */
static PyObject *owners_parent_counter(struct owner *parent, PyObject *meter)
{
    while (parent != NULL && (parent->ended != Py_False || parent->is_untracked != Py_False || parent->meter != meter ||
                              parent->include_children != Py_True)) {
        parent = objects_as_owner(parent->parent);
    }
    int is_counted =
        parent != NULL && parent->meter_state != NULL && Py_IS_TYPE(parent->meter_state, objects_counter_type);
    return is_counted ? parent->meter_state : Py_None;
}

/* In an endless chain of tasks, each of which starts the next one and ends, each owner would keep all earlier ones. */
static void owners_skip_ended_parents(struct owner *owner)
{
    struct owner *above;
    while ((above = objects_as_owner(owner->parent)) != NULL && above->ended != Py_False) {
        Py_SETREF(owner->parent, Py_XNewRef(above->parent));
    }
}

/* Stacked decorators open several owners of one name for one call, which counts once. */
static int owners_is_stacked(const struct owner *parent, const struct account *account)
{
    return parent != NULL && parent->is_stacked != Py_False && parent->account == (PyObject *)account;
}

/* Do all that may fail and changes no record yet. Returns a new reference; NULL where the fast path declines,
   perhaps with an exception. */
static struct owner *owners_make(PyObject *meter, PyObject *kind, PyObject *name, int include_children,
                                 struct owner *parent, struct account *account, PyObject *tracker, Py_ssize_t steps)
{
    PyObject *above = parent == NULL ? Py_None : (PyObject *)parent;
    struct owner *owner =
        objects_new_owner((PyTypeObject *)runtime.owner_class, name, kind, meter, above, (PyObject *)account);
    if (owner == NULL) {
        return NULL;
    }
    double now = platform_now_s();
    long long resident;
    int failed = owners_read_resident(now, &resident) < 0 ||
                 owners_set_field(&owner->opened_at, PyFloat_FromDouble(now)) < 0 ||
                 owners_set_field(&owner->resident_at_open, PyLong_FromLongLong(resident)) < 0 ||
                 owners_set_field(&owner->baseline, PyFloat_FromDouble((double)hooks_lost_blocks())) < 0;
    if (!failed && tracker != Py_None) {
        /* The step in which the owner is opened counts for the owner. */
        failed = owners_set_field(&owner->steps_at_open, PyLong_FromSsize_t(steps - 1)) < 0 ||
                 owners_set_field(&owner->tracker, PyWeakref_NewRef(tracker, NULL)) < 0;
    }
    if (!failed) {
        PyObject *parent_counter = owners_parent_counter(parent, meter);
        failed = owners_set_field(&owner->meter_state,
                                  PyObject_CallOneArg((PyObject *)objects_counter_type, parent_counter)) < 0;
    }
    if (failed || ((CounterObject *)owner->meter_state)->is_shared) {
        Py_CLEAR(owner);
        return NULL;
    }
    if (!include_children) {
        Py_SETREF(owner->include_children, Py_NewRef(Py_False));
    }
    return owner;
}

/* Enter the owner in the records and make it the current one; -1 with an exception, and then nothing was changed. */
static int owners_register_open(struct owner *owner, struct owner *parent, struct account *account)
{
    PyObject *key = PyLong_FromVoidPtr(owner);
    PyObject *token = key == NULL ? NULL : PyContextVar_Set(runtime.active_variable, (PyObject *)owner);
    if (token == NULL || PyDict_SetItem(runtime.open_owners, key, (PyObject *)owner) < 0) {
        Py_XDECREF(token);
        Py_XDECREF(key);
        return -1;
    }
    Py_DECREF(token);
    Py_DECREF(key);

    account->started++;
    account->active++;
    uint32_t number = ((CounterObject *)owner->meter_state)->number;
    counters_join_account(number, objects_account_number(account->totals));
    if (parent != NULL) {
        owners_skip_ended_parents(parent);
        Py_SETREF(owner->nearest_budgeted, Py_XNewRef(parent->nearest_budgeted));
        /* Unless an ancestor is recursive, an account directly below the parent's belongs to no ancestor. */
        int may_be_recursive = account->parent != parent->account || parent->is_recursive != Py_False;
        if (may_be_recursive && owners_is_recursive(parent, account)) {
            Py_SETREF(owner->is_recursive, Py_NewRef(Py_True));
        }
    }
    Py_SETREF(owner->charged_to, Py_NewRef((PyObject *)owner));
    threads_charge(number);
    return 0;
}

PyObject *owners_open_fast(PyObject *meter, PyObject *kind, PyObject *name, int include_children, PyObject *tracker,
                           Py_ssize_t steps)
{
    struct owner *parent = NULL;
    if (runtime.fast_path_disabled || runtime.has_other_meters || meter != runtime.native_meter || runtime.owner_class == NULL || counters == NULL ||
        objects_active_owner(&parent) < 0) {
        return NULL;
    }
    struct owner *owner = NULL;
    thread_state.enforcement_off = 1; /* as `NativeMeter.acquire` in `memtools/ledger/meters/_native.py` */
    PyObject *above = parent == NULL ? runtime.root_account : parent->account;
    /* A parent of a class below `Owner` finds its name, and with it its account, when Python code asks for them. */
    int is_named = parent == NULL || Py_IS_TYPE((PyObject *)parent, objects_owner_class);
    struct account *account = !is_named || above == NULL || !PyObject_TypeCheck(above, objects_account_type)
                                  ? NULL
                                  : owners_find_account((struct account *)above, kind, name, include_children);
    Py_XINCREF(account);
    if (account != NULL && !owners_is_stacked(parent, account)) {
        (void)owners_hold_counting();
        if (hooks_are_in_place()) {
            owner = owners_make(meter, kind, name, include_children, parent, account, tracker, steps);
        }
        if (owner != NULL && owners_register_open(owner, parent, account) < 0) {
            Py_CLEAR(owner);
        }
        if (owner == NULL) {
            (void)owners_release_counting();
        }
    }
    thread_state.enforcement_off = 0;
    Py_XDECREF(account);
    Py_XDECREF(parent);
    return (PyObject *)owner;
}

/* Closing. Keep in step with `close_owner` and `_add_to_account` of `memtools/ledger/_ledger.py`. */

static int owners_is_fast(const struct owner *owner)
{
    return !runtime.fast_path_disabled && owner->ended == Py_False && owner->meter_state != NULL &&
           Py_IS_TYPE(owner->meter_state, objects_counter_type) && owner->suspension == Py_None &&
           owner->budget == Py_None && owner->previous == Py_None && owner->is_untracked == Py_False && owner->is_counted == Py_True &&
           owner->detached == Py_False && owner->note != NULL && PyUnicode_Check(owner->note) &&
           PyUnicode_GetLength(owner->note) == 0 && owner->account != NULL &&
           PyObject_TypeCheck(owner->account, objects_account_type);
}

int owners_may_close_fast(PyObject *candidate)
{
    const struct owner *owner = objects_as_owner(candidate);
    return owner != NULL && owners_is_fast(owner);
}

static int owners_is_exact(const struct owner *owner)
{
    const CounterObject *counter = (const CounterObject *)owner->meter_state;
    int64_t begun, pooled;
    return owner->name != NULL && !counter->is_shared && counter->session == objects_session && hooks_are_in_place() &&
           owner->baseline != NULL && PyFloat_Check(owner->baseline) &&
           PyFloat_AsDouble(owner->baseline) == (double)hooks_lost_blocks() &&
           !threads_may_have_worked_for(counter->number, &begun, &pooled);
}

/* Return a `UsageTuple` without items. It is not made by a call, which would take several times as long. */
static PyObject *owners_new_usage(void)
{
    PyTypeObject *type = (PyTypeObject *)runtime.usage_type;
    return type->tp_alloc(type, USAGE_FIELDS);
}

/* Fill a `UsageTuple` without items; -1 with an exception. Starts no garbage collection. */
static int owners_fill_usage(PyObject *usage, const struct owner *owner, double now, long long resident, long long steps)
{
    const struct counter *counter = &counters[((const CounterObject *)owner->meter_state)->number];
    long long live = counter->live, peak = counter->peak, allocated = counter->allocated;
    long long resident_at_open = PyLong_AsLongLong(owner->resident_at_open);
    double opened_at = PyFloat_AsDouble(owner->opened_at);
    if (PyErr_Occurred()) {
        return -1;
    }
    PyObject *made[USAGE_FIELDS] = {
        [USAGE_NAME] = Py_NewRef(owner->name),
        [USAGE_RETAINED_BYTES] = PyLong_FromLongLong(live),
        [USAGE_PEAK_BYTES] = PyLong_FromLongLong(peak),
        [USAGE_ALLOCATED_BYTES] = PyLong_FromLongLong(allocated),
        [USAGE_FREED_BYTES] = PyLong_FromLongLong(allocated - live),
        [USAGE_RESIDENT_DELTA_BYTES] = PyLong_FromLongLong(resident - resident_at_open),
        [USAGE_DURATION_S] = PyFloat_FromDouble(now - opened_at),
        [USAGE_STEPS] = PyLong_FromLongLong(steps),
        [USAGE_METER] = Py_NewRef(runtime.meter_name),
        [USAGE_EXACT] = Py_NewRef(Py_True),
        [USAGE_NOTE] = Py_NewRef(owner->note),
    };
    for (int n = 0; n < USAGE_FIELDS; n++) {
        PyTuple_SET_ITEM(usage, n, made[n]); /* may be NULL, as in a new tuple */
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    if (PyUnicode_CheckExact(owner->name) && PyUnicode_CheckExact(owner->note)) {
        PyObject_GC_UnTrack(usage); /* no item is a container: garbage collections need not visit it */
    }
    return 0;
}

static void owners_add_to_account(struct account *account, const struct owner *owner, double duration_s, long long steps,
                                  int failed)
{
    const struct counter *counter = &counters[((const CounterObject *)owner->meter_state)->number];
    account->active--;
    account->ended++;
    account->failed += failed;
    account->steps += steps;
    account->peak_sum += counter->peak;
    if (owner->is_recursive == Py_False) { /* else the ancestor with the same account adds them */
        account->retained += counter->live;
        account->duration_s += duration_s;
    }
    if (counter->peak > account->peak) {
        account->peak = counter->peak;
    }
}

/* Return whether Python has to compare a child with the largest children of its parent. A child of a name that is
   among them with a higher peak, the most frequent case, is not compared. */
static int owners_may_be_among_largest(const struct owner *parent, PyObject *name, long long peak)
{
    if (peak == 0 || parent->largest_children == NULL || !PyTuple_CheckExact(parent->largest_children)) {
        return peak != 0;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(parent->largest_children);
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *child = PyTuple_GET_ITEM(parent->largest_children, n);
        if (!PyTuple_CheckExact(child) || PyTuple_GET_SIZE(child) != CHILD_FIELDS) {
            return 1;
        }
        int is_last = count == MAX_LARGEST_CHILDREN && n == MAX_LARGEST_CHILDREN - 1;
        if ((is_last || PyTuple_GET_ITEM(child, CHILD_NAME) == name) &&
            peak <= PyLong_AsLongLong(PyTuple_GET_ITEM(child, CHILD_PEAK_BYTES))) {
            return 0;
        }
    }
    return 1;
}

/* Take the owner out of the records; from now on each thread charges the owner that is active in its context. */
static int owners_register_end(struct owner *owner, PyObject *usage)
{
    CounterObject *counter = (CounterObject *)owner->meter_state;
    counters_close(counter->number);
    Py_SETREF(owner->detached, Py_NewRef(Py_True));
    Py_SETREF(owner->ended, Py_NewRef(Py_True));
    Py_SETREF(owner->final_usage, Py_NewRef(usage));
    Py_SETREF(owner->nearest_budgeted, Py_NewRef(Py_None));
    Py_SETREF(owner->charged_to, Py_NewRef(Py_None)); /* breaks a reference cycle: it was the owner itself */

    PyObject *key = PyLong_FromVoidPtr(owner);
    if (key == NULL || PyDict_DelItem(runtime.open_owners, key) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(key);
    PyObject *active = NULL;
    int failed = PyContextVar_Get(runtime.active_variable, Py_None, &active) < 0;
    if (active == (PyObject *)owner) {
        PyObject *token = PyContextVar_Set(runtime.active_variable, owner->parent);
        failed = token == NULL;
        Py_XDECREF(token);
    }
    Py_XDECREF(active);
    threads_epoch++;
    return failed ? -1 : 0;
}

/* Call Python for the rare cases, and for the end if a listener wants to know of it. */
static int owners_notify(struct owner *owner, struct account *account, PyObject *usage, long long peak, int failed)
{
    struct owner *parent = objects_as_owner(owner->parent);
    PyObject *result = PyObject_CallNoArgs(runtime.has_listeners);
    int has_listeners = result == Py_True;
    if (result != NULL && parent != NULL && owners_may_be_among_largest(parent, owner->name, peak)) {
        Py_SETREF(result, PyObject_CallFunctionObjArgs(runtime.update_largest_children, owner->parent, owner->name, usage,
                                                       NULL));
    }
    int is_power_of_two = (account->ended & (account->ended - 1)) == 0;
    if (result != NULL && account->ended >= FIRST_CHECKPOINT && is_power_of_two) {
        Py_SETREF(result, PyObject_CallOneArg(runtime.checkpoint_account, (PyObject *)account));
    }
    if (result != NULL && has_listeners) {
        Py_SETREF(result,
                  PyObject_CallFunctionObjArgs(runtime.notify_ended, owner, failed ? Py_True : Py_False, NULL));
    }
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int owners_close_fast(PyObject *closing, int failed, long long steps)
{
    struct owner *owner = objects_as_owner(closing);
    double now = platform_now_s();
    if (owner == NULL || !owners_is_fast(owner)) {
        return 0;
    }
    /* Up to Python 3.11 even the comparison of two keys of a dict takes a level of the stack, and may fail for it. */
    if (Py_EnterRecursiveCall(" while an owner is closed")) {
        return -1;
    }
    Py_LeaveRecursiveCall();
    long long resident;
    if (owners_read_resident(now, &resident) < 0) {
        return -1;
    }
    PyObject *usage = owners_new_usage();
    if (usage == NULL) {
        return -1;
    }
    /* Up to here a garbage collection or another thread may have run Python code, hence the second check. From here
       on no Python code runs until the records are complete. */
    int result = 0;
    if (owners_is_fast(owner) && owners_is_exact(owner)) {
        counters_flush_into(((CounterObject *)owner->meter_state)->number);
        result = owners_fill_usage(usage, owner, now, resident, steps) < 0 ? -1 : 1;
    }
    if (result > 0) {
        struct account *account = (struct account *)Py_NewRef(owner->account);
        int64_t peak = counters[((CounterObject *)owner->meter_state)->number].peak;
        double duration_s = PyFloat_AsDouble(PyTuple_GET_ITEM(usage, USAGE_DURATION_S));
        owners_add_to_account(account, owner, duration_s, steps, failed);
        int is_broken = owners_register_end(owner, usage) < 0;
        (void)owners_release_counting();
        result = is_broken || owners_notify(owner, account, usage, peak, failed) < 0 ? -1 : 1;
        Py_DECREF(account);
    }
    Py_DECREF(usage);
    return result;
}

/* Functions of the module. */

PyDoc_STRVAR(acquire_doc, "acquire($module, /)\n--\n\nBegin to count until `release()`; return the number of holds.");

static PyObject *owners_py_acquire(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong(owners_hold_counting());
}

PyDoc_STRVAR(release_doc, "release($module, /)\n--\n\n"
    "Give up one hold; return the number of holds. After the last one, new blocks are not counted.");

static PyObject *owners_py_release(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong(owners_release_counting());
}

PyDoc_STRVAR(configure_doc, "configure($module, owner_class, usage_type, active, open_owners, read_resident, "
    "update_largest_children, checkpoint, has_listeners, emit_ended, meter_name, /)\n--\n\n"
    "Set the records and the callables that the fast path uses.");

/* A field in the wrong place would be a wrong figure, so compare the fields with those that the C code fills. */
static int owners_check_usage_type(PyTypeObject *type)
{
    static const char *const names[USAGE_FIELDS] = {
#define FIELD(field, name) [field] = name,
        EACH_USAGE_FIELD(FIELD)
#undef FIELD
    };
    PyObject *fields = PyObject_GetAttrString((PyObject *)type, "_fields");
    if (fields == NULL) {
        return -1;
    }
    int is_same = PyType_IsSubtype(type, &PyTuple_Type) && type->tp_basicsize == PyTuple_Type.tp_basicsize &&
                  PyTuple_Check(fields) && PyTuple_GET_SIZE(fields) == USAGE_FIELDS;
    for (int n = 0; is_same && n < USAGE_FIELDS; n++) {
        PyObject *field = PyTuple_GET_ITEM(fields, n);
        is_same = PyUnicode_Check(field) && PyUnicode_CompareWithASCIIString(field, names[n]) == 0;
    }
    Py_DECREF(fields);
    if (!is_same) {
        PyErr_SetString(PyExc_TypeError, "the fields of UsageTuple are not those that the C code fills");
    }
    return is_same ? 0 : -1;
}

static PyObject *owners_py_configure(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given[10];
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOOOU:configure", &PyType_Type, &given[0], &PyType_Type, &given[1],
                          &PyContextVar_Type, &given[2], &PyDict_Type, &given[3], &given[4], &given[5], &given[6],
                          &given[7], &given[8], &given[9])) {
        return NULL;
    }
    if (!PyType_IsSubtype((PyTypeObject *)given[0], objects_owner_type)) {
        PyErr_SetString(PyExc_TypeError, "not a class of owners");
        return NULL;
    }
    if (owners_check_usage_type((PyTypeObject *)given[1]) < 0) {
        return NULL;
    }
    PyObject **fields[10] = {
        &runtime.owner_class,
        &runtime.usage_type,
        &runtime.active_variable,
        &runtime.open_owners,
        &runtime.read_resident,
        &runtime.update_largest_children,
        &runtime.checkpoint_account,
        &runtime.has_listeners,
        &runtime.notify_ended,
        &runtime.meter_name,
    };
    for (int n = 0; n < 10; n++) {
        Py_XSETREF(*fields[n], Py_NewRef(given[n]));
    }
    objects_owner_class = (PyTypeObject *)runtime.owner_class; /* borrowed: `runtime` keeps it alive */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(root_doc, "set_root_account($module, root, /)\n--\n\n"
    "Set the account that is the ancestor of all accounts.");

static PyObject *owners_py_set_root_account(PyObject *Py_UNUSED(module), PyObject *account)
{
    Py_XSETREF(runtime.root_account, Py_NewRef(account));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(meter_doc, "set_native_meter($module, meter, /)\n--\n\n"
    "Set the meter whose owners may take the fast path.");

static PyObject *owners_py_set_native_meter(PyObject *Py_UNUSED(module), PyObject *meter)
{
    Py_XSETREF(runtime.native_meter, Py_NewRef(meter));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(budgeted_doc, "count_budgeted($module, change, /)\n--\n\n"
    "Tell that so many more owners are open whose budget is checked after each step.");

static PyObject *owners_py_count_budgeted(PyObject *Py_UNUSED(module), PyObject *change)
{
    long long more = PyLong_AsLongLong(change);
    if (more == -1 && PyErr_Occurred()) {
        return NULL;
    }
    runtime.budgeted_owners += more;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(other_doc, "set_other_meters($module, are_in_use, /)\n--\n\n"
    "Tell whether there are owners of a meter whose current owner has to be set at each step.");

static PyObject *owners_py_set_other_meters(PyObject *Py_UNUSED(module), PyObject *are_in_use)
{
    runtime.has_other_meters = are_in_use == Py_True;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(disable_doc, "disable_fast_path($module, is_disabled, /)\n--\n\n"
    "Disable the fast path, or enable it again: openings have more to do for now.");

static PyObject *owners_py_disable_fast_path(PyObject *Py_UNUSED(module), PyObject *is_disabled)
{
    runtime.fast_path_disabled = is_disabled == Py_True;
    Py_RETURN_NONE;
}

static PyMethodDef owners_functions[] = {
    {"acquire", owners_py_acquire, METH_NOARGS, acquire_doc},
    {"configure", owners_py_configure, METH_VARARGS, configure_doc},
    {"count_budgeted", owners_py_count_budgeted, METH_O, budgeted_doc},
    {"disable_fast_path", owners_py_disable_fast_path, METH_O, disable_doc},
    {"release", owners_py_release, METH_NOARGS, release_doc},
    {"set_native_meter", owners_py_set_native_meter, METH_O, meter_doc},
    {"set_other_meters", owners_py_set_other_meters, METH_O, other_doc},
    {"set_root_account", owners_py_set_root_account, METH_O, root_doc},
    {NULL, NULL, 0, NULL},
};

int owners_register(PyObject *module)
{
    return PyModule_AddFunctions(module, owners_functions);
}
