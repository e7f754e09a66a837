/* What happens at a limit, and how the enforcer gets to the thread that crossed it. */

#include "limits.h"

#include <string.h>

#include "compat.h"
#include "counters.h"
#include "platform.h"
#include "threads.h"

#define MAX_REQUESTS 64
#define MIN_GRACE_BYTES ((int64_t)1 << 20)
#define GRACE_SHARE 10    /* of the limit: a tenth */
#define STEPS_PER_GRACE 64 /* how often a thread asks for attention within one grace */
#define MIN_SHARE_OF_LIMIT 4 /* a smaller block than this part of the limit is never refused */

#define USES_TRACE (PY_VERSION_HEX < 0x030C0000)

struct request {
    int is_taken;
    uint32_t number;
    uint32_t generation;
    int is_refused;
    unsigned long thread;
};

static int64_t refused_blocks;
static PyObject *decide; /* called before an instruction with its frame; returns what to raise there, or None */
static unsigned long collecting_thread; /* 0 while no collection runs */

int64_t limits_refused_blocks(void)
{
    return refused_blocks;
}

/* Keep in step with the docstring of `memtools/ledger/_enforcement.py`, which promises the grace. */
int64_t limits_grace(int64_t limit)
{
    return limit / GRACE_SHARE > MIN_GRACE_BYTES ? limit / GRACE_SHARE : MIN_GRACE_BYTES;
}

/* Calls of the enforcer: between two bytecodes. */

/* Errors of memtools' own code do not reach the program: the next allocations ask again. An exception of a signal
   handler that was run meanwhile does. Returns -1 with that exception. */
static int limits_contain_error(PyObject *source)
{
    if (PyErr_ExceptionMatches(PyExc_RecursionError) || PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear(); /* the program is at the end of its stack, and not memtools */
        return 0;
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    PyErr_WriteUnraisable(source);
    return 0;
}

/* Tell the enforcer of a counter which thread has asked. Returns -1 with an exception of the program. */
static int limits_call_enforcer(const struct request *request, PyObject *frame)
{
    const struct counter *counter = &counters[request->number];
    if (!counter->is_open || counter->generation != request->generation || counter->enforcer == NULL) {
        return 0;
    }
    threads_charge(ROOT); /* the enforcer's own allocations are not the owner's */
    PyObject *enforcer = Py_NewRef((PyObject *)counter->enforcer);
    PyObject *result = PyObject_CallFunction(enforcer, "kOO", request->thread, frame == NULL ? Py_None : frame,
                                             request->is_refused ? Py_True : Py_False);
    int failed = result == NULL ? limits_contain_error(enforcer) : 0;
    Py_XDECREF(result);
    Py_DECREF(enforcer);
    threads_forget();
    return failed;
}

/* Ask before the next instruction of the frame. Returns -1 with the exception that is to be raised there. */
static int limits_decide(PyObject *frame)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (decide == NULL || frame == NULL || collecting_thread == thread) {
        return 0;
    }
    threads_charge(ROOT);
    PyObject *exception = PyObject_CallFunction(decide, "kO", thread, frame);
    int failed = exception == NULL ? limits_contain_error(decide) : 0;
    threads_forget();
    if (exception != NULL && exception != Py_None) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        failed = -1;
    }
    Py_XDECREF(exception);
    return failed;
}

#if USES_TRACE

/* Up to 3.11: a trace function. */

static _Thread_local struct {
    struct request request; /* the latest one of this thread */
    Py_tracefunc other;     /* the trace function that was there before, or NULL */
    PyObject *frames;       /* a list of the frames that report each instruction because this file asked for it */
} traced;

static int limits_finds_frame(PyObject *frame)
{
    for (Py_ssize_t n = traced.frames == NULL ? 0 : PyList_GET_SIZE(traced.frames); n > 0; n--) {
        if (PyList_GET_ITEM(traced.frames, n - 1) == frame) {
            return 1;
        }
    }
    return 0;
}

static void limits_drop_frame(PyObject *frame)
{
    for (Py_ssize_t n = traced.frames == NULL ? 0 : PyList_GET_SIZE(traced.frames); n > 0; n--) {
        if (PyList_GET_ITEM(traced.frames, n - 1) == frame) {
            (void)PyList_SetSlice(traced.frames, n - 1, n, NULL);
            return;
        }
    }
}

