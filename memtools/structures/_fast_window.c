/* The calls that add to a list of at most so many items, in C: `append`, `extend`, `insert`, `x[i:j] = y`, `x += y`.

   Covers: what `_pure_window.py` covers, to the letter; both pass one suite. Leaves to others: everything else, to
   Python methods of the subclass, which are called by name: `_fit` where a hook wants to be told, `_feed` for iterators.

   Locking: every function is called under the GIL and needs no other lock. Whatever can run foreign code (the finaliser
   of an item that goes, a hook, an iterator) is the last thing done to the list, and nothing that was read of the list
   before is used after it. The fields are a plain number each, written by `Window._bind`.

   On interpreters without the GIL the module refuses to be imported, and the Python class has its place. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef struct {
    PyListObject list;
    Py_ssize_t limit;   /* items at most */
    Py_ssize_t keep;    /* items that an overflow leaves */
    Py_ssize_t portion; /* items of a list or tuple taken in one stroke; 0 until the bounds are known */
    Py_ssize_t evicted; /* items that had to go, so far */
    char is_exact;      /* each item that comes has one go, and nobody is told */
    char is_told;       /* there is a hook */
} Window;

struct module_state {
    PyObject *extend;
    PyObject *feed;
    PyObject *fit;
};

static PyModuleDef definition;

static struct module_state *state_of(PyObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* Move `count` items down by one place, from `items[1]` on. What was in `items[0]` is the caller's. */
static void shift_plainly(PyObject **items, Py_ssize_t count)
{
    memmove(items, items + 1, (size_t)count * sizeof(PyObject *));
}

/* An append to an exact window costs what this costs. `memmove` of the C library is slow where source and target are one
   place apart: for 1,000 items 104-116 ns, by AVX2 51, by AVX-512 37 (glibc 2.36, AMD EPYC). For AVX2 it takes four
   loads before four stores, for both that the stores are aligned. */
static void (*shift)(PyObject **items, Py_ssize_t count) = shift_plainly;

#if defined(__GNUC__) && defined(__x86_64__)
typedef long long four_items __attribute__((vector_size(32), aligned(8), may_alias));
typedef long long eight_items __attribute__((vector_size(64), aligned(8), may_alias));

__attribute__((target("avx2"))) static void shift_by_four(PyObject **items, Py_ssize_t count)
{
    for (; count > 0 && (uintptr_t)items % sizeof(four_items) != 0; items++, count--) {
        items[0] = items[1];
    }
    for (; count >= 16; items += 16, count -= 16) {
        const four_items *source = (const four_items *)(items + 1);
        four_items *target = (four_items *)items;
        four_items first = source[0], second = source[1], third = source[2], fourth = source[3];
        target[0] = first;
        target[1] = second;
        target[2] = third;
        target[3] = fourth;
    }
    shift_plainly(items, count);
}

__attribute__((target("avx512f"))) static void shift_by_eight(PyObject **items, Py_ssize_t count)
{
    for (; count > 0 && (uintptr_t)items % sizeof(eight_items) != 0; items++, count--) {
        items[0] = items[1];
    }
    for (; count >= 8; items += 8, count -= 8) {
        *(eight_items *)items = *(const eight_items *)(items + 1);
    }
    shift_plainly(items, count);
}
#endif

/* The machine is the same for every interpreter, so each finds the same. */
static void pick_shift(void)
{
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        shift = shift_by_eight;
    } else if (__builtin_cpu_supports("avx2")) {
        shift = shift_by_four;
    }
#endif
}

