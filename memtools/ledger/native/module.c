/* The functions of `memtools.ledger._native`: the native meter as Python sees it.

   On interpreters without the GIL, on Windows, on machines without 64-bit addresses and where memory cannot be mapped,
   `reason()` says so, and the module does nothing else.

   Locking: every function is called under the GIL. Importing installs nothing. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>

#include "black_box.h"
#include "coroutine.h"
#include "counters.h"
#include "hooks.h"
#include "interpreters.h"
#include "limits.h"
#include "numpy_arrays.h"
#include "objects.h"
#include "owners.h"
#include "threads.h"

#ifdef Py_GIL_DISABLED
#define UNSUPPORTED "it relies on the GIL, and this Python is free-threaded"
#elif defined(_WIN32)
#define UNSUPPORTED "its Windows port has never been run inside an interpreter"
#elif UINTPTR_MAX < 0xFFFFFFFFFFFFFFFFu
#define UNSUPPORTED "it takes 64-bit addresses"
#else
#define UNSUPPORTED ""
#endif

static PyObject *module_raise_unavailable(void)
{
    PyErr_Format(PyExc_RuntimeError, "the native ledger is not available: %s", hooks_reason());
    return NULL;
}

PyDoc_STRVAR(reason_doc, "reason($module, /)\n--\n\nReturn why this process cannot be measured, empty if it can.");

static PyObject *module_reason(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyUnicode_FromString(*UNSUPPORTED ? UNSUPPORTED : hooks_reason());
}

PyDoc_STRVAR(unhooked_doc, "call_unhooked($module, function, argument, /)\n--\n\n"
    "Call a C function `int f(void *)`, by its address, as if nothing but Python's own allocator gave objects their\n"
    "memory; return what it returns. It must neither allocate nor free objects.");

static PyObject *module_call_unhooked(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t function;
    Py_ssize_t argument;
    if (!PyArg_ParseTuple(args, "nn:call_unhooked", &function, &argument)) {
        return NULL;
    }
    return PyLong_FromLong(hooks_call_unhooked((int (*)(void *))(intptr_t)function, (void *)(intptr_t)argument));
}

PyDoc_STRVAR(tables_doc, "tables($module, /)\n--\n\n"
    "Return the addresses of the tables of the ledger, as pairs of the first and the one behind the last.");

static PyObject *module_tables(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    PyObject *found = PyList_New(0);
    size_t size = MAX_COUNTERS * sizeof(struct counter);
    const void *start = counters;
    for (size_t number = 0; found != NULL && start != NULL; number++) {
        PyObject *range = Py_BuildValue("nn", (Py_ssize_t)(intptr_t)start, (Py_ssize_t)(intptr_t)start + (Py_ssize_t)size);
        if (range == NULL || PyList_Append(found, range) < 0) {
            Py_CLEAR(found);
        }
        Py_XDECREF(range);
        start = block_map_mapping(number, &size);
    }
    return found;
}

PyDoc_STRVAR(install_doc, "install($module, /)\n--\n\n"
    "Install the hooks unless they are installed, and check them; return whether they count right.");

static PyObject *module_install(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (*UNSUPPORTED) {
        Py_RETURN_FALSE;
    }
    if (counters != NULL && !*hooks_reason()) {
        objects_session++;
    }
    return PyBool_FromLong(hooks_install() == 0);
}

PyDoc_STRVAR(stopped_doc, "has_stopped($module, /)\n--\n\n"
    "Return whether counting has stopped for good after it had begun: figures no longer change.");

static PyObject *module_has_stopped(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(hooks_have_stopped());
}

PyDoc_STRVAR(count_doc, "set_counting($module, is_on, /)\n--\n\nTurn the counting of new blocks on or off.");

static PyObject *module_set_counting(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    int on = PyObject_IsTrue(is_on);
    if (on < 0) {
        return NULL;
    }
    if (counters == NULL) {
        return module_raise_unavailable();
    }
    hooks_set_counting(on);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(in_place_doc, "hooks_in_place($module, /)\n--\n\n"
    "Return whether allocations reach the hooks; to be called while they count.");

static PyObject *module_hooks_in_place(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(counters != NULL && hooks_are_in_place());
}

PyDoc_STRVAR(switch_doc, "switch($module, counter, /)\n--\n\n"
    "Charge `counter`, None for no owner, from now on, until another context becomes current in this thread.");

static PyObject *module_switch(PyObject *Py_UNUSED(module), PyObject *counter)
{
    thread_state.enforcement_off = 0;
    if (counter == Py_None) {
        threads_charge(ROOT);
        Py_RETURN_NONE;
    }
    if (!Py_IS_TYPE(counter, objects_counter_type)) {
        PyErr_SetString(PyExc_TypeError, "neither a Counter nor None");
        return NULL;
    }
    threads_charge(((CounterObject *)counter)->number);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(listen_doc, "listen_for_interpreters($module, /)\n--\n\n"
    "Install the audit hook that reports a sub-interpreter before it runs.");

static PyObject *module_listen_for_interpreters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    interpreters_listen();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(untracked_doc, "untracked_bytes($module, /)\n--\n\n"
    "Return the live bytes that were allocated while the thread had no current owner.");

static PyObject *module_untracked_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (counters == NULL) {
        return PyLong_FromLong(0);
    }
    interpreters_check_history();
    counters_flush();
    return PyLong_FromLongLong((long long)counters[ROOT].own);
}

PyDoc_STRVAR(count_folds_doc, "count_folds($module, /)\n--\n\n"
    "Return how many steps from a counter to its parent the upkeep of all figures has taken so far.");

static PyObject *module_count_folds(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong((long long)counters_count_folds());
}

PyDoc_STRVAR(counters_in_use_doc, "counters_in_use($module, /)\n--\n\nReturn how many of 32,766 counters are in use.");

static PyObject *module_counters_in_use(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(counters_in_use());
}

PyDoc_STRVAR(lost_doc, "lost_blocks($module, /)\n--\n\n"
    "Return how many blocks were not counted because the block map could not grow.");

static PyObject *module_lost_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(hooks_lost_blocks());
}

PyDoc_STRVAR(fork_doc, "after_fork($module, /)\n--\n\n"
    "Drop, in the child of a fork, the state of all threads but the calling one.");

static PyObject *module_after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (counters != NULL) {
        limits_after_fork();
        counters_after_fork();
        threads_after_fork();
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(suspend_doc, "suspend_enforcement($module, is_on, /)\n--\n\n"
    "Suspend or resume enforcement in this thread, while the ledger writes its records; a switch resumes it.");

static PyObject *module_suspend_enforcement(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    thread_state.enforcement_off = is_on == Py_True;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(box_open_doc, "black_box_open($module, fd, hot, threads, counters, size, /)\n--\n\n"
    "Write what each counter holds into a file from now on, whose parts begin at these places. The file is as large as\n"
    "`size` says, with its blocks, and the descriptor stays open until `black_box_close`.");

static PyObject *module_black_box_open(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    Py_ssize_t hot, threads, table, size;
    if (!PyArg_ParseTuple(args, "innnn:black_box_open", &fd, &hot, &threads, &table, &size)) {
        return NULL;
    }
    const Py_ssize_t ends[] = {hot + (Py_ssize_t)sizeof(struct black_box_hot),
                               threads + (Py_ssize_t)(BLACK_BOX_THREADS * sizeof(struct black_box_thread)),
                               table + (Py_ssize_t)((MAX_COUNTERS + 1) * sizeof(struct black_box_counter))};
    if (hot < 0 || threads < 0 || table < 0 || ends[0] > size || ends[1] > size || ends[2] > size ||
        (hot | threads | table) % 64 != 0) {
        PyErr_Format(PyExc_ValueError, "places=(%zd, %zd, %zd) are not accepted: they must be inside of %zd bytes", hot,
                     threads, table, size);
        return NULL;
    }
    int error = ENOSYS;
    if (!*UNSUPPORTED) {
        error = black_box_open(fd, &(struct black_box_places){(size_t)hot, (size_t)threads, (size_t)table, (size_t)size});
    }
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    counters_fill_black_box();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(box_close_doc, "black_box_close($module, /)\n--\n\n"
    "Release the file, which stays as it is. Nothing happens where there is none.");

static PyObject *module_black_box_close(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    black_box_close();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(box_check_doc, "black_box_check($module, /)\n--\n\n"
    "Write what was changed without the GIL, and guard against a file that is cut; return whether it was lost, and the\n"
    "bytes that are counted now.");

static PyObject *module_black_box_check(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    long long counted = 0;
    if (counters != NULL) {
        counters_flush();
        counted = (long long)counters[ROOT].live;
    }
    return Py_BuildValue("NL", PyBool_FromLong(black_box_check()), counted);
}

PyDoc_STRVAR(box_write_doc, "black_box_write($module, at, data, /)\n--\n\n"
    "Write bytes at a place of the file; return whether there is one.");

static PyObject *module_black_box_write(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t at;
    Py_buffer bytes;
    if (!PyArg_ParseTuple(args, "ny*:black_box_write", &at, &bytes)) {
        return NULL;
    }
    int has_written = at >= 0 && black_box_write((size_t)at, bytes.buf, (size_t)bytes.len) == 0;
    PyBuffer_Release(&bytes);
    return PyBool_FromLong(has_written);
}

PyDoc_STRVAR(refused_doc, "refused_blocks($module, /)\n--\n\nReturn how many blocks of all owners were refused.");

static PyObject *module_refused_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong((long long)limits_refused_blocks());
}

PyDoc_STRVAR(load_doc, "load_numpy_api($module, array_api, /)\n--\n\nSet numpy's table of functions, a capsule.");

static PyObject *module_load_numpy_api(PyObject *Py_UNUSED(module), PyObject *array_api)
{
    if (numpy_arrays_load_api(array_api) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(wrap_doc, "wrap_numpy_default($module, array_api, /)\n--\n\n"
    "Count what numpy's default memory handler allocates from now on, for good.");

static PyObject *module_wrap_numpy_default(PyObject *Py_UNUSED(module), PyObject *array_api)
{
    if (numpy_arrays_wrap_default(array_api) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arrays_doc, "count_arrays($module, is_on, /)\n--\n\n"
    "Turn the counting of numpy's arrays on or off, in this context and its later copies.");

static PyObject *module_count_arrays(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    if (numpy_arrays_set_counting(is_on == Py_True) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(open_doc, "open_fast($module, meter, kind, name, include_children, tracker, /)\n--\n\n"
    "Open an owner of the native meter below the active one; return None if the fast path declines.");

static PyObject *module_open_fast(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "open_fast() takes five arguments");
        return NULL;
    }
    PyObject *tracker = args[4];
    Py_ssize_t steps = tracker == Py_None ? 0 : coroutine_steps(tracker);
    if (steps < 0) {
        return NULL;
    }
    PyObject *owner = owners_open_fast(args[0], args[1], args[2], args[3] == Py_True, tracker, steps);
    return owner == NULL && !PyErr_Occurred() ? Py_NewRef(Py_None) : owner;
}

PyDoc_STRVAR(close_doc, "close_fast($module, owner, failed, /)\n--\n\n"
    "Close an owner of the native meter and notify listeners; return False, with nothing changed, if the fast path\n"
    "declines.");

static PyObject *module_close_fast(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "close_fast() takes an owner and whether it failed");
        return NULL;
    }
    int has_closed = coroutine_close_owner_fast(args[0], args[1] == Py_True);
    return has_closed < 0 ? NULL : PyBool_FromLong(has_closed);
}

static PyMethodDef module_functions[] = {
    {"after_fork", module_after_fork, METH_NOARGS, fork_doc},
    {"black_box_check", module_black_box_check, METH_NOARGS, box_check_doc},
    {"black_box_close", module_black_box_close, METH_NOARGS, box_close_doc},
    {"black_box_open", module_black_box_open, METH_VARARGS, box_open_doc},
    {"black_box_write", module_black_box_write, METH_VARARGS, box_write_doc},
    {"call_unhooked", module_call_unhooked, METH_VARARGS, unhooked_doc},
    {"close_fast", (PyCFunction)(void (*)(void))module_close_fast, METH_FASTCALL, close_doc},
    {"count_arrays", module_count_arrays, METH_O, arrays_doc},
    {"count_folds", module_count_folds, METH_NOARGS, count_folds_doc},
    {"counters_in_use", module_counters_in_use, METH_NOARGS, counters_in_use_doc},
    {"has_stopped", module_has_stopped, METH_NOARGS, stopped_doc},
    {"hooks_in_place", module_hooks_in_place, METH_NOARGS, in_place_doc},
    {"install", module_install, METH_NOARGS, install_doc},
    {"listen_for_interpreters", module_listen_for_interpreters, METH_NOARGS, listen_doc},
    {"load_numpy_api", module_load_numpy_api, METH_O, load_doc},
    {"lost_blocks", module_lost_blocks, METH_NOARGS, lost_doc},
    {"open_fast", (PyCFunction)(void (*)(void))module_open_fast, METH_FASTCALL, open_doc},
    {"reason", module_reason, METH_NOARGS, reason_doc},
    {"refused_blocks", module_refused_blocks, METH_NOARGS, refused_doc},
    {"set_counting", module_set_counting, METH_O, count_doc},
    {"suspend_enforcement", module_suspend_enforcement, METH_O, suspend_doc},
    {"switch", module_switch, METH_O, switch_doc},
    {"tables", module_tables, METH_NOARGS, tables_doc},
    {"untracked_bytes", module_untracked_bytes, METH_NOARGS, untracked_doc},
    {"wrap_numpy_default", module_wrap_numpy_default, METH_O, wrap_doc},
    {NULL, NULL, 0, NULL},
};

static int module_execute(PyObject *module)
{
    if (!interpreters_is_main()) {
        PyErr_SetString(PyExc_ImportError, "it counts in the main interpreter only");
        return -1;
    }
    interpreters_start(hooks_stop);
    limits_start();
    if (objects_register(module) < 0 || coroutine_register(module) < 0 || owners_register(module) < 0 ||
        threads_register(module) < 0 || limits_register(module) < 0) {
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* without the GIL the module only reports that */
#endif
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.ledger._native",
    .m_doc = "Count the bytes of each owner in the allocator itself.",
    .m_size = 0, /* the module counts in one interpreter: its state is that of the process */
    .m_methods = module_functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_definition);
}
