/* The memory handler for numpy's arrays. */

#include "numpy_arrays.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "block_map.h"
#include "counters.h"
#include "hooks.h"
#include "limits.h"
#include "threads.h"

/* The layout of NEP 49, version 1; later versions only add to the end of `allocator`. */
struct allocator {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t items, size_t size);
    void *(*realloc)(void *ctx, void *block, size_t size);
    void (*free)(void *ctx, void *block, size_t size);
};
struct handler {
    char name[127];
    uint8_t version;
    struct allocator allocator;
};
#define CAPSULE_NAME "mem_handler"
#define DEFAULT_NAME "default_allocator"

/* Positions in numpy's table (`numpy/_core/code_generators/numpy_api.py`), which numpy never reassigns. */
#define GET_FEATURE_VERSION 211
#define SET_HANDLER 304
#define GET_HANDLER 305
#define DEFAULT_HANDLER 306
#define FIRST_WITH_HANDLERS 0xf /* 1.22 */

struct wrapper {
    struct handler handler;
    struct allocator *inner;
    PyObject *inner_capsule;
    PyObject *capsule;
};

#define MAX_WRAPPERS 8
static struct wrapper wrappers[MAX_WRAPPERS];
static int wrapper_count;
static struct allocator default_inner;
static struct wrapper default_wrapper = {.inner = &default_inner};
static PyObject *(*set_handler)(PyObject *);
static PyObject *(*get_handler)(void);

static int numpy_arrays_is_counted(const void *block)
{
    /* The map cannot tell two blocks in one granule apart. Inside another wrapper, that one counts. */
    return hooks_are_counting() && !thread_state.inside_allocator && (uintptr_t)block % MIN_COUNTED_SIZE == 0 &&
           PyGILState_Check();
}

static int numpy_arrays_is_refused(size_t growth)
{
    if (growth < MIN_REFUSED_SIZE || !numpy_arrays_is_counted(NULL)) {
        return 0;
    }
    threads_look(0);
    return !thread_state.enforcement_off && limits_refuse(thread_state.counter, growth);
}

static void numpy_arrays_charge(void *block, size_t size)
{
    map_entry *at = block == NULL || !numpy_arrays_is_counted(block) ? NULL : block_map_find_or_add(block);
    if (at == NULL) {
        return;
    }
    uint32_t counter = ROOT;
    size_t stale = block_map_remove(at, &counter);
    if (stale != 0) {
        counters_credit(counter, stale);
    }
    threads_look(size);
    block_map_write(at, thread_state.counter, size);
    counters_charge(thread_state.counter, block_map_counted_size(size));
}

static void numpy_arrays_credit(const void *block)
{
    map_entry *at = block == NULL || (uintptr_t)block % MIN_COUNTED_SIZE != 0 ? NULL : block_map_find(block);
    if (at == NULL) {
        return;
    }
    if (!PyGILState_Check()) {
        (void)hooks_untrack_no_gil(at);
        return;
    }
    uint32_t counter = ROOT;
    size_t size = block_map_remove(at, &counter);
    if (size != 0) {
        counters_credit(counter, size);
    }
}

static void *numpy_arrays_malloc(void *ctx, size_t size)
{
    const struct allocator *inner = ((struct wrapper *)ctx)->inner;
    if (numpy_arrays_is_refused(size)) {
        return NULL;
    }
    uint8_t was_inside = thread_state.inside_allocator;
    /* The array is charged below; the hooks would charge a block of Python's allocators a second time. */
    thread_state.inside_allocator = 1;
    void *block = inner->malloc(inner->ctx, size);
    thread_state.inside_allocator = was_inside;
    numpy_arrays_charge(block, size);
    return block;
}

static void *numpy_arrays_calloc(void *ctx, size_t items, size_t item_size)
{
    const struct allocator *inner = ((struct wrapper *)ctx)->inner;
    size_t size;
    if (__builtin_mul_overflow(items, item_size, &size) || numpy_arrays_is_refused(size)) {
        return NULL;
    }
    uint8_t was_inside = thread_state.inside_allocator;
    thread_state.inside_allocator = 1;
    void *block = inner->calloc(inner->ctx, items, item_size);
    thread_state.inside_allocator = was_inside;
    numpy_arrays_charge(block, size);
    return block;
}

static void *numpy_arrays_realloc(void *ctx, void *block, size_t size)
{
    const struct allocator *inner = ((struct wrapper *)ctx)->inner;
    map_entry *at = block == NULL || (uintptr_t)block % MIN_COUNTED_SIZE != 0 ? NULL : block_map_find(block);
    size_t old_size = at == NULL ? 0 : block_map_size(at);
    if (size > old_size && numpy_arrays_is_refused(size - old_size)) {
        return NULL;
    }
    /* Credited before the call, because another thread may get the block once it is freed; a failure charges it
       anew. */
    int was_counted = old_size != 0;
    numpy_arrays_credit(block);
    uint8_t was_inside = thread_state.inside_allocator;
    thread_state.inside_allocator = 1;
    void *made = inner->realloc(inner->ctx, block, size);
    thread_state.inside_allocator = was_inside;
    if (made != NULL || was_counted) {
        numpy_arrays_charge(made != NULL ? made : block, made != NULL ? size : old_size);
    }
    return made;
}

