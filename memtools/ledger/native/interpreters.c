/* The check for sub-interpreters, and the audit hook that reports the first one. */

#include "interpreters.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#define SECOND_INTERPRETER "a sub-interpreter was made, and the ledger relies on there being one GIL"

static const char probe_event[] = "memtools.ledger.watch";
static void (*on_second_interpreter)(const char *why);
static int is_watching;
static int is_listening;
static int is_probe_received;
static int has_reported;

static void interpreters_report(const char *why)
{
    has_reported = 1;
    on_second_interpreter(why);
}

/* From 3.13 on an interpreter may be created without its audit event; its own first events reveal it. Before that,
   while it starts, figures are wrong already, but no caller has read them yet. */
static int interpreters_is_foreign_event(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyThreadState *state = PyThreadState_GetUnchecked();
    return state != NULL && PyThreadState_GetInterpreter(state) != PyInterpreterState_Main();
#else
    return 0;
#endif
}

/* Runs at each audit event of every interpreter: most events pass after one or two comparisons. */
static int interpreters_on_event(const char *event, PyObject *Py_UNUSED(args), void *Py_UNUSED(none))
{
    if (interpreters_is_foreign_event() || (event[0] == 'c' && strcmp(event, "cpython.PyInterpreterState_New") == 0)) {
        interpreters_report(SECOND_INTERPRETER);
    }
    else if (event == probe_event) {
        is_probe_received = 1;
    }
    return 0;
}

/* `PyGILState_Check` gives right answers as long as the process has never created a second interpreter. */
static int interpreters_gil_check_works(void)
{
    PyThreadState *state = PyEval_SaveThread();
    int answer = PyGILState_Check();
    PyEval_RestoreThread(state);
    return !answer;
}

static int interpreters_is_only_one(void)
{
    return PyInterpreterState_Next(PyInterpreterState_Head()) == NULL;
}

void interpreters_start(void (*callback)(const char *why))
{
    on_second_interpreter = callback;
}

const char *interpreters_watch(void)
{
    if (is_watching) {
        return "";
    }
    if (!interpreters_is_main() || !interpreters_is_only_one() || !interpreters_gil_check_works()) {
        return SECOND_INTERPRETER;
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
    /* Another audit hook may forbid this one without an error, so a probe event checks that the hook is called. */
    if (PySys_AddAuditHook(interpreters_on_event, NULL) < 0 || PySys_Audit(probe_event, NULL) < 0) {
        PyErr_Clear();
    }
    if (!is_probe_received) {
        interpreters_report("another audit hook forbids the one that reports sub-interpreters");
    }
}

void interpreters_check(void)
{
    if (is_watching && !interpreters_is_only_one()) {
        interpreters_report(SECOND_INTERPRETER);
    }
}

void interpreters_check_history(void)
{
    interpreters_check();
    if (is_watching && !has_reported && !interpreters_gil_check_works()) {
        interpreters_report(SECOND_INTERPRETER);
    }
}

int interpreters_is_main(void)
{
    return PyInterpreterState_Get() == PyInterpreterState_Main();
}
