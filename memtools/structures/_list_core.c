/* The methods that add to a bounded list: `append`, `extend`, `insert`, `x[i:j] = y`, `x += y`.

   Keep in step with `PyBoundedListCore` in `memtools/structures/_window.py`, which does the same in Python; both pass one
   suite and have the same docstrings. Python methods of the subclass do everything else; they are called by name:
   `_enforce_bounds` and `_report` to evict where there is a hook, `_extend_from_iterator` for iterators.

   Locking: every function is called under the GIL and needs no other lock. What can run foreign code (the finaliser of
   an evicted item, a hook, an iterator) is the last thing that is done to the list, and no value that was read from the
   list before is used after it. The fields are plain numbers, written by `BoundedListBase._set_bounds`.

   On free-threaded builds all that adds goes by `list_core_add`, which holds the list's own mutex from the look at the
   bounds to the last change, and drops what was evicted after it has released the mutex: no foreign code runs inside.
   A critical section would not do, because a call of the list inside it may suspend it. What the other methods of
   `list` must not see half done is in a critical section inside the mutex, and stored as readers without a lock expect
   it. */

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
#ifdef Py_GIL_DISABLED
    PyMutex mutex; /* held while items are added */
    int forks;     /* how often the process had been forked when the mutex was made */
#endif
} BoundedListCore;

struct module_state {
    PyObject *extend;
    PyObject *extend_from_iterator;
    PyObject *enforce_bounds;
    PyObject *report;
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

#ifdef Py_GIL_DISABLED
static int forks;       /* how many forks there are between this process and the one that imported the module */
static PyMutex renewal; /* held while the mutex of a list is made anew */

/* The mutex of a list is that of a thread that does not exist any more, if another thread held it during a fork. */
static void list_core_lock(PyObject *self)
{
    BoundedListCore *core = (BoundedListCore *)self;
    if (_Py_atomic_load_int(&core->forks) != forks) {
        PyMutex_Lock(&renewal);
        if (_Py_atomic_load_int(&core->forks) != forks) {
            core->mutex = (PyMutex){0};
            _Py_atomic_store_int(&core->forks, forks);
        }
        PyMutex_Unlock(&renewal);
    }
    PyMutex_Lock(&core->mutex);
}

static void list_core_unlock(PyObject *self)
{
    PyMutex_Unlock(&((BoundedListCore *)self)->mutex);
}

/* Threads read the items without a lock: pointer by pointer, each of which has to be whole. */
static void list_core_store(PyObject **slot, PyObject *item)
{
    _Py_atomic_store_ptr_release(slot, item);
}
#else
#define list_core_lock(self) ((void)(self))
#define list_core_unlock(self) ((void)(self))
#define list_core_store(slot, item) ((void)(*(slot) = (item)))
#endif

#ifndef Py_BEGIN_CRITICAL_SECTION /* before 3.13 */
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

PyDoc_STRVAR(renew_locks_doc, "renew_locks($module, /)\n--\n\nForget, in the child of a fork, what other threads held.");

static PyObject *list_core_renew_locks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
#ifdef Py_GIL_DISABLED
    renewal = (PyMutex){0};
    forks++;
#endif
    Py_RETURN_NONE;
}

/* Call `self.extend(argument)` or `self._extend_from_iterator(argument)`, which a subclass may override. -1 with an exception. */
static int list_core_call(PyObject *self, PyObject *name, PyObject *argument)
{
    PyObject *nothing = PyObject_CallMethodOneArg(self, name, argument);
    Py_XDECREF(nothing);
    return nothing == NULL ? -1 : 0;
}

static int list_core_raise_without_bounds(PyObject *self)
{
    PyErr_Format(PyExc_AttributeError, "%.200s has no bounds before its __init__", Py_TYPE(self)->tp_name);
    return -1;
}

/* Take `own` items from the front of the list and put them into `evicted`, which has free places for them from 0 to
   `before` and for the others from `behind` on. No reference is dropped, so no foreign code runs. */
