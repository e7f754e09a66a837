/* The counter of a thread, found from its context, and the records of threads that work for no owner. */

#include "threads.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <string.h>

#include "block_map.h"
#include "hooks.h"
#include "platform.h"

#define MAX_RECORDS 1024 /* threads beyond are not looked at */
/* So much a pool may allocate for itself between two calls that carry a context. */
#define MIN_UNCARRIED ((int64_t)16 << 10)
#define MAIN_STATE 1     /* the number of the first thread state, that of the main thread */

/* Places among the threads of the black box. */
#define NO_PLACE 0
#define MAIN_PLACE 1
#define FIRST_PLACE 2

enum record_state { FREE, IN_USE, ENDED };
enum record_kind { UNKNOWN, POOL, OTHER, NONE };

/* What a thread other than the main one has allocated for no owner. */
struct thread_record {
    unsigned long ident;
    int64_t allocated;
    int64_t since_context; /* what was allocated since its context has changed, to that version */
    uint64_t context_version;
    uint32_t begun_in; /* the counter that was charged with its thread state, or an ancestor that is open still */
    uint32_t generation; /* of that counter */
    uint8_t kind;        /* whether it belongs to a pool, which may work for every caller; or works for no owner */
    _Atomic(uint8_t) state;
};

uint64_t threads_epoch = 1;
int (*threads_find_counter)(const PyThreadState *state, uint32_t *number);

static struct thread_record records[MAX_RECORDS];
static int records_used; /* the records beyond have never been in use */
static int64_t pool_bytes;
static platform_key key; /* its destructor tells that a thread has ended */
static int has_key;
static int threads_inherit; /* whether a new thread begins in a copy of its starter's context */

static uint32_t threads_place(const struct thread_record *record)
{
    size_t place = FIRST_PLACE + (size_t)(record - records);
    return place < BLACK_BOX_THREADS ? (uint32_t)place : NO_PLACE;
}

/* Runs in the thread that ends, without the GIL. */
PLATFORM_AT_END(threads_end_record, record)
{
    /* Should the file be closed meanwhile, its addresses lead to memory that nothing reads. */
    black_box_thread(threads_place(record), 0, ROOT);
    atomic_store(&((struct thread_record *)record)->state, ENDED);
}

static void threads_classify(struct thread_record *record, int is_pool)
{
    if (!is_pool && (record->kind == UNKNOWN || record->kind == POOL)) {
        pool_bytes -= record->allocated; /* counted so far, see threads_note */
    }
    record->kind = is_pool ? POOL : OTHER;
}

/* The thread of a pool is there when the pool's work is done. One that has ended was its starter's own: `begun_in`. */
static void threads_free_ended(void)
{
    for (int n = 0; n < records_used; n++) {
        if (atomic_load(&records[n].state) == ENDED) {
            if (records[n].kind == UNKNOWN) {
                threads_classify(&records[n], 0);
            }
            atomic_store(&records[n].state, FREE);
        }
    }
}

static struct thread_record *threads_take_record(void)
{
    threads_free_ended();
    for (int n = 0; n < records_used; n++) {
        if (atomic_load(&records[n].state) == FREE) {
            return &records[n];
        }
    }
    return records_used < MAX_RECORDS ? &records[records_used++] : NULL;
}

static void threads_set_begun_in(struct thread_record *record, uint32_t number)
{
    record->begun_in = number;
    record->generation = counters[number].generation;
}

/* Return the innermost open counter in which the thread was begun, else ROOT. The number of a closed counter is not
   reused while the thread state, which is charged to it, lives; but its blocks may move to another counter. */
static uint32_t threads_begun_in(struct thread_record *record)
{
    uint32_t number = record->generation == counters[record->begun_in].generation ? record->begun_in : ROOT;
    while (number != ROOT && !counters[number].is_open) {
        number = counters[number].parent;
    }
    if (number != record->begun_in) {
        threads_set_begun_in(record, number);
    }
    return number;
}

/* This thread has a state that it had not when it was last here. */
static void threads_enter(const PyThreadState *state)
{
#ifdef PY_HAVE_THREAD_NATIVE_ID
    thread_state.native_id = (uint32_t)PyThread_get_thread_native_id();
#endif
    if (!has_key || state->id == MAIN_STATE) {
        thread_state.black_box_place = state->id == MAIN_STATE ? MAIN_PLACE : NO_PLACE;
        return;
    }
    struct thread_record *record = platform_get(key);
    if (record == NULL) {
        record = threads_take_record();
        if (record == NULL || platform_set(key, record) < 0) {
            return;
        }
        record->ident = PyThread_get_thread_ident();
        record->allocated = 0;
        record->kind = UNKNOWN;
        atomic_store(&record->state, IN_USE);
    }
    /* The thread that begins another one allocates its state. */
    const map_entry *at = block_map_find(state);
    threads_set_begun_in(record, at == NULL || *at == 0 || record->kind == NONE ? ROOT : (uint32_t)(*at >> 1) - 1);
    thread_state.record = record;
    thread_state.black_box_place = threads_place(record);
}