/* Call `self.extend(argument)` or `self._feed(argument)`, whichever class has it. -1 with an exception set on failure. */
static int call_with(PyObject *self, PyObject *name, PyObject *argument)
{
    PyObject *nothing = PyObject_CallMethodOneArg(self, name, argument);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

/* Cut an overflow, telling the hook where there is one. Runs foreign code. */
static int fit(PyObject *self)
{
    Window *window = (Window *)self;
    if (PyList_GET_SIZE(self) <= window->limit) {
        return 0;
    }
    if (window->portion == 0) {
        PyErr_Format(PyExc_AttributeError, "%.200s has no bounds before its __init__", Py_TYPE(self)->tp_name);
        return -1;
    }

    if (window->is_told) {
        struct module_state *state = state_of(self);
        PyObject *nothing = state == NULL ? NULL : PyObject_CallMethodNoArgs(self, state->fit);
        Py_XDECREF(nothing);
        return nothing == NULL ? -1 : 0;
    }

    Py_ssize_t excess = PyList_GET_SIZE(self) - window->keep;
    window->evicted += excess;
    return PyList_SetSlice(self, 0, excess, NULL);
}

/* Move a full list by one place and put `item` at its end. One stroke, where `append` and `del x[0]` are three. The
   finaliser of the oldest runs when all is in place. Apart, as `append` has less to save on the stack without it. */
Py_NO_INLINE static PyObject *move_on(PyObject *self, PyObject *item)
{
    PyObject *oldest = PyList_GET_ITEM(self, 0);
    Py_ssize_t last = PyList_GET_SIZE(self) - 1;
    shift(PySequence_Fast_ITEMS(self), last);
    PyList_SET_ITEM(self, last, Py_NewRef(item));
    ((Window *)self)->evicted++;
    Py_DECREF(oldest);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(append_doc,
             "append($self, item, /)\n--\n\n"
             "Add `item` at the end; where the list is full, the oldest go.");

static PyObject *window_append(PyObject *self, PyObject *item)
{
    Window *window = (Window *)self;
    /* One that was filled behind our back is longer than that, and gives one for one. */
    if (window->is_exact && PyList_GET_SIZE(self) >= window->limit && window->limit > 0) {
        return move_on(self, item);
    }

    if (PyList_Append(self, item) < 0) {
        return NULL;
    }
    if (PyList_GET_SIZE(self) > window->limit && fit(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(extend_doc,
             "extend($self, iterable, /)\n--\n\n"
             "Add all of `iterable` at the end; where that is too much, the last `keep` are left.\n\n"
             "An iterator is fed in portions: there are never more of its items than the bound and one portion (1,024\n"
             "items or an eighth of `maxlen`), however many it gives. If it fails, what it gave before stays, as in a\n"
             "list.");

static PyObject *window_extend(PyObject *self, PyObject *iterable)
{
    Window *window = (Window *)self;
    if ((PyList_CheckExact(iterable) || PyTuple_CheckExact(iterable)) && Py_SIZE(iterable) <= window->portion) {
        Py_ssize_t length = PyList_GET_SIZE(self);
        if (PyList_SetSlice(self, length, length, iterable) < 0 || fit(self) < 0) {
            return NULL;
        }
        Py_RETURN_NONE;
    }

    struct module_state *state = state_of(self);
    PyObject *feed = state == NULL ? NULL : PyObject_GetIter(iterable);
    if (feed == NULL) {
        return NULL;
    }
    int code = call_with(self, state->feed, feed);
    Py_DECREF(feed);
    if (code < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(insert_doc,
             "insert($self, index, item, /)\n--\n\n"
             "Put `item` before `index`; where the list is full, the oldest go: at the front, `item` itself.");

static PyObject *window_insert(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "insert expected 2 arguments, got %zd", count);
    }

    Py_ssize_t index = PyNumber_AsSsize_t(arguments[0], PyExc_OverflowError);
    if (index == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyList_Insert(self, index, arguments[1]) < 0 || fit(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* x[i] = y, x[i:j] = y; and `del`, which is the list's own and needs no look at the length. */
static int window_assign(PyObject *self, PyObject *key, PyObject *value)
{
    int code = PyList_Type.tp_as_mapping->mp_ass_subscript(self, key, value);
    return code < 0 || value == NULL ? code : fit(self);
}

/* x += y, by way of `extend`, which a subclass may have overridden. */
static PyObject *window_add_in_place(PyObject *self, PyObject *iterable)
{
    struct module_state *state = state_of(self);
    if (state == NULL || call_with(self, state->extend, iterable) < 0) {
        return NULL;
    }
    return Py_NewRef(self);
}

/* A list is a static type and does not visit its class; a class that was made at run time has to be. */
static int window_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return PyList_Type.tp_traverse(self, visit, arg);
}

static int window_clear(PyObject *self)
{
    return PyList_Type.tp_clear(self);
}

static PyMethodDef methods[] = {
    {"append", window_append, METH_O, append_doc},
    {"extend", window_extend, METH_O, extend_doc},
    {"insert", (PyCFunction)(void (*)(void))window_insert, METH_FASTCALL, insert_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"_limit", T_PYSSIZET, offsetof(Window, limit), 0, NULL},
    {"_keep", T_PYSSIZET, offsetof(Window, keep), 0, NULL},
    {"_portion", T_PYSSIZET, offsetof(Window, portion), 0, NULL},
    {"_evicted", T_PYSSIZET, offsetof(Window, evicted), 0, NULL},
    {"_is_exact", T_BOOL, offsetof(Window, is_exact), 0, NULL},
    {"_is_told", T_BOOL, offsetof(Window, is_told), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(window_doc, "A list of at most `_limit` items; an overflow leaves the last `_keep` of them.");

static PyType_Slot window_slots[] = {
    {Py_tp_doc, (void *)window_doc},
    {Py_tp_traverse, window_traverse},
    {Py_tp_clear, window_clear},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_mp_ass_subscript, window_assign},
    /* Both: `x += y` asks for the first before it asks y, `operator.iconcat` for the second only. */
    {Py_nb_inplace_add, window_add_in_place},
    {Py_sq_inplace_concat, window_add_in_place},
    {0, NULL},
};

static PyType_Spec window_spec = {
    .name = "memtools.structures._fast_window.FastWindow",
    .basicsize = sizeof(Window),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = window_slots,
};

#ifdef Py_GIL_DISABLED
static int execute(PyObject *module)
{
    (void)module;
    (void)window_spec;
    PyErr_SetString(PyExc_ImportError, "the C list relies on the GIL, and this Python is free-threaded");
    return -1;
}
#else
static int execute(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->extend = PyUnicode_InternFromString("extend");
    state->feed = PyUnicode_InternFromString("_feed");
    state->fit = PyUnicode_InternFromString("_fit");
    if (state->extend == NULL || state->feed == NULL || state->fit == NULL) {
        return -1;
    }

    pick_shift();
    PyObject *kind = PyType_FromModuleAndSpec(module, &window_spec, (PyObject *)&PyList_Type);
    int code = kind == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)kind);
    Py_XDECREF(kind);
    return code;
}
#endif

static int clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->extend);
    Py_CLEAR(state->feed);
    Py_CLEAR(state->fit);
    return 0;
}

static void release(void *module)
{
    (void)clear(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* where there is none, the module only says so: it must not turn it on */
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.structures._fast_window",
    .m_doc = "The calls that add to a bounded list, in C.",
    .m_size = sizeof(struct module_state),
    .m_slots = slots,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC PyInit__fast_window(void)
{
    return PyModuleDef_Init(&definition);
}
