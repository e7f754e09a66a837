/* The methods that add to a bounded list: `append`, `extend`, `insert`, `x[i:j] = y`, `x += y`.

   Keep in step with `PyBoundedListCore` in `memtools/structures/_window.py`, which does the same in Python; both pass one
   suite and have the same docstrings. Python methods of the subclass do everything else; they are called by name:
   `_enforce_bounds` to evict where there is a hook, `_extend_from_iterator` for iterators.

   Locking: every function is called under the GIL and needs no other lock. What can run foreign code (the finaliser of
   an evicted item, a hook, an iterator) is the last thing that is done to the list, and no value that was read from the
   list before is used after it. The fields are plain numbers, written by `BoundedListBase._set_bounds`.

   On interpreters without the GIL the module refuses to be imported, and the Python class is used. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef struct {
    PyListObject list;
    Py_ssize_t limit;   /* items at most */
    Py_ssize_t keep;    /* items that are left after an overflow */
    Py_ssize_t chunk;   /* items of a list or tuple that are added at once; 0 until the bounds are known */
    Py_ssize_t evicted; /* items evicted so far */
    char is_exact;      /* each added item evicts one, and there is no hook */
    char has_hook;
} BoundedListCore;

struct module_state {
    PyObject *extend;
    PyObject *extend_from_iterator;
    PyObject *enforce_bounds;
};

static PyModuleDef list_core_module;

static struct module_state *list_core_state(PyObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &list_core_module);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* Move `count` items down by one place, from `items[1]` on. The caller owns the reference that was in `items[0]`. */
static void list_core_shift_by_memmove(PyObject **items, Py_ssize_t count)
{
    memmove(items, items + 1, (size_t)count * sizeof(PyObject *));
}

/* This move is nearly the whole cost of an append to a full list. `memmove` of the C library is slow where source
   and target are one place apart: for 1,000 items 104-116 ns, by AVX2 51, by AVX-512 37 (glibc 2.36, AMD EPYC). AVX2
   needs four loads before four stores, and both need aligned stores. */
static void (*shift)(PyObject **items, Py_ssize_t count) = list_core_shift_by_memmove;

#if defined(__GNUC__) && defined(__x86_64__)
typedef long long four_items __attribute__((vector_size(32), aligned(8), may_alias));
typedef long long eight_items __attribute__((vector_size(64), aligned(8), may_alias));

__attribute__((target("avx2"))) static void list_core_shift_avx2(PyObject **items, Py_ssize_t count)
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
    list_core_shift_by_memmove(items, count);
}

__attribute__((target("avx512f"))) static void list_core_shift_avx512(PyObject **items, Py_ssize_t count)
{
    for (; count > 0 && (uintptr_t)items % sizeof(eight_items) != 0; items++, count--) {
        items[0] = items[1];
    }
    for (; count >= 8; items += 8, count -= 8) {
        *(eight_items *)items = *(const eight_items *)(items + 1);
    }
    list_core_shift_by_memmove(items, count);
}
#endif

/* Every interpreter of the process makes the same choice. */
static void list_core_choose_shift(void)
{
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        shift = list_core_shift_avx512;
    } else if (__builtin_cpu_supports("avx2")) {
        shift = list_core_shift_avx2;
    }
#endif
}

