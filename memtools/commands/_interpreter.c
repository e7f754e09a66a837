/* What only C can do so that a program meets the interpreter as it would alone: `call_at_bottom`, `call_untraced`,
   `before_death`, `before_exit` and `around_starts`.

   `call_at_bottom` hides the frames of memtools from the code that it calls, as greenlet does for a new greenlet: the
   thread state forgets its current frame for the time of the call. Nothing but the thread state knows the hidden frames;
   their evaluation loops have them in their own variables, and go on when the call has returned.

   The last three put functions of the same names in the place of functions of the interpreter: `os.kill` and its
   relatives, `os._exit`, and those that start a program. They call back, and then do what the replaced functions do. They
   are functions in C because a function in Python would be the frame that handlers of signals get, and would be seen in
   tracebacks. An audit hook would see the same calls, and make others slower: `id()` took four times as long.

   Locking: every function is called under the GIL. The static variables belong to the one
   program that the command line runs, and are written in its main thread. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <signal.h>
#ifdef __APPLE__
#include <crt_externs.h>
#define environ (*_NSGetEnviron())
#elif !defined(MS_WINDOWS)
extern char **environ;
#endif

/* Where the thread state keeps the innermost frame. */
static struct _PyInterpreterFrame **interpreter_current_frame(PyThreadState *thread)
{
#if PY_VERSION_HEX >= 0x030D0000
    return &thread->current_frame;
#else
    return &thread->cframe->current_frame;
#endif
}

/* The frame below the first one of a program: since 3.15 an empty one of the thread state, before it none. */
static struct _PyInterpreterFrame *interpreter_bottom_frame(PyThreadState *thread)
{
#if PY_VERSION_HEX >= 0x030F0000
    return thread->base_frame;
#else
    (void)thread;
    return NULL;
#endif
}

/* The hidden frames must not count against the recursion limit either, or the program could call itself less often.
   Return the number of hidden calls. */
static int interpreter_hide_depth(PyThreadState *thread)
{
#if PY_VERSION_HEX >= 0x030C0000
    int depth = thread->py_recursion_limit - thread->py_recursion_remaining;
    thread->py_recursion_remaining += depth;
#else
    int depth = thread->recursion_limit - thread->recursion_remaining;
    thread->recursion_remaining += depth;
#endif
    return depth;
}

/* Subtract, and do not set: the program may have changed the limit. */
static void interpreter_restore_depth(PyThreadState *thread, int depth)
{
#if PY_VERSION_HEX >= 0x030C0000
    thread->py_recursion_remaining -= depth;
#else
    thread->recursion_remaining -= depth;
#endif
}

/* The trace and the profile function that the program has left behind. They must not see memtools: the program alone would
   end here. They come back with the next code of the program. */
static struct {
    Py_tracefunc trace;
    Py_tracefunc profile;
    PyObject *trace_argument;
    PyObject *profile_argument;
} paused = {NULL, NULL, NULL, NULL};

/* Tools of `sys.monitoring` (PEP 669, since 3.12), pdb since 3.14 among them: the events that each had before the program,
   and those that the program has left behind; -1 where there are none. */
#define TOOLS 6

static struct {
    int is_known;
    long before[TOOLS];
    long after[TOOLS];
} monitored = {0, {0}, {0}};

/* Call a function of `sys.monitoring`; return its result, 0 for None, -1 for an error, which is dropped: the tool may not be
   in use. */
static long interpreter_monitoring(const char *function, int tool, long events)
{
    PyObject *monitoring = PySys_GetObject("monitoring");
    if (monitoring == NULL) {
        return -1;
    }
    PyObject *result = events < 0 ? PyObject_CallMethod(monitoring, function, "i", tool)
                                  : PyObject_CallMethod(monitoring, function, "il", tool, events);
    long number = result == NULL ? -1 : PyLong_Check(result) ? PyLong_AsLong(result) : 0;
    Py_XDECREF(result);
    PyErr_Clear();
    return number;
}

