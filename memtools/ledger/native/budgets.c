/* Requests to stop an owner, and how they get to the thread that crossed; see budgets.h. */

#include "budgets.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <time.h>

#include "hooks.h"
#include "tallies.h"

#define MAX_REQUESTS 64
#define LEAST_GRACE ((int64_t)1 << 20)
#define ATTEMPTS 2000
#define BETWEEN_ATTEMPTS_NS 500000

enum answer { LET_BE, ASK_LATER, RAISE };

struct request {
    int is_taken;
    uint32_t number;
    uint32_t serial;
    int64_t used;
    unsigned long thread;
};

static struct request requests[MAX_REQUESTS];
static unsigned long main_thread;

void budgets_set_main_thread(unsigned long thread)
{
    main_thread = thread;
    /* After a fork the threads that would have answered are no more. */
    memset(requests, 0, sizeof requests);
}

int64_t budgets_grace(int64_t ceiling)
{
    return ceiling / 10 > LEAST_GRACE ? ceiling / 10 : LEAST_GRACE;
}

static void give_back(struct request *request)
{
    if (tallies[request->number].serial == request->serial) {
        tallies_answered(request->number);
    }
    request->is_taken = 0;
}

/* Ask the stopper; `*found` is a new reference to what is to be raised. GIL, between two bytecodes. */
static enum answer ask(const struct request *request, PyObject **found)
{
    const struct tally *tally = &tallies[request->number];
    if (!tally->is_open || tally->serial != request->serial || tally->stopper == NULL) {
        return LET_BE;
    }
    uint32_t charged = here.tally;
    here.tally = NOBODY; /* what it takes to stop an owner is not the owner's */
    PyObject *stopper = Py_NewRef((PyObject *)tally->stopper);
    PyObject *result = PyObject_CallFunction(stopper, "Lk", (long long)request->used, request->thread);
    if (result == NULL) {
        PyErr_WriteUnraisable(stopper);
    }
    Py_DECREF(stopper);
    here.tally = charged;

    if (result == NULL || result == Py_None) {
        Py_XDECREF(result);
        return LET_BE;
    }
    if (result == Py_NotImplemented) {
        Py_DECREF(result);
        return ASK_LATER;
    }
    *found = result;
    return RAISE;
}

static int stop_here(void *taken)
{
    struct request *request = taken;
    PyObject *found = NULL;
    enum answer answer = ask(request, &found);
    if (answer == ASK_LATER && Py_AddPendingCall(stop_here, request) == 0) {
        return 0;
    }
    give_back(request);
    if (answer != RAISE) {
        return 0;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(found), found);
    Py_DECREF(found);
    return -1;
}

static void *stop_there(void *taken)
{
    struct request *request = taken;
    enum answer answer = ASK_LATER;
    for (int attempt = 0; attempt < ATTEMPTS && answer == ASK_LATER; attempt++) {
        if (attempt > 0) {
            nanosleep(&(struct timespec){.tv_nsec = BETWEEN_ATTEMPTS_NS}, NULL);
        }
        PyGILState_STATE state = PyGILState_Ensure();
        PyObject *found = NULL;
        answer = ask(request, &found);
        if (answer == RAISE) {
            (void)PyThreadState_SetAsyncExc(request->thread, found);
            Py_DECREF(found);
        }
        if (answer != ASK_LATER || attempt == ATTEMPTS - 1) {
            give_back(request);
        }
        PyGILState_Release(state);
    }
    return NULL;
}

static struct request *take(void)
{
    for (int n = 0; n < MAX_REQUESTS; n++) {
        if (!requests[n].is_taken) {
            requests[n].is_taken = 1;
            return &requests[n];
        }
    }
    return NULL;
}

void budgets_cross(uint32_t number, int64_t used)
{
    struct request *request = take();
    if (request == NULL) {
        return; /* many at once: this one is judged at its end */
    }
    request->number = number;
    request->serial = tallies[number].serial;
    request->used = used;
    request->thread = PyThread_get_thread_ident();
    if (request->thread == main_thread && Py_AddPendingCall(stop_here, request) == 0) {
        return;
    }

    pthread_attr_t detached;
    pthread_t thread;
    int failed = pthread_attr_init(&detached);
    if (!failed) {
        failed = pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) ||
                 pthread_create(&thread, &detached, stop_there, request);
        (void)pthread_attr_destroy(&detached);
    }
    if (failed) {
        request->is_taken = 0; /* judged at its end */
    }
}
