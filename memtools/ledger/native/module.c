/* What Python sees of the native ledger: `memtools.ledger._native`.

   On interpreters that run without the GIL, on machines without 64-bit addresses and where memory cannot be mapped, the
   module says so by `reason()` and does nothing else.

   Locking: every function is called under the GIL. Importing installs nothing. */

#include "coroutine.h"
#include "counters.h"
#include "hooks.h"
#include "interpreters.h"
#include "limits.h"
#include "numpy_arrays.h"
#include "objects.h"
#include "owners.h"

#ifdef Py_GIL_DISABLED
#define UNSUPPORTED "it relies on the GIL, and this Python is free-threaded"
#elif UINTPTR_MAX < 0xFFFFFFFFFFFFFFFFu
#define UNSUPPORTED "it takes 64-bit addresses"
#else
#define UNSUPPORTED ""
#endif

static PyObject *refuse(void)
{
    PyErr_Format(PyExc_RuntimeError, "the native ledger is not available: %s", hooks_reason());
    return NULL;
}

PyDoc_STRVAR(reason_doc, "reason($module, /)\n--\n\nReturn why nothing can be counted here, empty if it can.");

static PyObject *native_reason(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyUnicode_FromString(*UNSUPPORTED ? UNSUPPORTED : hooks_reason());
}

PyDoc_STRVAR(install_doc, "install($module, /)\n--\n\n"
    "Put the hooks in place, if they are not, and check them; return whether they can be relied upon.");

static PyObject *native_install(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (*UNSUPPORTED) {
        Py_RETURN_FALSE;
    }
    if (tallies != NULL && !*hooks_reason()) {
        tally_era++;
    }
    return PyBool_FromLong(hooks_install() == 0);
}

PyDoc_STRVAR(stopped_doc, "has_stopped($module, /)\n--\n\n"
    "Return whether blocks were counted once and are no more, for good: figures have stood still since.");

static PyObject *native_has_stopped(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(hooks_have_stopped());
}

PyDoc_STRVAR(count_doc, "count($module, is_on, /)\n--\n\nBegin or end to count new blocks.");