static void interpreter_note_monitoring(void)
{
    for (int tool = 0; tool < TOOLS && !monitored.is_known; tool++) {
        monitored.before[tool] = interpreter_monitoring("get_events", tool, -1);
        monitored.after[tool] = -1;
    }
    monitored.is_known = 1;
}

static void interpreter_pause_monitoring(void)
{
    for (int tool = 0; tool < TOOLS && monitored.is_known; tool++) {
        long events = interpreter_monitoring("get_events", tool, -1);
        long before = monitored.before[tool] < 0 ? 0 : monitored.before[tool];
        if (events > 0 && events != before && monitored.after[tool] < 0) {
            monitored.after[tool] = events;
            (void)interpreter_monitoring("set_events", tool, before);
        }
    }
}

static void interpreter_resume_monitoring(void)
{
    for (int tool = 0; tool < TOOLS && monitored.is_known; tool++) {
        if (monitored.after[tool] >= 0) {
            (void)interpreter_monitoring("set_events", tool, monitored.after[tool]);
            monitored.after[tool] = -1;
        }
    }
}

static void interpreter_pause_tracing(PyThreadState *thread)
{
    interpreter_pause_monitoring();
    if (thread->c_tracefunc != NULL && paused.trace == NULL) {
        paused.trace = thread->c_tracefunc;
        paused.trace_argument = Py_XNewRef(thread->c_traceobj);
        PyEval_SetTrace(NULL, NULL);
    }
    if (thread->c_profilefunc != NULL && paused.profile == NULL) {
        paused.profile = thread->c_profilefunc;
        paused.profile_argument = Py_XNewRef(thread->c_profileobj);
        PyEval_SetProfile(NULL, NULL);
    }
}

static void interpreter_resume_tracing(void)
{
    if (paused.profile != NULL) {
        PyEval_SetProfile(paused.profile, paused.profile_argument);
        Py_CLEAR(paused.profile_argument);
        paused.profile = NULL;
    }
    if (paused.trace != NULL) {
        PyEval_SetTrace(paused.trace, paused.trace_argument);
        Py_CLEAR(paused.trace_argument);
        paused.trace = NULL;
    }
    interpreter_resume_monitoring();
}

PyDoc_STRVAR(resume_tracing_doc,
             "resume_tracing()\n--\n\n"
             "Let the trace and profile functions see again what `call_at_bottom` has kept from them since its return.");

static PyObject *interpreter_resume(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    interpreter_resume_tracing();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pause_tracing_doc,
             "pause_tracing()\n--\n\n"
             "Keep from the trace and profile functions what follows, until `resume_tracing` or `call_at_bottom`.");

static PyObject *interpreter_pause(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    interpreter_pause_tracing(PyThreadState_Get());
    Py_RETURN_NONE;
}

PyDoc_STRVAR(call_untraced_doc,
             "call_untraced(function, /)\n--\n\n"
             "Call a function without arguments, which no trace or profile function sees. Raises what it raises.");

static PyObject *interpreter_call_untraced(PyObject *Py_UNUSED(module), PyObject *function)
{
    interpreter_pause_tracing(PyThreadState_Get());
    PyObject *result = PyObject_CallNoArgs(function);
    PyObject *kind, *error, *trace; /* an audit hook may run Python code */
    PyErr_Fetch(&kind, &error, &trace);
    interpreter_resume_tracing();
    PyErr_Restore(kind, error, trace);
    return result;
}

PyDoc_STRVAR(call_at_bottom_doc,
             "call_at_bottom(callee, /, *args)\n--\n\n"
             "Call a function, or run a code object in the dict `args[0]`, as the first frame of the thread.\n\n"
             "The code finds no frame below its own: `sys._getframe(1)` raises ValueError. Raises what the code raises.");