static void list_core_take_oldest(PyObject *self, Py_ssize_t own, PyObject *evicted, Py_ssize_t before, Py_ssize_t behind)
{
    PyObject **slots = PySequence_Fast_ITEMS(self);
    Py_ssize_t left = PyList_GET_SIZE(self) - own;
    for (Py_ssize_t n = 0; n < own; n++) {
        PyList_SET_ITEM(evicted, n < before ? n : behind + n - before, slots[n]);
    }
    for (Py_ssize_t n = 0; n < left; n++) {
        list_core_store(&slots[n], slots[n + own]);
    }
    Py_SET_SIZE(self, left);
    for (Py_ssize_t n = left; n < left + own; n++) {
        list_core_store(&slots[n], NULL); /* a reader that has read the old size takes the lock then */
    }
}

/* Take out what has to go before the items of the list `added` come in at `index`; return it, oldest first. What of
   `added` would go at once is taken out of `added`, and `index` becomes its place in the list that is left. NULL with
   an exception, before anything has changed. The caller has locked the list. */
static PyObject *list_core_make_room(PyObject *self, PyObject *added, Py_ssize_t *index, Py_ssize_t limit, Py_ssize_t keep)
{
    Py_ssize_t count = PyList_GET_SIZE(added), passed = 0;
    PyObject *evicted = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    for (;;) {
        Py_ssize_t length = PyList_GET_SIZE(self);
        Py_ssize_t at = *index < 0 ? Py_MAX(*index + length, 0) : Py_MIN(*index, length);
        Py_ssize_t excess = count > limit - length ? length + count - keep : 0;
        Py_ssize_t before = Py_MIN(at, excess);
        passed = Py_MIN(count, excess - before);
        evicted = PyList_New(excess); /* on 3.11 a collection may run in it, and change the list */
        if (evicted == NULL || PyList_GET_SIZE(self) == length) {
            if (evicted != NULL && excess > 0) {
                for (Py_ssize_t n = 0; n < passed; n++) {
                    PyList_SET_ITEM(evicted, before + n, Py_NewRef(PyList_GET_ITEM(added, n)));
                }
                list_core_take_oldest(self, excess - passed, evicted, before, before + passed);
            }
            *index = at - before;
            break;
        }
        Py_DECREF(evicted);
    }
    Py_END_CRITICAL_SECTION();
    if (evicted != NULL && passed > 0) {
        (void)PyList_SetSlice(added, 0, passed, NULL);
    }
    return evicted;
}

/* Put the items of the list `added`, which the call may change, before `index`; return what was evicted for them, a new
   list, or NULL with an exception. Runs no foreign code. */
static PyObject *list_core_exchange(PyObject *self, PyObject *added, Py_ssize_t index, Py_ssize_t limit, Py_ssize_t keep)
{
    if (((BoundedListCore *)self)->chunk == 0) {
        (void)list_core_raise_without_bounds(self);
        return NULL;
    }
    list_core_lock(self);
    PyObject *evicted = list_core_make_room(self, added, &index, limit, keep);
    int code = evicted == NULL ? -1 : 0;
    if (code == 0) {
        ((BoundedListCore *)self)->evicted += PyList_GET_SIZE(evicted);
        code = PyList_GET_SIZE(added) == 0 ? 0 : PyList_SetSlice(self, index, index, added);
    }
    list_core_unlock(self);
    if (code < 0) {
        Py_CLEAR(evicted);
    }
    return evicted;
}

PyDoc_STRVAR(add_doc,
             "_add($self, items, limit, keep, /)\n--\n\n"
             "Add the items of a list, which the call may change, within `limit`; return what was evicted, without\n"
             "reporting it. Where they are too many, the last `keep` are left.");

static PyObject *list_core_py_add(PyObject *self, PyObject *arguments)
{
    PyObject *items;
    Py_ssize_t limit, keep;
    if (!PyArg_ParseTuple(arguments, "O!nn:_add", &PyList_Type, &items, &limit, &keep)) {
        return NULL;
    }
    limit = Py_MAX(limit, 0);
    return list_core_exchange(self, items, PY_SSIZE_T_MAX, limit, Py_MIN(Py_MAX(keep, 0), limit));
}

#ifdef Py_GIL_DISABLED
/* Put the items of `added`, whose reference the call takes, before `index`, and report what was evicted. Runs foreign
   code, last. */
static int list_core_add(PyObject *self, PyObject *added, Py_ssize_t index)
{
    BoundedListCore *core = (BoundedListCore *)self;
    if (added == NULL) {
        return -1;
    }
    PyObject *evicted = list_core_exchange(self, added, index, core->limit, core->keep);
    Py_DECREF(added);
    int code = evicted == NULL ? -1 : 0;
    if (code == 0 && core->has_hook && PyList_GET_SIZE(evicted) > 0) {
        struct module_state *state = list_core_state(self);
        code = state == NULL ? -1 : list_core_call(self, state->report, evicted);
    }
    Py_XDECREF(evicted);
    return code;
}