/* Return whether this thread may work for other owners than the one that its context names: for none, or where threads
   inherit the context of their starter (`-X thread_inherit_context=1`) for the one in which it was begun. */
static int threads_is_uncarried(uint32_t number)
{
    struct thread_record *record = thread_state.record;
    return record != NULL && (number == ROOT || (threads_inherit && number == threads_begun_in(record)));
}

static void threads_note(struct thread_record *record, size_t size)
{
    int64_t before = record->since_context;
    record->since_context += (int64_t)size;
    if (record->since_context <= MIN_UNCARRIED) {
        return;
    }
    int64_t bytes = before <= MIN_UNCARRIED ? record->since_context : (int64_t)size;
    record->allocated += bytes;
    if (record->kind == UNKNOWN || record->kind == POOL) {
        pool_bytes += bytes;
    }
    for (uint32_t number = threads_begun_in(record); number != ROOT; number = counters[number].parent) {
        counters[number].uncarried += bytes;
    }
}

static void threads_mark_seen(const PyThreadState *state)
{
    thread_state.context_version = state->context_ver;
    thread_state.state_id = state->id;
    thread_state.epoch = threads_epoch;
}

static uint32_t threads_fallback(void)
{
    const struct counter *counter = &counters[thread_state.fallback];
    return counter->is_open && counter->generation == thread_state.fallback_generation ? thread_state.fallback : ROOT;
}

void threads_charge_unowned(uint32_t number)
{
    thread_state.fallback = number;
    thread_state.fallback_generation = counters[number].generation;
    threads_forget();
}

void threads_follow(const PyThreadState *state, size_t size)
{
    if (thread_state.is_watched && state->context_ver == ~thread_state.context_version &&
        state->id == thread_state.state_id && threads_epoch == thread_state.epoch) {
        threads_note(thread_state.record, size);
        return;
    }
    uint8_t saved = thread_state.inside_allocator;
    thread_state.inside_allocator = 1;
    if (state->id != thread_state.state_id) {
        threads_enter(state);
    }
    uint32_t number;
    if (threads_find_counter != NULL && threads_find_counter(state, &number) == 0) {
        thread_state.counter = number == ROOT ? threads_fallback() : number;
        black_box_thread(thread_state.black_box_place, thread_state.native_id, thread_state.counter);
        threads_mark_seen(state);
        thread_state.is_watched = threads_is_uncarried(thread_state.counter);
        if (thread_state.is_watched) {
            thread_state.context_version = ~state->context_ver; /* so that each allocation comes here */
            if (thread_state.record->context_version != state->context_ver) {
                thread_state.record->context_version = state->context_ver;
                thread_state.record->since_context = 0;
            }
            threads_note(thread_state.record, size);
        }
    }
    thread_state.inside_allocator = saved;
}

int threads_can_follow(void)
{
    PyObject *context = PyContext_New();
    if (context == NULL) {
        PyErr_Clear();
        return 0;
    }
    const PyThreadState *state = THREADS_STATE();
    uint64_t before = state->context_ver;
    int can_enter = PyContext_Enter(context) == 0;
    uint64_t inside = state->context_ver;
    int can_exit = can_enter && PyContext_Exit(context) == 0;
    uint64_t after = state->context_ver;
    PyErr_Clear();
    Py_DECREF(context);
    return can_exit && before != inside && inside != after;
}

void threads_charge(uint32_t number)
{
    thread_state.counter = number;
    thread_state.is_watched = 0;
    const PyThreadState *state = THREADS_STATE();
    if (state != NULL && state->id == thread_state.state_id) {
        threads_mark_seen(state);
    }
    else if (state != NULL) {
        threads_enter(state);
        threads_mark_seen(state);
    }
    black_box_thread(thread_state.black_box_place, thread_state.native_id, number);
}

void threads_forget(void)
{
    thread_state.epoch = 0;
}

void threads_after_fork(void)
{
    struct thread_record *own = has_key ? platform_get(key) : NULL;
    for (int n = 0; n < records_used; n++) {
        if (&records[n] != own) {
            atomic_store(&records[n].state, FREE);
        }
    }
    if (own != NULL) { /* it has become the main thread */
        atomic_store(&own->state, FREE);
        (void)platform_set(key, NULL);
    }
    thread_state.record = NULL;
    thread_state.black_box_place = MAIN_PLACE;
#ifdef PY_HAVE_THREAD_NATIVE_ID
    thread_state.native_id = (uint32_t)PyThread_get_thread_native_id();
#endif
    thread_state.is_watched = 0;
    threads_forget();
}

int64_t threads_pool_bytes(void)
{
    return pool_bytes;
}

