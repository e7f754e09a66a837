/* What the book keeps, and what Python calls of it; see book.h. */

#include "book.h"

#include <time.h>

#include "hooks.h"
#include "kept.h"
#include "seats.h"

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