static PyObject *interpreter_call_at_bottom(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (PyTuple_GET_SIZE(args) == 0) {
        PyErr_SetString(PyExc_TypeError, "call_at_bottom() requires a function or a code object");
        return NULL;
    }
    PyObject *callee = PyTuple_GET_ITEM(args, 0);
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
    if (rest == NULL) {
        return NULL;
    }
    int is_code = PyCode_Check(callee);
    if (is_code && (PyTuple_GET_SIZE(rest) != 1 || !PyDict_CheckExact(PyTuple_GET_ITEM(rest, 0)))) {
        Py_DECREF(rest);
        PyErr_SetString(PyExc_TypeError, "call_at_bottom() requires the dict in which the code object is to run");
        return NULL;
    }

    PyThreadState *thread = PyThreadState_Get();
    interpreter_note_monitoring();
    interpreter_resume_tracing();
    struct _PyInterpreterFrame *hidden = *interpreter_current_frame(thread);
    *interpreter_current_frame(thread) = interpreter_bottom_frame(thread);
    int depth = interpreter_hide_depth(thread);
    PyObject *result;
    if (is_code) {
        PyObject *globals = PyTuple_GET_ITEM(rest, 0);
        result = PySys_Audit("exec", "O", callee) < 0 ? NULL : PyEval_EvalCode(callee, globals, globals);
    }
    else {
        result = PyObject_Call(callee, rest, NULL);
    }
    interpreter_restore_depth(thread, depth);
    *interpreter_current_frame(thread) = hidden;
    PyObject *kind, *error, *trace; /* an audit hook may run Python code */
    PyErr_Fetch(&kind, &error, &trace);
    interpreter_pause_tracing(thread);
    PyErr_Restore(kind, error, trace);
    Py_DECREF(rest);
    return result;
}

#ifndef MS_WINDOWS

enum function { KILL, KILLPG, PTHREAD_KILL, RAISE_SIGNAL, EXIT, FORK_EXEC, POSIX_SPAWN, POSIX_SPAWNP, FUNCTIONS };

static PyObject *replaced[FUNCTIONS]; /* the functions of the interpreter */

static PyObject *death_observer = NULL; /* called before the process kills itself */
static PyObject *exit_observer = NULL;  /* called before `os._exit` */
static PyObject *start_preparer = NULL; /* gives the arguments with which a program is started */
static PyObject *start_observer = NULL; /* called when a program has been started */

/* Call `observer`, unseen by the trace and profile functions of this thread; return what it returned, or NULL without an
   error: what it raises is reported. Unlike `call_untraced` it may run in several threads at once. */
static PyObject *interpreter_observe(PyObject *observer, PyObject *args)
{
    PyThreadState *thread = PyThreadState_Get();
    Py_tracefunc trace = thread->c_tracefunc, profile = thread->c_profilefunc;
    PyObject *trace_argument = Py_XNewRef(thread->c_traceobj), *profile_argument = Py_XNewRef(thread->c_profileobj);
    if (trace != NULL) {
        PyEval_SetTrace(NULL, NULL);
    }
    if (profile != NULL) {
        PyEval_SetProfile(NULL, NULL);
    }
    PyObject *result = PyObject_Call(observer, args, NULL);
    if (result == NULL) {
        PyErr_WriteUnraisable(observer);
    }
    if (profile != NULL) {
        PyEval_SetProfile(profile, profile_argument);
    }
    if (trace != NULL) {
        PyEval_SetTrace(trace, trace_argument);
    }
    Py_XDECREF(trace_argument);
    Py_XDECREF(profile_argument);
    return result;
}

static void interpreter_notify(PyObject *observer)
{
    PyObject *none = PyTuple_New(0); /* there is one such object, so this cannot fail */
    Py_XDECREF(interpreter_observe(observer, none));
    Py_DECREF(none);
}

/* The signals whose default is to end the process, and which a program sends to itself at its end. */
static int interpreter_is_deadly(long number)
{
    if (number != SIGTERM && number != SIGINT && number != SIGHUP && number != SIGQUIT) {
        return 0;
    }
    struct sigaction action;
    sigset_t blocked;
    return sigaction((int)number, NULL, &action) == 0 && (action.sa_flags & SA_SIGINFO) == 0 &&
           action.sa_handler == SIG_DFL && pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0 &&
           !sigismember(&blocked, (int)number);
}

