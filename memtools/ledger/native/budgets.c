/* Requests to stop an owner, and how they get to the thread that crossed; see budgets.h. */

#include "budgets.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "hooks.h"
#include "tallies.h"

#define MAX_REQUESTS 64
#define LEAST_GRACE ((int64_t)1 << 20)
#define ATTEMPTS 2000
#define BETWEEN_ATTEMPTS_NS 500000
#define BETWEEN_LOOKS_NS 200000
#define MOST_LOOKS 100

enum answer { LET_BE, ASK_LATER, RAISE };

struct request {
    int is_taken;
    uint32_t number;
    uint32_t serial;
    int64_t used;
    int is_refused;
    unsigned long thread;
    _Atomic(int64_t) wants_gil_since; /* who is to stop it; 0 while it does not */
};

static struct request requests[MAX_REQUESTS];
static unsigned long main_thread;
static int64_t interval_ns = 5000000;

void budgets_set_main_thread(unsigned long thread)
{
    main_thread = thread;
    /* After a fork the threads that would have answered are no more. */
    memset(requests, 0, sizeof requests);
}

void budgets_set_interval(double seconds)
{
    interval_ns = (int64_t)(seconds * 1e9);
}

static int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t budgets_grace(int64_t ceiling)
{
    return ceiling / 10 > LEAST_GRACE ? ceiling / 10 : LEAST_GRACE;
}

static void give_back(struct request *request, int is_stopped)
{
    const struct tally *tally = &tallies[request->number];
    if (tally->serial == request->serial) {
        /* Who was refused a block within its budget has been stopped by nobody. */
        tallies_answered(request->number, !request->is_refused || is_stopped);
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
    PyObject *result = PyObject_CallFunction(stopper, "LkO", (long long)request->used, request->thread,
                                             request->is_refused ? Py_True : Py_False);
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
        if (tallies[request->number].serial == request->serial) {
            tallies_put_off(request->number);
        }
        return 0;
    }
    give_back(request, answer == RAISE);
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
        atomic_store(&request->wants_gil_since, now_ns());
        PyGILState_STATE state = PyGILState_Ensure();
        atomic_store(&request->wants_gil_since, 0);
        PyObject *found = NULL;
        answer = ask(request, &found);
        if (answer == RAISE) {
            (void)PyThreadState_SetAsyncExc(request->thread, found);
            Py_DECREF(found);
        }
        if (answer != ASK_LATER || attempt == ATTEMPTS - 1) {
            give_back(request, answer == RAISE);
        }
        else if (tallies[request->number].serial == request->serial) {
            tallies_put_off(request->number);
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

int budgets_cross(uint32_t number, int64_t used, int is_refused)
{
    struct request *request = take();
    if (request == NULL) {
        return 0; /* many at once: this one is judged at its end */
    }
    request->number = number;
    request->serial = tallies[number].serial;
    request->used = used;
    request->is_refused = is_refused;
    atomic_store(&request->wants_gil_since, 0);
    request->thread = PyThread_get_thread_ident();
    if (request->thread == main_thread && Py_AddPendingCall(stop_here, request) == 0) {
        return 0;
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
    return !failed;
}

static int find(uint32_t number)
{
    int n = 0;
    while (n < MAX_REQUESTS && !(requests[n].is_taken && requests[n].number == number)) {
        n++;
    }
    return n;
}

void budgets_replace(uint32_t number, int64_t used)
{
    int n = find(number);
    if (n < MAX_REQUESTS) {
        requests[n].used = used;
        requests[n].is_refused = 1;
    }
}

int budgets_are_for_this_thread(uint32_t number)
{
    int n = find(number);
    return n < MAX_REQUESTS && requests[n].thread == PyThread_get_thread_ident();
}

void budgets_wait(uint32_t number)
{
    int n = find(number);
    int found_errno = errno; /* of whoever allocates */
    for (int look = 0; n < MAX_REQUESTS && look < MOST_LOOKS; look++) {
        int64_t since = atomic_load(&requests[n].wants_gil_since);
        if (since != 0 && now_ns() - since > interval_ns + BETWEEN_LOOKS_NS) {
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = BETWEEN_LOOKS_NS}, NULL);
    }
    errno = found_errno;
}
