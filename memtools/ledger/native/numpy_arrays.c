/* A handler for numpy's arrays; see arrays.h. */

#include "numpy_arrays.h"

#include "block_map.h"
#include "counters.h"
#include "hooks.h"

/* The layout of NEP 49, version 1; later ones only add to the end of `allocator`. */
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

/* Places in numpy's table (`numpy/_core/code_generators/numpy_api.py`); they are never given to anything else. */
#define GET_FEATURE_VERSION 211
#define SET_HANDLER 304
#define GET_HANDLER 305
#define FIRST_WITH_HANDLERS 0xf /* 1.22 */

struct wrap {
    struct handler handler;
    struct allocator *inner;
    PyObject *inner_capsule;
    PyObject *capsule;
};

#define MAX_WRAPS 8
static struct wrap wraps[MAX_WRAPS];
static int wrap_count;
static PyObject *(*set_handler)(PyObject *);
static PyObject *(*get_handler)(void);

static int is_to_be_counted(const void *block)
{
    /* Two blocks in one granule could not be told apart. */
    return hooks_are_counting() && (uintptr_t)block % SMALLEST == 0 && PyGILState_Check();
}

static int is_refused(size_t growth)
{
    return growth >= LEAST_REFUSED && is_to_be_counted(NULL) && !here.is_spared && tallies_refuse(here.tally, growth);
}

static void charge(void *block, size_t size)
{
    cell *at = block == NULL || !is_to_be_counted(block) ? NULL : shadow_find_or_map(block);
    if (at == NULL) {
        return;
    }
    uint32_t owner = NOBODY;
    size_t stale = shadow_take(at, &owner);
    if (stale != 0) {
        tallies_credit(owner, stale);
    }
    shadow_write(at, here.tally, size);
    (void)tallies_charge(here.tally, shadow_counted(size));
}

static void credit(const void *block)
{
    cell *at = block == NULL || (uintptr_t)block % SMALLEST != 0 ? NULL : shadow_find(block);
    if (at == NULL) {
        return;
    }
    if (!PyGILState_Check()) {
        (void)hooks_forget_unlocked(at);
        return;
    }
    uint32_t owner = NOBODY;
    size_t size = shadow_take(at, &owner);
    if (size != 0) {
        tallies_credit(owner, size);
    }
}

static void *array_malloc(void *ctx, size_t size)
{
    const struct allocator *inner = ((struct wrap *)ctx)->inner;
    if (is_refused(size)) {
        return NULL;
    }
    uint8_t was_inside = here.is_inside; /* what it has from Python's allocators is counted here */
    here.is_inside = 1;
    void *block = inner->malloc(inner->ctx, size);
    here.is_inside = was_inside;
    charge(block, size);
    return block;
}

static void *array_calloc(void *ctx, size_t items, size_t size)
{
    const struct allocator *inner = ((struct wrap *)ctx)->inner;
    if (size != 0 && items <= SIZE_MAX / size && is_refused(items * size)) {
        return NULL;
    }
    uint8_t was_inside = here.is_inside;
    here.is_inside = 1;
    void *block = inner->calloc(inner->ctx, items, size);
    here.is_inside = was_inside;
    charge(block, items * size);
    return block;
}

static void *array_realloc(void *ctx, void *block, size_t size)
{
    const struct allocator *inner = ((struct wrap *)ctx)->inner;
    cell *at = block == NULL || (uintptr_t)block % SMALLEST != 0 ? NULL : shadow_find(block);
    size_t old_size = at == NULL ? 0 : shadow_peek(at);
    if (size > old_size && is_refused(size - old_size)) {
        return NULL;
    }
    /* Credited before it is given back, as another thread may have it then; a failure charges it anew. */
    int was_counted = old_size != 0;
    credit(block);
    uint8_t was_inside = here.is_inside;
    here.is_inside = 1;
    void *made = inner->realloc(inner->ctx, block, size);
    here.is_inside = was_inside;
    if (made != NULL || was_counted) {
        charge(made != NULL ? made : block, made != NULL ? size : old_size);
    }
    return made;
}

static void array_free(void *ctx, void *block, size_t size)
{
    const struct allocator *inner = ((struct wrap *)ctx)->inner;
    credit(block);
    inner->free(inner->ctx, block, size);
}

int arrays_meet(PyObject *capsule)
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

static struct wrap *find_wrap(const PyObject *capsule, const PyObject *inner_capsule)
{
    for (int n = 0; n < wrap_count; n++) {
        if (wraps[n].capsule == capsule || wraps[n].inner_capsule == inner_capsule) {
            return &wraps[n];
        }
    }
    return NULL;
}

static struct wrap *make_wrap(PyObject *inner_capsule)
{
    struct handler *inner = PyCapsule_GetPointer(inner_capsule, CAPSULE_NAME);
    if (inner == NULL) {
        return NULL;
    }
    if (wrap_count == MAX_WRAPS) {
        PyErr_SetString(PyExc_RuntimeError, "too many memory handlers of numpy have been wrapped already");
        return NULL;
    }
    struct wrap *wrap = &wraps[wrap_count];
    *wrap = (struct wrap){
        .handler = {.name = "memtools", .version = 1,
                    .allocator = {wrap, array_malloc, array_calloc, array_realloc, array_free}},
        .inner = &inner->allocator,
    };
    wrap->capsule = PyCapsule_New(&wrap->handler, CAPSULE_NAME, NULL);
    if (wrap->capsule == NULL) {
        return NULL;
    }
    wrap->inner_capsule = Py_NewRef(inner_capsule);
    wrap_count++;
    return wrap;
}

static int set(PyObject *capsule)
{
    PyObject *before = set_handler(capsule);
    Py_XDECREF(before);
    return before == NULL ? -1 : 0;
}

int arrays_follow(int is_on)
{
    if (get_handler == NULL) {
        return 0;
    }
    PyObject *present = get_handler();
    if (present == NULL) {
        return -1;
    }
    struct wrap *ours = find_wrap(present, NULL);
    int failed = 0;
    if (is_on && ours == NULL) {
        struct wrap *wrap = find_wrap(NULL, present);
        wrap = wrap == NULL ? make_wrap(present) : wrap;
        failed = wrap == NULL ? -1 : set(wrap->capsule);
    }
    else if (!is_on && ours != NULL) {
        failed = set(ours->inner_capsule);
    }
    Py_DECREF(present);
    return failed;
}