/* Have the frame report each instruction. It does already where a debugger wants that. */
static int limits_trace_instructions(PyObject *frame)
{
    if (limits_finds_frame(frame)) {
        return 0;
    }
    PyObject *known = PyObject_GetAttrString(frame, "f_trace_opcodes");
    if (known == NULL) {
        return -1;
    }
    int is_set = known == Py_True;
    Py_DECREF(known);
    if (is_set) {
        return 0;
    }
    if (traced.frames == NULL && (traced.frames = PyList_New(0)) == NULL) {
        return -1;
    }
    if (PyList_Append(traced.frames, frame) < 0) {
        return -1;
    }
    return PyObject_SetAttrString(frame, "f_trace_opcodes", Py_True);
}

static int limits_on_trace(PyObject *object, PyFrameObject *frame, int what, PyObject *argument)
{
    PyThreadState *tstate = PyThreadState_Get();
    int is_mine = what == PyTrace_OPCODE && limits_finds_frame((PyObject *)frame);
    if (traced.other != NULL && !is_mine) {
        Py_tracefunc other = traced.other;
        int failed = other(object, frame, what, argument);
        if (failed || tstate->c_tracefunc != limits_on_trace) {
            return failed; /* it has ended the tracing, or changed it */
        }
    }
    if (what == PyTrace_RETURN) {
        limits_drop_frame((PyObject *)frame);
        return 0;
    }
    if (what != PyTrace_CALL && what != PyTrace_LINE && what != PyTrace_OPCODE) {
        return 0;
    }
    threads_charge(ROOT);
    if (limits_trace_instructions((PyObject *)frame) < 0) {
        PyErr_Clear();
    }
    threads_forget();
    if (traced.request.is_taken) {
        struct request request = traced.request;
        traced.request.is_taken = 0;
        if (limits_call_enforcer(&request, (PyObject *)frame) < 0) {
            return -1;
        }
    }
    return what == PyTrace_CALL ? 0 : limits_decide((PyObject *)frame);
}

/* Inside a hook: what `PyEval_SetTrace` does, without its audit event and its references. */
static void limits_start_trace(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (tstate->c_tracefunc == limits_on_trace) {
        return;
    }
    traced.other = tstate->c_tracefunc; /* its object stays where it is */
    tstate->c_tracefunc = limits_on_trace;
    if (tstate->tracing == 0) {
        tstate->cframe->use_tracing = 255;
    }
}

static void limits_stop_trace(void)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (tstate->c_tracefunc == limits_on_trace) {
        tstate->c_tracefunc = traced.other;
        if (tstate->tracing == 0) {
            tstate->cframe->use_tracing = tstate->c_tracefunc != NULL || tstate->c_profilefunc != NULL ? 255 : 0;
        }
    }
    traced.other = NULL;
    PyObject *frames = traced.frames;
    traced.frames = NULL;
    for (Py_ssize_t n = 0; frames != NULL && n < PyList_GET_SIZE(frames); n++) {
        if (PyObject_SetAttrString(PyList_GET_ITEM(frames, n), "f_trace_opcodes", Py_False) < 0) {
            PyErr_Clear();
        }
    }
    Py_XDECREF(frames);
}

static void limits_send(struct request request)
{
    traced.request = request;
    limits_start_trace();
}

void limits_after_fork(void)
{
    traced.request.is_taken = 0;
    collecting_thread = 0;
}

#else

/* From 3.12 on: pending calls. */

/* Exported, but declared in an internal header only. Where it is missing, the main thread alone runs pending calls. */
typedef int limits_add_pending_call(PyInterpreterState *interpreter, int (*function)(void *), void *argument, int flags);

#ifdef _WIN32
static limits_add_pending_call *limits_find_add_pending_call(void)
{
    return (limits_add_pending_call *)platform_find_exported(&PyExc_RuntimeError, "_PyEval_AddPendingCall");
}
#else
extern limits_add_pending_call _PyEval_AddPendingCall __attribute__((weak));

static limits_add_pending_call *limits_find_add_pending_call(void)
{
    return _PyEval_AddPendingCall;
}
#endif

static struct request requests[MAX_REQUESTS]; /* a table that hooks may fill, since that allocates nothing */

void limits_after_fork(void)
{
    memset(requests, 0, sizeof requests);
    collecting_thread = 0;
}

