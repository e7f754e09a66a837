/* Sub-interpreters: whether there are any, and being told of the first; see interpreters.h. */

#include "interpreters.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "hooks.h"

#define MADE "a sub-interpreter was made, and the ledger relies on there being one GIL"

static const char our_event[] = "memtools.ledger.watch";
static int is_watching;
static int is_listening;
static int is_told; /* whether our own event reached us */

/* From 3.13 on an interpreter may be made without its event: its own first events tell. Until then, at its start, figures
   are already wrong, but nobody has been told any. */
static int comes_from_another(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *state = PyThreadState_GetUnchecked();
    return state != NULL && PyThreadState_GetInterpreter(state) != PyInterpreterState_Main();
#else
    return 0;
#endif
}

/* Called at each event of any interpreter's: most are let go after a comparison or two. */
static int on_event(const char *event, PyObject *Py_UNUSED(args), void *Py_UNUSED(none))
{
    if (comes_from_another() || (event[0] == 'c' && strcmp(event, "cpython.PyInterpreterState_New") == 0)) {
        hooks_stop(MADE);
    }
    else if (event == our_event) {
        is_told = 1;
    }
    return 0;
}

/* `PyGILState_Check` is right as long as nobody has ever made a second interpreter. */
static int is_gil_told_apart(void)
{
    PyThreadState *state = PyEval_SaveThread();
    int says = PyGILState_Check();
    PyEval_RestoreThread(state);
    return !says;
}

static int is_alone(void)
{
    return PyInterpreterState_Next(PyInterpreterState_Head()) == NULL;
}

const char *interpreters_watch(void)
{
    if (is_watching) {
        return "";
    }
    if (!interpreters_is_main() || !is_alone() || !is_gil_told_apart()) {
        return MADE;
    }
    is_watching = 1;
    return "";
}

void interpreters_listen(void)
{
    if (is_listening) {
        return;
    }
    is_listening = 1;
    /* Hooks that are there may forbid another one, and nothing says so. */
    if (PySys_AddAuditHook(on_event, NULL) < 0 || PySys_Audit(our_event, NULL) < 0) {
        PyErr_Clear();
    }
    if (!is_told) {
        hooks_stop("another audit hook forbids ours, which is to tell of sub-interpreters");
    }
}

void interpreters_look(void)
{
    if (is_watching && !is_alone()) {
        hooks_stop(MADE);
    }
}

void interpreters_look_closely(void)
{
    interpreters_look();
    if (is_watching && !hooks_have_stopped() && !is_gil_told_apart()) {
        hooks_stop(MADE);
    }
}

int interpreters_is_main(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}