/* Whether the arguments name this process, or its group. */
static int interpreter_is_to_itself(enum function function, long target)
{
    switch (function) {
    case KILL:
        return target == (long)getpid() || target == 0 || target == -(long)getpgrp();
    case KILLPG:
        return target == 0 || target == (long)getpgrp();
    default: /* `pthread_kill` takes a thread of this process, and `raise_signal` has no target */
        return 1;
    }
}

static int interpreter_kills_itself(enum function function, PyObject *args)
{
    Py_ssize_t expected = function == RAISE_SIGNAL ? 1 : 2;
    if (PyTuple_GET_SIZE(args) != expected) {
        return 0;
    }
    PyObject *signal_number = PyTuple_GET_ITEM(args, expected - 1);
    PyObject *target = PyTuple_GET_ITEM(args, 0);
    if (!PyLong_Check(signal_number) || !PyLong_Check(target)) {
        return 0;
    }
    int overflow;
    if (!interpreter_is_deadly(PyLong_AsLongAndOverflow(signal_number, &overflow))) {
        return 0;
    }
    long number = PyLong_AsLongAndOverflow(target, &overflow);
    return interpreter_is_to_itself(function, number);
}

static PyObject *interpreter_send(enum function function, PyObject *args, PyObject *keywords)
{
    if (interpreter_kills_itself(function, args)) {
        interpreter_notify(death_observer);
    }
    return PyObject_Call(replaced[function], args, keywords);
}

static PyObject *interpreter_kill(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_send(KILL, args, keywords);
}

static PyObject *interpreter_killpg(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_send(KILLPG, args, keywords);
}

static PyObject *interpreter_pthread_kill(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_send(PTHREAD_KILL, args, keywords);
}

static PyObject *interpreter_raise_signal(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_send(RAISE_SIGNAL, args, keywords);
}

static PyObject *interpreter_exit(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    interpreter_notify(exit_observer);
    return PyObject_Call(replaced[EXIT], args, keywords);
}

/* Call `observer` with signals held back, and after the handlers of those that have come already: what these raise belongs
   into the program, not into the observer, where it would be lost. Takes the reference to `args`; returns what the observer
   returned, or NULL, with an error only if a handler has raised it. */
