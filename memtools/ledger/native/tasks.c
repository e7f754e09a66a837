/* The task of a thread, and its name; see tasks.h. */

#include "tasks.h"

static PyObject *current_task;                /* given by `find_tasks` */
static PyObject *running_loop, *task_of_loop; /* given by `know_tasks`, once asyncio is there */
static PyObject *get_name_name, *qualname_name;

int tasks_are_known(void)
{
    return current_task != NULL;
}

PyObject *tasks_current(void)
{
    if (running_loop == NULL) {
        return PyObject_CallNoArgs(current_task);
    }
    PyObject *loop = PyObject_CallNoArgs(running_loop);
    if (loop == NULL || loop == Py_None) {
        return loop;
    }
    PyObject *task = PyObject_CallOneArg(task_of_loop, loop);
    Py_DECREF(loop);
    return task;
}

/* Whether a loop has numbered the task, for want of a name. */
static int is_automatic(PyObject *name)
{
    static const char prefix[] = "Task-";
    Py_ssize_t length = PyUnicode_GetLength(name), at = sizeof prefix - 1;
    if (length <= at) {
        return length == 0 || PyUnicode_CompareWithASCIIString(name, "None") == 0; /* which 3.13.0 calls them all */
    }
    for (Py_ssize_t n = 0; n < length; n++) {
        Py_UCS4 one = PyUnicode_READ_CHAR(name, n);
        if (n < at ? one != (Py_UCS4)prefix[n] : one < '0' || one > '9') {
            return 0;
        }
    }
    return 1;
}

PyObject *tasks_name(PyObject *task, PyObject *coroutine)
{
    PyObject *name = task == Py_None ? NULL : PyObject_CallMethodNoArgs(task, get_name_name);
    if (name == NULL && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return NULL;
    }
    PyErr_Clear();
    if (name == NULL || (PyUnicode_CheckExact(name) && is_automatic(name))) {
        Py_XSETREF(name, PyObject_GetAttr(coroutine, qualname_name));
    }
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        Py_CLEAR(name);
    }
    return name;
}

PyDoc_STRVAR(find_doc, "find_tasks($module, current_task, /)\n--\n\nAsk that callable which task runs in this thread.");

static PyObject *native_find_tasks(PyObject *Py_UNUSED(module), PyObject *finder)
{
    Py_XSETREF(current_task, Py_NewRef(finder));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(know_doc, "know_tasks($module, running_loop, current_task, /)\n--\n\n"
    "Ask those two callables instead: which loop runs in this thread, and which task in that loop.");

static PyObject *native_know_tasks(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *running, *of_loop;
    if (!PyArg_ParseTuple(args, "OO:know_tasks", &running, &of_loop)) {
        return NULL;
    }
    Py_XSETREF(running_loop, Py_NewRef(running));
    Py_XSETREF(task_of_loop, Py_NewRef(of_loop));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"find_tasks", native_find_tasks, METH_O, find_doc},
    {"know_tasks", native_know_tasks, METH_VARARGS, know_doc},
    {NULL, NULL, 0, NULL},
};

int tasks_register(PyObject *module)
{
    if (get_name_name == NULL) {
        get_name_name = PyUnicode_InternFromString("get_name");
        qualname_name = PyUnicode_InternFromString("__qualname__");
        if (get_name_name == NULL || qualname_name == NULL) {
            return -1;
        }
    }
    return PyModule_AddFunctions(module, functions);
}