static PyObject *native_count(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    int on = PyObject_IsTrue(is_on);
    if (on < 0) {
        return NULL;
    }
    if (tallies == NULL) {
        return refuse();
    }
    hooks_count(on);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(in_place_doc, "are_in_place($module, /)\n--\n\n"
    "Return whether allocations reach the hooks; asked while they count.");

static PyObject *native_are_in_place(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(tallies != NULL && check_hooks_are_in_place());
}

PyDoc_STRVAR(switch_doc, "switch($module, tally, /)\n--\n\n"
    "Charge `tally`, or nobody, for what this thread makes from now on.");

static PyObject *native_switch(PyObject *module, PyObject *tally)
{
    here.is_spared = 0;
    if (tally == Py_None) {
        here.tally = NOBODY;
        Py_RETURN_NONE;
    }
    const struct module_state *state = PyModule_GetState(module);
    if (Py_TYPE(tally) != state->tally_type) {
        PyErr_SetString(PyExc_TypeError, "neither a Tally nor None");
        return NULL;
    }
    here.tally = ((Tally *)tally)->number;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(listen_doc, "listen($module, /)\n--\n\nBe told of each sub-interpreter from now on, before it runs.");

static PyObject *native_listen(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    interpreters_listen();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(nobodys_doc, "nobodys_bytes($module, /)\n--\n\nReturn the live bytes made while nobody had the turn.");

static PyObject *native_nobodys_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (tallies == NULL) {
        return PyLong_FromLong(0);
    }
    interpreters_look_closely();
    tallies_settle();
    return PyLong_FromLongLong((long long)tallies[NOBODY].own);
}

PyDoc_STRVAR(tallies_in_use_doc, "tallies_in_use($module, /)\n--\n\nReturn how many of 32,766 numbers are taken.");

static PyObject *native_tallies_in_use(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLong(tallies_in_use());
}

PyDoc_STRVAR(lost_doc, "lost_blocks($module, /)\n--\n\nReturn how many blocks were not counted for want of memory.");

static PyObject *native_lost_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(hooks_lost());
}

PyDoc_STRVAR(main_thread_doc, "set_main_thread($module, ident, /)\n--\n\n"
    "Say which thread the interpreter takes for its main one.");

static PyObject *native_set_main_thread(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long thread = PyLong_AsUnsignedLong(ident);
    if (thread == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    budgets_set_main_thread(thread);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fork_doc, "after_fork($module, ident, /)\n--\n\n"
    "Forget the threads that are no more in the child of a fork, where the one named lives on.");

static PyObject *native_after_fork(PyObject *module, PyObject *ident)
{
    PyObject *result = native_set_main_thread(module, ident);
    if (result != NULL && tallies != NULL) {
        budgets_after_fork();
        tallies_after_fork();
    }
    return result;
}

PyDoc_STRVAR(ready_doc, "get_ready($module, /)\n--\n\n"
    "Be ready to stop an owner in this thread that has had its budget set in another one.");

static PyObject *native_get_ready(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    if (tallies_are_limited()) {
        budgets_get_ready();
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(interval_doc, "set_switch_interval($module, seconds, /)\n--\n\n"
    "Say how long a thread that wants the GIL waits before it asks for it.");

static PyObject *native_set_switch_interval(PyObject *Py_UNUSED(module), PyObject *seconds)
{
    double interval = PyFloat_AsDouble(seconds);
    if (interval == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    budgets_set_interval(interval);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(spare_doc, "spare($module, is_on, /)\n--\n\n"
    "Refuse this thread nothing from now on, at most until its next switch: books are being written.");

static PyObject *native_spare(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    here.is_spared = is_on == Py_True;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(refused_doc, "refused_blocks($module, /)\n--\n\nReturn how many blocks were refused, of anybody's.");

static PyObject *native_refused_blocks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromLongLong((long long)tallies_refused());
}

PyDoc_STRVAR(meet_doc, "meet_numpy($module, array_api, /)\n--\n\nTake numpy's table of functions, a capsule.");

static PyObject *native_meet_numpy(PyObject *Py_UNUSED(module), PyObject *array_api)
{
    if (arrays_meet(array_api) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(arrays_doc, "follow_arrays($module, is_on, /)\n--\n\n"
    "Count the arrays of numpy's that are made in this context, and those copied from it, or no more.");

static PyObject *native_follow_arrays(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    if (arrays_follow(is_on == Py_True) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"after_fork", native_after_fork, METH_O, fork_doc},
    {"are_in_place", native_are_in_place, METH_NOARGS, in_place_doc},
    {"count", native_count, METH_O, count_doc},
    {"follow_arrays", native_follow_arrays, METH_O, arrays_doc},
    {"get_ready", native_get_ready, METH_NOARGS, ready_doc},
    {"has_stopped", native_has_stopped, METH_NOARGS, stopped_doc},
    {"meet_numpy", native_meet_numpy, METH_O, meet_doc},
    {"install", native_install, METH_NOARGS, install_doc},
    {"listen", native_listen, METH_NOARGS, listen_doc},
    {"lost_blocks", native_lost_blocks, METH_NOARGS, lost_doc},
    {"nobodys_bytes", native_nobodys_bytes, METH_NOARGS, nobodys_doc},
    {"reason", native_reason, METH_NOARGS, reason_doc},
    {"refused_blocks", native_refused_blocks, METH_NOARGS, refused_doc},
    {"set_main_thread", native_set_main_thread, METH_O, main_thread_doc},
    {"set_switch_interval", native_set_switch_interval, METH_O, interval_doc},
    {"spare", native_spare, METH_O, spare_doc},
    {"switch", native_switch, METH_O, switch_doc},
    {"tallies_in_use", native_tallies_in_use, METH_NOARGS, tallies_in_use_doc},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    if (!interpreters_is_main()) {
        PyErr_SetString(PyExc_ImportError, "it counts in the main interpreter only");
        return -1;
    }
    struct module_state *state = PyModule_GetState(module);
    state->tally_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &tally_spec, NULL);
    state->account_type = accounts_make_type(module);
    if (state->tally_type == NULL || state->account_type == NULL) {
        return -1;
    }
    if (PyModule_AddType(module, state->tally_type) < 0 || PyModule_AddType(module, state->account_type) < 0) {
        return -1;
    }
    if (driver_register(module, state->tally_type) < 0) {
        return -1;
    }
    return book_register(module, state->tally_type, state->account_type);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->tally_type);
    Py_VISIT(state->account_type);
    return 0;
}

static int clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->tally_type);
    Py_CLEAR(state->account_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* where there is none, the module does nothing but say so */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.ledger._native",
    .m_doc = "Count the bytes of each owner in the allocator itself.",
    .m_size = sizeof(struct module_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