static PyObject *interpreter_observe_undisturbed(PyObject *observer, PyObject *args)
{
    if (args == NULL) {
        PyErr_Clear();
        return NULL;
    }
    sigset_t all, before;
    sigfillset(&all);
    int is_held = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
    PyObject *kind = NULL, *error = NULL, *trace = NULL;
    if (PyErr_CheckSignals() < 0) {
        PyErr_Fetch(&kind, &error, &trace);
    }
    PyObject *result = interpreter_observe(observer, args);
    if (is_held) {
        (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    Py_DECREF(args);
    if (kind != NULL) {
        Py_CLEAR(result);
        PyErr_Restore(kind, error, trace);
    }
    return result;
}

/* Start a program with the arguments that the preparer gives, and tell the observer what was started. */
static PyObject *interpreter_start(enum function function, const char *name, PyObject *args, PyObject *keywords)
{
    PyObject *changed = interpreter_observe_undisturbed(start_preparer, Py_BuildValue("(sO)", name, args));
    if (PyErr_Occurred()) {
        return NULL;
    }
    int is_changed = changed != NULL && PyTuple_CheckExact(changed);
    PyObject *result = PyObject_Call(replaced[function], is_changed ? changed : args, keywords);
    Py_XDECREF(changed);
    if (result == NULL) {
        return NULL;
    }
    Py_XDECREF(interpreter_observe_undisturbed(start_observer, Py_BuildValue("(sOO)", name, args, result)));
    if (PyErr_Occurred()) {
        Py_CLEAR(result); /* as alone: the interpreter calls handlers between a call and the use of its result */
    }
    return result;
}

static PyObject *interpreter_fork_exec(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_start(FORK_EXEC, "fork_exec", args, keywords);
}

static PyObject *interpreter_posix_spawn(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_start(POSIX_SPAWN, "posix_spawn", args, keywords);
}

static PyObject *interpreter_posix_spawnp(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
{
    return interpreter_start(POSIX_SPAWNP, "posix_spawnp", args, keywords);
}

#define FUNCTION(module, importer, name, alias, wrapper)                                                               \
    {                                                                                                                  \
        module, importer, alias, {name, (PyCFunction)(void (*)(void))wrapper, METH_VARARGS | METH_KEYWORDS, NULL}      \
    }

/* Two modules have each function: the one in C, and the one in Python that has imported it, perhaps by another name. */
static struct {
    const char *module;
    const char *importer;
    const char *alias;
    PyMethodDef method;
} functions[FUNCTIONS] = {
    [KILL] = FUNCTION("posix", "os", "kill", "kill", interpreter_kill),
    [KILLPG] = FUNCTION("posix", "os", "killpg", "killpg", interpreter_killpg),
    [PTHREAD_KILL] = FUNCTION("_signal", "signal", "pthread_kill", "pthread_kill", interpreter_pthread_kill),
    [RAISE_SIGNAL] = FUNCTION("_signal", "signal", "raise_signal", "raise_signal", interpreter_raise_signal),
    [EXIT] = FUNCTION("posix", "os", "_exit", "_exit", interpreter_exit),
    [FORK_EXEC] = FUNCTION("_posixsubprocess", "subprocess", "fork_exec", "_fork_exec", interpreter_fork_exec),
    [POSIX_SPAWN] = FUNCTION("posix", "os", "posix_spawn", "posix_spawn", interpreter_posix_spawn),
    [POSIX_SPAWNP] = FUNCTION("posix", "os", "posix_spawnp", "posix_spawnp", interpreter_posix_spawnp),
};

#undef FUNCTION

/* Put the wrapper into the module that has imported the function, where that is loaded; later imports find it anyway. */
static int interpreter_replace_import(const char *importer, const char *alias, PyObject *original, PyObject *wrapper)
{
    PyObject *name = PyUnicode_FromString(importer);
    PyObject *module = name == NULL ? NULL : PyImport_GetModule(name);
    Py_XDECREF(name);
    if (module == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    int done = 0;
    PyObject *imported = PyObject_GetAttrString(module, alias);
    if (imported == NULL) {
        PyErr_Clear();
    }
    else if (imported == original) {
        done = PyObject_SetAttrString(module, alias, wrapper);
    }
    Py_XDECREF(imported);
    Py_DECREF(module);
    return done;
}

/* Put the wrapper where the function is; nothing happens where it does not exist, or another tool has replaced it. */
static int interpreter_replace(enum function function)
{
    PyMethodDef *method = &functions[function].method;
    PyObject *module = PyImport_ImportModule(functions[function].module);
    PyObject *name = PyUnicode_FromString(functions[function].module);
    PyObject *original = NULL, *wrapper = NULL;
    int done = -1;
    if (module == NULL || name == NULL) {
        goto end;
    }
    original = PyObject_GetAttrString(module, method->ml_name);
    if (original == NULL) {
        PyErr_Clear();
        done = 0;
        goto end;
    }
    if (!PyCFunction_CheckExact(original)) {
        done = 0;
        goto end;
    }
    replaced[function] = Py_NewRef(original);
    method->ml_doc = ((PyCFunctionObject *)original)->m_ml->ml_doc; /* its signature, too */
    wrapper = PyCFunction_NewEx(method, module, name);
    if (wrapper == NULL || PyObject_SetAttrString(module, method->ml_name, wrapper) < 0) {
        goto end;
    }
    done = interpreter_replace_import(functions[function].importer, functions[function].alias, original, wrapper);
end:
    Py_XDECREF(wrapper);
    Py_XDECREF(original);
    Py_XDECREF(name);
    Py_XDECREF(module);
    return done;
}

PyDoc_STRVAR(before_death_doc,
             "before_death(callback, /)\n--\n\n"
             "Call back before the process kills itself by SIGTERM, SIGINT, SIGHUP or SIGQUIT and handles it not.\n\n"
             "That is, before `os.kill`, `os.killpg`, `signal.raise_signal` or `signal.pthread_kill` send it. The\n"
             "callback is called in the thread that calls them. Raises RuntimeError at the second call.");

/* Replace the functions from `first` to `last`; return None, or NULL with an error. */
static PyObject *interpreter_replace_all(enum function first, enum function last)
{
    for (int function = (int)first; function <= (int)last; function++) {
        if (interpreter_replace((enum function)function) < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *interpreter_before_death(PyObject *Py_UNUSED(module), PyObject *callback)
{
    if (death_observer != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "before_death() has been called already");
        return NULL;
    }
    death_observer = Py_NewRef(callback);
    return interpreter_replace_all(KILL, RAISE_SIGNAL);
}

PyDoc_STRVAR(before_exit_doc, "before_exit(callback, /)\n--\n\n"
                              "Call back before `os._exit` ends the process, in the thread that calls it.\n\n"
                              "Raises RuntimeError at the second call.");

static PyObject *interpreter_before_exit(PyObject *Py_UNUSED(module), PyObject *callback)
{
    if (exit_observer != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "before_exit() has been called already");
        return NULL;
    }
    exit_observer = Py_NewRef(callback);
    return interpreter_replace_all(EXIT, EXIT);
}

PyDoc_STRVAR(around_starts_doc,
             "around_starts(prepare, started, /)\n--\n\n"
             "Call back before and after `_posixsubprocess.fork_exec`, `os.posix_spawn` and `os.posix_spawnp`.\n\n"
             "`prepare(name, arguments)` returns the tuple of arguments to use; `started(name, arguments, pid)` gets the\n"
             "original ones. What they raise is reported as unraisable. Raises RuntimeError at the second call.");

static PyObject *interpreter_around_starts(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *prepare, *started;
    if (!PyArg_ParseTuple(args, "OO:around_starts", &prepare, &started)) {
        return NULL;
    }
    if (start_preparer != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "around_starts() has been called already");
        return NULL;
    }
    start_preparer = Py_NewRef(prepare);
    start_observer = Py_NewRef(started);
    return interpreter_replace_all(FORK_EXEC, POSIX_SPAWNP);
}

PyDoc_STRVAR(environment_doc, "environment()\n--\n\n"
                              "Return the environment that a program inherits, `NAME=value` each, as bytes.");

static PyObject *interpreter_environment(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    PyObject *lines = PyList_New(0);
    for (char **line = environ; lines != NULL && line != NULL && *line != NULL; line++) {
        PyObject *text = PyBytes_FromString(*line);
        if (text == NULL || PyList_Append(lines, text) < 0) {
            Py_CLEAR(lines);
        }
        Py_XDECREF(text);
    }
    return lines;
}

#endif

static PyMethodDef interpreter_functions[] = {
    {"call_at_bottom", interpreter_call_at_bottom, METH_VARARGS, call_at_bottom_doc},
    {"call_untraced", interpreter_call_untraced, METH_O, call_untraced_doc},
    {"pause_tracing", interpreter_pause, METH_NOARGS, pause_tracing_doc},
    {"resume_tracing", interpreter_resume, METH_NOARGS, resume_tracing_doc},
#ifndef MS_WINDOWS
    {"before_death", interpreter_before_death, METH_O, before_death_doc},
    {"before_exit", interpreter_before_exit, METH_O, before_exit_doc},
    {"environment", interpreter_environment, METH_NOARGS, environment_doc},
    {"around_starts", interpreter_around_starts, METH_VARARGS, around_starts_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot interpreter_slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef interpreter_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.commands._interpreter",
    .m_doc = "What only C can do so that a program meets the interpreter as it would alone.",
    .m_methods = interpreter_functions,
    .m_slots = interpreter_slots,
};

PyMODINIT_FUNC PyInit__interpreter(void)
{
    return PyModuleDef_Init(&interpreter_module);
}