static int limits_on_pending_call(void *argument)
{
    struct request request = *(struct request *)argument;
    ((struct request *)argument)->is_taken = 0;
    if (!request.is_taken) {
        return 0; /* the interpreter keeps pending calls across a fork, the child has dropped the requests */
    }
    int is_own = request.thread == PyThread_get_thread_ident();
    return limits_call_enforcer(&request, is_own ? (PyObject *)PyEval_GetFrame() : NULL);
}

/* A request that finds no room is dropped: a later allocation asks again. */
static void limits_send(struct request request)
{
    struct request *place = NULL;
    for (int n = MAX_REQUESTS - 1; n >= 0; n--) {
        const struct request *other = &requests[n];
        if (!other->is_taken) {
            place = &requests[n];
        }
        else if (other->number == request.number && other->generation == request.generation &&
                 other->thread == request.thread && other->is_refused == request.is_refused) {
            return; /* still outstanding */
        }
    }
    if (place == NULL) {
        return;
    }
    *place = request;
    limits_add_pending_call *add = limits_find_add_pending_call();
    int failed = add != NULL ? add(PyInterpreterState_Main(), limits_on_pending_call, place, 0)
                             : Py_AddPendingCall(limits_on_pending_call, place);
    if (failed) {
        place->is_taken = 0;
    }
}

#endif

PyDoc_STRVAR(instruction_doc, "on_instruction($module, code, offset, /)\n--\n\n"
    "Ask the enforcer before an instruction: a callback of `sys.monitoring`.");