static void numpy_arrays_free(void *ctx, void *block, size_t size)
{
    const struct allocator *inner = ((struct wrapper *)ctx)->inner;
    numpy_arrays_credit(block);
    inner->free(inner->ctx, block, size);
}

int numpy_arrays_load_api(PyObject *capsule)
{
    void **table = PyCapsule_GetPointer(capsule, NULL);
    if (table == NULL) {
        return -1;
    }
    unsigned int (*feature_version)(void) = (unsigned int (*)(void))table[GET_FEATURE_VERSION];
    if (feature_version() < FIRST_WITH_HANDLERS) {
        PyErr_SetString(PyExc_RuntimeError, "numpy has no memory handlers before 1.22");
        return -1;
    }
    set_handler = (PyObject * (*)(PyObject *))table[SET_HANDLER];
    get_handler = (PyObject * (*)(void))table[GET_HANDLER];
    return 0;
}

int numpy_arrays_wrap_default(PyObject *capsule)
{
    if (numpy_arrays_load_api(capsule) < 0) {
        return -1;
    }
    void **table = PyCapsule_GetPointer(capsule, NULL);
    PyObject *default_capsule = *(PyObject **)table[DEFAULT_HANDLER];
    struct handler *handler = default_capsule == NULL ? NULL : PyCapsule_GetPointer(default_capsule, CAPSULE_NAME);
    if (handler == NULL || strncmp(handler->name, DEFAULT_NAME, sizeof DEFAULT_NAME) != 0) {
        PyErr_SetString(PyExc_RuntimeError, "numpy's default memory handler is not the one that is known");
        return -1;
    }
    if (handler->allocator.ctx == &default_wrapper) {
        return 0;
    }
    default_inner = handler->allocator;
    /* numpy's own functions do not look at `ctx`, so a thread that reads one field old and one new does no harm. */
    handler->allocator.ctx = &default_wrapper;
    handler->allocator.malloc = numpy_arrays_malloc;
    handler->allocator.calloc = numpy_arrays_calloc;
    handler->allocator.realloc = numpy_arrays_realloc;
    handler->allocator.free = numpy_arrays_free;
    return 0;
}

static struct wrapper *numpy_arrays_find_wrapper(const PyObject *capsule, const PyObject *inner_capsule)
{
    for (int n = 0; n < wrapper_count; n++) {
        if (wrappers[n].capsule == capsule || wrappers[n].inner_capsule == inner_capsule) {
            return &wrappers[n];
        }
    }
    return NULL;
}

static struct wrapper *numpy_arrays_make_wrapper(PyObject *inner_capsule)
{
    struct handler *inner = PyCapsule_GetPointer(inner_capsule, CAPSULE_NAME);
    if (inner == NULL) {
        return NULL;
    }
    if (wrapper_count == MAX_WRAPPERS) {
        PyErr_SetString(PyExc_RuntimeError, "too many memory handlers of numpy have been wrapped already");
        return NULL;
    }
    struct wrapper *wrapper = &wrappers[wrapper_count];
    *wrapper = (struct wrapper){
        .handler = {.name = "memtools", .version = 1,
                    .allocator = {wrapper, numpy_arrays_malloc, numpy_arrays_calloc, numpy_arrays_realloc,
                                  numpy_arrays_free}},
        .inner = &inner->allocator,
    };
    wrapper->capsule = PyCapsule_New(&wrapper->handler, CAPSULE_NAME, NULL);
    if (wrapper->capsule == NULL) {
        return NULL;
    }
    wrapper->inner_capsule = Py_NewRef(inner_capsule);
    wrapper_count++;
    return wrapper;
}

static int numpy_arrays_set_handler(PyObject *capsule)
{
    PyObject *before = set_handler(capsule);
    Py_XDECREF(before);
    return before == NULL ? -1 : 0;
}

int numpy_arrays_set_counting(int is_on)
{
    if (get_handler == NULL) {
        return 0;
    }
    PyObject *present = get_handler();
    if (present == NULL) {
        return -1;
    }
    struct wrapper *active = numpy_arrays_find_wrapper(present, NULL);
    int failed = 0;
    if (is_on && active == NULL) {
        struct wrapper *wrapper = numpy_arrays_find_wrapper(NULL, present);
        wrapper = wrapper == NULL ? numpy_arrays_make_wrapper(present) : wrapper;
        failed = wrapper == NULL ? -1 : numpy_arrays_set_handler(wrapper->capsule);
    }
    else if (!is_on && active != NULL) {
        failed = numpy_arrays_set_handler(active->inner_capsule);
    }
    Py_DECREF(present);
    return failed;
}