static PyObject *list_core_list_of(PyObject *item)
{
    PyObject *made = PyList_New(1);
    if (made != NULL) {
        PyList_SET_ITEM(made, 0, Py_NewRef(item));
    }
    return made;
}
#endif

/* Evict what exceeds the limit, by way of the hook where there is one. Runs foreign code. */
static int list_core_enforce_bounds(PyObject *self)
{
    BoundedListCore *core = (BoundedListCore *)self;
    if (PyList_GET_SIZE(self) <= core->limit) {
        return 0;
    }
    if (core->chunk == 0) {
        return list_core_raise_without_bounds(self);
    }

#ifdef Py_GIL_DISABLED
    return list_core_add(self, PyList_New(0), PY_SSIZE_T_MAX);
#endif
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

#ifndef Py_GIL_DISABLED
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
#endif

PyDoc_STRVAR(append_doc,
             "append($self, item, /)\n--\n\n"
             "Add `item` at the end; where the list is full, the oldest go.");

static PyObject *list_core_append(PyObject *self, PyObject *item)
{
    BoundedListCore *core = (BoundedListCore *)self;
#ifdef Py_GIL_DISABLED
    list_core_lock(self);
    int is_full = PyList_GET_SIZE(self) >= core->limit;
    int code = is_full ? 0 : PyList_Append(self, item);
    list_core_unlock(self);
    if (is_full) {
        code = list_core_add(self, list_core_list_of(item), PY_SSIZE_T_MAX);
    }
    if (code < 0) {
        return NULL;
    }
#else
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
#endif
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
#ifdef Py_GIL_DISABLED
        if (list_core_add(self, PySequence_List(iterable), PY_SSIZE_T_MAX) < 0) {
            return NULL;
        }
#else
        Py_ssize_t length = PyList_GET_SIZE(self);
        if (PyList_SetSlice(self, length, length, iterable) < 0 || list_core_enforce_bounds(self) < 0) {
            return NULL;
        }
#endif
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
#ifdef Py_GIL_DISABLED
    if (list_core_add(self, list_core_list_of(arguments[1]), index) < 0) {
        return NULL;
    }
#else
    if (PyList_Insert(self, index, arguments[1]) < 0 || list_core_enforce_bounds(self) < 0) {
        return NULL;
    }
#endif
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
    {"_add", list_core_py_add, METH_VARARGS, add_doc},
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

static int list_core_execute(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->extend = PyUnicode_InternFromString("extend");
    state->extend_from_iterator = PyUnicode_InternFromString("_extend_from_iterator");
    state->enforce_bounds = PyUnicode_InternFromString("_enforce_bounds");
    state->report = PyUnicode_InternFromString("_report");
    if (state->extend == NULL || state->extend_from_iterator == NULL || state->enforce_bounds == NULL ||
        state->report == NULL) {
        return -1;
    }

    list_core_choose_shift();
    PyObject *kind = PyType_FromModuleAndSpec(module, &list_core_spec, (PyObject *)&PyList_Type);
    int code = kind == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)kind);
    Py_XDECREF(kind);
    return code;
}

static int list_core_clear_module(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->extend);
    Py_CLEAR(state->extend_from_iterator);
    Py_CLEAR(state->enforce_bounds);
    Py_CLEAR(state->report);
    return 0;
}

static void list_core_free_module(void *module)
{
    (void)list_core_clear_module(module);
}

static PyMethodDef list_core_functions[] = {
    {"renew_locks", list_core_renew_locks, METH_NOARGS, renew_locks_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot list_core_module_slots[] = {
    {Py_mod_exec, list_core_execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef list_core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memtools.structures._list_core",
    .m_doc = "The calls that add to a bounded list, in C.",
    .m_size = sizeof(struct module_state),
    .m_methods = list_core_functions,
    .m_slots = list_core_module_slots,
    .m_clear = list_core_clear_module,
    .m_free = list_core_free_module,
};

PyMODINIT_FUNC PyInit__list_core(void)
{
    return PyModuleDef_Init(&list_core_module);
}