static PyObject *limits_on_instruction(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args),
                                       Py_ssize_t Py_UNUSED(count))
{
    if (limits_decide((PyObject *)PyEval_GetFrame()) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stop_doc, "stop_trace($module, /)\n--\n\n"
    "End the calls of the enforcer before each instruction of this thread; only on 3.11.");

static PyObject *limits_stop_trace_method(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
#if USES_TRACE
    limits_stop_trace();
#endif
    Py_RETURN_NONE;
}

PyDoc_STRVAR(frame_doc, "trace_frame($module, frame, /)\n--\n\n"
    "Have the frame report each instruction to the trace function of its thread; only on 3.11.");

static PyObject *limits_trace_frame(PyObject *Py_UNUSED(module), PyObject *frame)
{
#if USES_TRACE
    if (limits_trace_instructions(frame) < 0) {
        return NULL;
    }
#else
    (void)frame;
#endif
    Py_RETURN_NONE;
}

PyDoc_STRVAR(decide_doc, "set_decide($module, decide, /)\n--\n\n"
    "Set what is called with a thread and a frame before an instruction, and returns what to raise there, or None.");

static PyObject *limits_set_decide(PyObject *Py_UNUSED(module), PyObject *callable)
{
    Py_XSETREF(decide, Py_NewRef(callable));
    Py_RETURN_NONE;
}

/* The garbage collector. */

static PyObject *limits_on_collector(PyObject *args, int is_last)
{
    PyObject *phase, *about;
    if (!PyArg_ParseTuple(args, "UO", &phase, &about)) {
        return NULL;
    }
    int is_start = PyUnicode_CompareWithASCIIString(phase, "start") == 0;
    if (is_start && !is_last) {
        collecting_thread = PyThread_get_thread_ident();
    }
    if (!is_start && is_last) {
        collecting_thread = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *limits_on_collector_first(PyObject *Py_UNUSED(self), PyObject *args)
{
    return limits_on_collector(args, 0);
}

static PyObject *limits_on_collector_last(PyObject *Py_UNUSED(self), PyObject *args)
{
    return limits_on_collector(args, 1);
}

static PyMethodDef collector_methods[] = {
    {"on_collector_first", limits_on_collector_first, METH_VARARGS, NULL},
    {"on_collector_last", limits_on_collector_last, METH_VARARGS, NULL},
};

static PyObject *collector_callbacks[2]; /* first and last of all, so that none of the program's is interrupted */
static int is_watching;

static int limits_remove(PyObject *list, PyObject *item)
{
    for (Py_ssize_t n = PyList_GET_SIZE(list); n > 0; n--) {
        if (PyList_GET_ITEM(list, n - 1) == item) {
            return PyList_SetSlice(list, n - 1, n, NULL);
        }
    }
    return 0;
}

static int limits_set_watching(int is_on)
{
    PyObject *module = PyImport_ImportModule("gc");
    PyObject *list = module == NULL ? NULL : PyObject_GetAttrString(module, "callbacks");
    Py_XDECREF(module);
    int failed = list == NULL || !PyList_Check(list);
    for (int n = 0; n < 2 && !failed; n++) {
        if (collector_callbacks[n] == NULL) {
            collector_callbacks[n] = PyCFunction_New(&collector_methods[n], NULL);
        }
        failed = collector_callbacks[n] == NULL;
    }
    if (!failed && is_on) {
        failed = PyList_Insert(list, 0, collector_callbacks[0]) < 0 || PyList_Append(list, collector_callbacks[1]) < 0;
    }
    else if (!failed) {
        failed = limits_remove(list, collector_callbacks[0]) < 0 || limits_remove(list, collector_callbacks[1]) < 0;
        collecting_thread = 0;
    }
    Py_XDECREF(list);
    return failed ? -1 : 0;
}

void limits_watch_collector(void)
{
    int is_on = counters_have_limits();
    if (is_on == is_watching) {
        return;
    }
    is_watching = is_on;
    threads_charge(ROOT);
    PyObject *raised = PyErr_Occurred() ? compat_take_exception() : NULL;
    if (limits_set_watching(is_on) < 0) {
        PyErr_Clear();
        is_watching = !is_on; /* tried again with the next limit */
    }
    if (raised != NULL) {
        compat_raise_exception(raised);
    }
    threads_forget();
}

/* Called by the hooks. */

static void limits_request(uint32_t number, int is_refused)
{
    limits_send((struct request){
        .is_taken = 1,
        .number = number,
        .generation = counters[number].generation,
        .is_refused = is_refused,
        .thread = PyThread_get_thread_ident(),
    });
}

/* Called when the segment has used up its headroom. */
static void limits_cross(void)
{
    counters_settle_chain(segment.counter);
    for (uint32_t number = segment.counter; number != ROOT; number = counters[number].parent) {
        struct counter *counter = &counters[number];
        int64_t reached = counter->live + segment.net;
        if (reached > counter->ask_at) {
            counter->ask_at = reached + limits_grace(counter->limit) / STEPS_PER_GRACE;
            limits_request(number, 0);
            break; /* the innermost owner comes first, and the next one with the next block */
        }
    }
    counters_update_limit_headroom();
}

void limits_ask_again(uint32_t number, int64_t after_bytes)
{
    struct counter *counter = &counters[number];
    counters_flush_into(number);
    if (counter->limit != NO_LIMIT) {
        int64_t reached = counter->live > counter->limit ? counter->live : counter->limit;
        counter->ask_at = after_bytes < 0 ? NO_LIMIT : reached + after_bytes;
    }
    counters_update_limit_headroom();
}

int limits_refuse(uint32_t number, size_t growth)
{
    if (LIKELY(!counters_have_limits())) {
        return 0;
    }
    if (number != segment.counter) {
        counters_switch(number);
    }
    counters_flush();
    counters_settle_chain(number);
    for (; number != ROOT; number = counters[number].parent) {
        struct counter *counter = &counters[number];
        int64_t reached = counter->live + (int64_t)growth;
        if (reached <= counter->hard_limit || (int64_t)growth < counter->hard_limit / MIN_SHARE_OF_LIMIT) {
            continue;
        }
        refused_blocks++;
        counter->refused_blocks++;
        counter->highest_refused = reached > counter->highest_refused ? reached : counter->highest_refused;
        limits_request(number, 1);
        return 1;
    }
    return 0;
}

void limits_start(void)
{
    counters_on_limit_crossed = limits_cross;
}

static PyMethodDef limits_functions[] = {
    {"on_instruction", (PyCFunction)(void (*)(void))limits_on_instruction, METH_FASTCALL, instruction_doc},
    {"set_decide", limits_set_decide, METH_O, decide_doc},
    {"stop_trace", limits_stop_trace_method, METH_NOARGS, stop_doc},
    {"trace_frame", limits_trace_frame, METH_O, frame_doc},
    {NULL, NULL, 0, NULL},
};

int limits_register(PyObject *module)
{
    return PyModule_AddFunctions(module, limits_functions);
}
