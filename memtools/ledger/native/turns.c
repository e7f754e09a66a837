/* Slots by thread, the active owner by context, and the change of turns; see turns.h. */

#include "turns.h"

#include "hooks.h"
#include "module.h"
#include "tallies.h"

static PyTypeObject *tally_type;
static PyObject *active;    /* the context variable */
static PyObject *make_slot; /* called once in each thread */
static PyObject *slot_key, *switch_name;

static struct slot *slot_of_state(void)
{
    PyObject *of_thread = PyThreadState_GetDict();
    if (of_thread == NULL || make_slot == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "follow() comes first");
        return NULL;
    }
    PyObject *slot = PyDict_GetItemWithError(of_thread, slot_key);
    if (slot != NULL) {
        return (struct slot *)Py_NewRef(slot);
    }
    if (PyErr_Occurred()) {
        return NULL;
    }
    slot = PyObject_CallNoArgs(make_slot);
    if (slot == NULL) {
        return NULL;
    }
    if (!Py_IS_TYPE(slot, seats_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "not a Slot");
        Py_CLEAR(slot);
    }
    else if (PyDict_SetItem(of_thread, slot_key, slot) < 0) {
        Py_CLEAR(slot);
    }
    return (struct slot *)slot;
}

/* The slot of this thread, as long as the thread has this state: a look into the state's dict takes ten times as long.
   States may come to the address of earlier ones, but have numbers of their own. */
static _Thread_local struct {
    PyThreadState *state;
    uint64_t number;
    struct slot *slot; /* borrowed */
} known AT_FIXED_PLACE;

void turns_forget(struct slot *slot)
{
    if (known.slot == slot) {
        known.slot = NULL;
    }
}

struct slot *turns_slot(void)
{
    PyThreadState *state = PyThreadState_Get();
    if (known.slot != NULL && known.state == state && known.number == PyThreadState_GetID(state)) {
        return (struct slot *)Py_NewRef((PyObject *)known.slot);
    }
    struct slot *slot = slot_of_state();
    known.state = state;
    known.number = PyThreadState_GetID(state);
    known.slot = slot;
    return slot;
}

int turns_active(struct owner **found)
{
    PyObject *owner = NULL;
    *found = NULL;
    if (active == NULL || PyContextVar_Get(active, Py_None, &owner) < 0) {
        return active == NULL ? 0 : -1;
    }
    struct owner *open = seats_owner(owner);
    if (open != NULL && open->ended == Py_False) {
        *found = open; /* the reference goes along */
        return 0;
    }
    while (open != NULL && open->ended != Py_False) {
        open = seats_owner(open->parent);
    }
    *found = (struct owner *)Py_XNewRef((PyObject *)open);
    Py_DECREF(owner);
    return 0;
}

static int is_native(const struct owner *owner)
{
    return owner == NULL || (owner->watch != NULL && Py_IS_TYPE(owner->watch, tally_type));
}

static int switch_by_meter(PyObject *meter, struct slot *slot, PyObject *owner)
{
    PyObject *arguments[] = {meter == NULL ? Py_None : meter, (PyObject *)slot, owner};
    PyObject *result = PyObject_VectorcallMethod(switch_name, arguments, 3, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int turns_give(struct slot *slot, PyObject *wanted)
{
    struct owner *owner = seats_owner(wanted);
    while (owner != NULL && owner->detached != Py_False) {
        owner = seats_owner(owner->outer); /* it has ended, or has been given up, since it had the turn */
    }
    struct owner *before = seats_owner(slot->owner);
    if (before == owner) {
        return 0;
    }
    if (is_native(before) && is_native(owner)) {
        here.is_spared = 0;
        here.tally = owner == NULL ? NOBODY : ((Tally *)owner->watch)->number;
        Py_XSETREF(slot->owner, Py_NewRef(owner == NULL ? Py_None : (PyObject *)owner));
        return 0;
    }

    Py_XINCREF(before);
    Py_XINCREF(owner);
    int failed = 0;
    if (before != NULL && (owner == NULL || owner->meter != before->meter)) {
        failed = switch_by_meter(before->meter, slot, Py_None);
    }
    if (!failed && owner != NULL) {
        failed = switch_by_meter(owner->meter, slot, (PyObject *)owner);
    }
    Py_XDECREF(before);
    Py_XDECREF(owner);
    return failed;
}

PyDoc_STRVAR(follow_doc, "follow($module, active, make_slot, /)\n--\n\n"
    "Take the active owner from that context variable, and the slot of a new thread from that callable.");

static PyObject *native_follow(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *variable, *maker;
    if (!PyArg_ParseTuple(args, "O!O:follow", &PyContextVar_Type, &variable, &maker)) {
        return NULL;
    }
    Py_XSETREF(active, Py_NewRef(variable));
    Py_XSETREF(make_slot, Py_NewRef(maker));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(active_doc, "active_owner($module, /)\n--\n\nReturn the innermost open owner of this context.");

static PyObject *native_active_owner(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    struct owner *owner;
    if (turns_active(&owner) < 0) {
        return NULL;
    }
    return owner == NULL ? Py_NewRef(Py_None) : (PyObject *)owner;
}

PyDoc_STRVAR(give_doc, "give_turn($module, slot, owner, /)\n--\n\n"
    "Charge `owner`, or nobody, for what this thread allocates from now on.");

static PyObject *native_give_turn(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !Py_IS_TYPE(args[0], seats_slot_type)) {
        PyErr_SetString(PyExc_TypeError, "give_turn() takes a Slot and an owner or None");
        return NULL;
    }
    return turns_give((struct slot *)args[0], args[1]) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"active_owner", native_active_owner, METH_NOARGS, active_doc},
    {"follow", native_follow, METH_VARARGS, follow_doc},
    {"give_turn", (PyCFunction)(void (*)(void))native_give_turn, METH_FASTCALL, give_doc},
    {NULL, NULL, 0, NULL},
};

int turns_register(PyObject *module, PyTypeObject *type_of_tallies)
{
    if (slot_key == NULL) {
        slot_key = PyUnicode_InternFromString("memtools.ledger.slot");
        switch_name = PyUnicode_InternFromString("switch");
        if (slot_key == NULL || switch_name == NULL) {
            return -1;
        }
        tally_type = (PyTypeObject *)Py_NewRef((PyObject *)type_of_tallies);
    }
    return PyModule_AddFunctions(module, functions);
}