static int64_t threads_if_too_much(int64_t bytes, const struct counter *counter)
{
    return bytes > UNCARRIED_BYTES && bytes > counter->allocated / UNCARRIED_SHARE ? bytes : 0;
}

/* A pool rarely submits to itself, so what pools do is no question for an owner of a pool's thread. */
static int threads_is_in_pool(void)
{
    const struct thread_record *record = thread_state.record;
    return record != NULL && record->kind == POOL;
}

int threads_may_have_worked_for(uint32_t number, int64_t *begun, int64_t *pooled)
{
    const struct counter *counter = &counters[number];
    *begun = *pooled = 0;
    if (LIKELY(counter->uncarried <= UNCARRIED_BYTES && pool_bytes - counter->pool_bytes_at_open <= UNCARRIED_BYTES)) {
        return 0;
    }
    counters_flush_into(number);
    threads_free_ended();
    *begun = threads_if_too_much(counter->uncarried, counter);
    *pooled = threads_is_in_pool() ? 0 : threads_if_too_much(pool_bytes - counter->pool_bytes_at_open, counter);
    return *begun > 0 || *pooled > 0;
}

/* Return whether a thread runs code of a module of the set. Holds no frame beyond the return: a frame that is held keeps
   the variables of the thread alive when its function returns, and they would end here, in another thread. */
static int threads_runs_module(PyThreadState *state, PyObject *modules)
{
    int is_found = 0;
    PyFrameObject *frame = PyThreadState_GetFrame(state);
    while (frame != NULL && !is_found) {
        PyObject *globals = PyFrame_GetGlobals(frame);
        PyObject *name = PyDict_GetItemString(globals, "__name__");
        is_found = name != NULL && PyUnicode_CheckExact(name) && PySet_Contains(modules, name) == 1;
        Py_DECREF(globals);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return is_found;
}

static PyThreadState *threads_state_of(unsigned long ident)
{
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state != NULL && state->thread_id != ident) {
        state = PyThreadState_Next(state);
    }
    return state;
}

PyDoc_STRVAR(classify_doc, "classify_threads($module, pool_modules, /)\n--\n\n"
    "Find out of each thread whether it belongs to a pool: whether it runs code of a module of the set. What the other "
    "threads have allocated does not count as a pool's any more.");

static PyObject *threads_py_classify(PyObject *Py_UNUSED(module), PyObject *modules)
{
    if (!PyFrozenSet_CheckExact(modules)) {
        PyErr_Format(PyExc_TypeError, "pool_modules=%R is not accepted: it must be a frozenset of names", modules);
        return NULL;
    }
    /* A collection in between could let another thread run, and end. */
    const int collects = PyGC_Disable();
    for (int n = 0; n < records_used; n++) {
        struct thread_record *record = &records[n];
        if (atomic_load(&record->state) == IN_USE && record->kind == UNKNOWN) {
            PyThreadState *state = threads_state_of(record->ident);
            threads_classify(record, state != NULL && threads_runs_module(state, modules));
        }
    }
    if (collects) {
        PyGC_Enable();
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(disregard_doc, "disregard_thread($module, /)\n--\n\n"
    "Tell that this thread works for none of the owners, wherever it was begun.");

static PyObject *threads_py_disregard(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    const PyThreadState *state = THREADS_STATE();
    if (hooks_are_counting() && state != NULL) {
        if (state->id != thread_state.state_id) {
            threads_enter(state);
        }
        struct thread_record *record = thread_state.record;
        if (record != NULL) {
            threads_set_begun_in(record, ROOT);
            threads_classify(record, 0);
            record->kind = NONE;
        }
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "switch_to_context($module, /)\n--\n\n"
    "Have each thread charge, from now on, the owner that is active in its context.");

static PyObject *threads_py_forget(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    thread_state.enforcement_off = 0;
    threads_epoch++;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(inherit_doc, "set_threads_inherit($module, is_on, /)\n--\n\n"
    "Tell whether a new thread begins in a copy of its starter's context.");

static PyObject *threads_py_set_inherit(PyObject *Py_UNUSED(module), PyObject *is_on)
{
    threads_inherit = is_on == Py_True;
    Py_RETURN_NONE;
}

static PyMethodDef threads_functions[] = {
    {"classify_threads", threads_py_classify, METH_O, classify_doc},
    {"disregard_thread", threads_py_disregard, METH_NOARGS, disregard_doc},
    {"set_threads_inherit", threads_py_set_inherit, METH_O, inherit_doc},
    {"switch_to_context", threads_py_forget, METH_NOARGS, forget_doc},
    {NULL, NULL, 0, NULL},
};

int threads_register(PyObject *module)
{
    if (!has_key) {
        has_key = platform_make_key(&key, threads_end_record) == 0;
    }
    return PyModule_AddFunctions(module, threads_functions);
}