/* Call `self.extend(argument)` or `self._extend_from_iterator(argument)`, which a subclass may override. -1 with an exception. */
static int list_core_call(PyObject *self, PyObject *name, PyObject *argument)
{
    PyObject *nothing = PyObject_CallMethodOneArg(self, name, argument);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

/* Evict what exceeds the limit, by way of the hook where there is one. Runs foreign code. */
static int list_core_enforce_bounds(PyObject *self)
{
    BoundedListCore *core = (BoundedListCore *)self;
    if (PyList_GET_SIZE(self) <= core->limit) {
        return 0;
    }
    if (core->chunk == 0) {
        PyErr_Format(PyExc_AttributeError, "%.200s has no bounds before its __init__", Py_TYPE(self)->tp_name);
        return -1;
    }

    if (core->has_hook) {
        struct module_state *state = list_core_state(self);
        PyObject *nothing = state == NULL ? NULL : PyObject_CallMethodNoArgs(self, state->enforce_bounds);
        Py_XDECREF(nothing);
        return nothing == NULL ? -1 : 0;
    }

    Py_ssize_t excess = PyList_GET_SIZE(self) - core->keep;
    core->evicted += excess;
    return PyList_SetSlice(self, 0, excess, NULL);
}

/* Evict the oldest item of a full list and put `item` at its end, in one move instead of the three of `append` and
   `del x[0]`. The finaliser of the oldest item runs when the list is complete. A function of its own, so that
   `append` saves fewer registers on the stack. */
Py_NO_INLINE static PyObject *list_core_append_to_full(PyObject *self, PyObject *item)
{
    PyObject *oldest = PyList_GET_ITEM(self, 0);
    Py_ssize_t last = PyList_GET_SIZE(self) - 1;
    shift(PySequence_Fast_ITEMS(self), last);
    PyList_SET_ITEM(self, last, Py_NewRef(item));
    ((BoundedListCore *)self)->evicted++;
    Py_DECREF(oldest);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(append_doc,
             "append($self, item, /)\n--\n\n"
             "Add `item` at the end; where the list is full, the oldest go.");

static PyObject *list_core_append(PyObject *self, PyObject *item)
{
    BoundedListCore *core = (BoundedListCore *)self;
    /* `list.append(x, ...)` may have made the list longer than its limit; it evicts one item for one item then. */
    if (core->is_exact && PyList_GET_SIZE(self) >= core->limit && core->limit > 0) {
        return list_core_append_to_full(self, item);
    }

    if (PyList_Append(self, item) < 0) {
        return NULL;
    }
    if (PyList_GET_SIZE(self) > core->limit && list_core_enforce_bounds(self) < 0) {
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

static PyObject *list_core_extend(PyObject *self, PyObject *iterable)
{
    BoundedListCore *core = (BoundedListCore *)self;
    if ((PyList_CheckExact(iterable) || PyTuple_CheckExact(iterable)) && Py_SIZE(iterable) <= core->chunk) {
        Py_ssize_t length = PyList_GET_SIZE(self);
        if (PyList_SetSlice(self, length, length, iterable) < 0 || list_core_enforce_bounds(self) < 0) {
            return NULL;
        }
        Py_RETURN_NONE;
    }

    struct module_state *state = list_core_state(self);
    PyObject *iterator = state == NULL ? NULL : PyObject_GetIter(iterable);
    if (iterator == NULL) {
        return NULL;
    }
    int code = list_core_call(self, state->extend_from_iterator, iterator);
    Py_DECREF(iterator);
    if (code < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(insert_doc,
             "insert($self, index, item, /)\n--\n\n"
             "Put `item` before `index`; where the list is full, the oldest go: at the front, `item` itself.");

static PyObject *list_core_insert(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "insert expected 2 arguments, got %zd", count);
    }

    Py_ssize_t index = PyNumber_AsSsize_t(arguments[0], PyExc_OverflowError);
    if (index == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyList_Insert(self, index, arguments[1]) < 0 || list_core_enforce_bounds(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* x[i] = y, x[i:j] = y, and `del`, which cannot exceed the limit. */
static int list_core_assign(PyObject *self, PyObject *key, PyObject *value)
{
    int code = PyList_Type.tp_as_mapping->mp_ass_subscript(self, key, value);
    return code < 0 || value == NULL ? code : list_core_enforce_bounds(self);
}

/* x += y, by way of `extend`, which a subclass may override. */
static PyObject *list_core_add_in_place(PyObject *self, PyObject *iterable)
{
    struct module_state *state = list_core_state(self);
    if (state == NULL || list_core_call(self, state->extend, iterable) < 0) {
        return NULL;
    }
    return Py_NewRef(self);
}

/* The static type `list` does not visit its class; a class that was made at run time has to be visited. */
static int list_core_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return PyList_Type.tp_traverse(self, visit, arg);
}

static int list_core_clear(PyObject *self)
{
    return PyList_Type.tp_clear(self);
}

static PyMethodDef list_core_methods[] = {
    {"append", list_core_append, METH_O, append_doc},
    {"extend", list_core_extend, METH_O, extend_doc},
    {"insert", (PyCFunction)(void (*)(void))list_core_insert, METH_FASTCALL, insert_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef list_core_members[] = {
    {"_limit", T_PYSSIZET, offsetof(BoundedListCore, limit), 0, NULL},
    {"_keep", T_PYSSIZET, offsetof(BoundedListCore, keep), 0, NULL},
    {"_chunk", T_PYSSIZET, offsetof(BoundedListCore, chunk), 0, NULL},
    {"_evicted", T_PYSSIZET, offsetof(BoundedListCore, evicted), 0, NULL},
    {"_is_exact", T_BOOL, offsetof(BoundedListCore, is_exact), 0, NULL},
    {"_has_hook", T_BOOL, offsetof(BoundedListCore, has_hook), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(list_core_doc, "A list of at most `_limit` items; an overflow leaves the last `_keep` of them.");

static PyType_Slot list_core_slots[] = {
    {Py_tp_doc, (void *)list_core_doc},
    {Py_tp_traverse, list_core_traverse},
    {Py_tp_clear, list_core_clear},
    {Py_tp_methods, list_core_methods},
    {Py_tp_members, list_core_members},
    {Py_mp_ass_subscript, list_core_assign},
    /* Both: `x += y` tries the first one before any method of y, `operator.iconcat` the second one only. */
    {Py_nb_inplace_add, list_core_add_in_place},
    {Py_sq_inplace_concat, list_core_add_in_place},
    {0, NULL},
};

static PyType_Spec list_core_spec = {
    .name = "memtools.structures._list_core.CBoundedListCore",
    .basicsize = sizeof(BoundedListCore),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = list_core_slots,
};

#ifdef Py_GIL_DISABLED
static int list_core_execute(PyObject *module)
{
    (void)module;
    (void)list_core_spec;
    PyErr_SetString(PyExc_ImportError, "the C list relies on the GIL, and this Python is free-threaded");
    return -1;
}
#else
static int list_core_execute(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->extend = PyUnicode_InternFromString("extend");
    state->extend_from_iterator = PyUnicode_InternFromString("_extend_from_iterator");
    state->enforce_bounds = PyUnicode_InternFromString("_enforce_bounds");
    if (state->extend == NULL || state->extend_from_iterator == NULL || state->enforce_bounds == NULL) {
        return -1;
    }

    list_core_choose_shift();
    PyObject *kind = PyType_FromModuleAndSpec(module, &list_core_spec, (PyObject *)&PyList_Type);
    int code = kind == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)kind);
    Py_XDECREF(kind);
    return code;
}
#endif

static int list_core_clear_module(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->extend);
    Py_CLEAR(state->extend_from_iterator);
    Py_CLEAR(state->enforce_bounds);
    return 0;
}

static void list_core_free_module(void *module)
{
    (void)list_core_clear_module(module);
}

static PyModuleDef_Slot list_core_module_slots[] = {
    {Py_mod_exec, list_core_execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* without the GIL the module only reports that, and must not turn the GIL on */
#endif
    {0, NULL},
};

static PyModuleDef list_core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.structures._list_core",
    .m_doc = "The calls that add to a bounded list, in C.",
    .m_size = sizeof(struct module_state),
    .m_slots = list_core_module_slots,
    .m_clear = list_core_clear_module,
    .m_free = list_core_free_module,
};

PyMODINIT_FUNC PyInit__list_core(void)
{
    return PyModuleDef_Init(&list_core_module);
}
