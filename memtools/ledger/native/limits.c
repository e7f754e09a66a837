/* The ceilings and walls of tallies: how far it is to the nearest, and what happens there; see tallies.h. */

#include "limits.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "counters.h"
#include "hooks.h"

#define BRAKES 8

static _Atomic(uint32_t) limited_count; /* open tallies with a ceiling */
static int64_t refused;

int tallies_are_limited(void)
{
    return atomic_load_explicit(&limited_count, memory_order_relaxed) > 0;
}

int64_t tallies_room(void)
{
    int64_t room = NO_CEILING;
    if (LIKELY(!tallies_are_limited())) {
        return room;
    }
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        const struct tally *tally = &tallies[number];
        int64_t next = tally->ceiling;
        if (tally->is_asked) {
            next = tally->brake < tally->last ? tally->brake : tally->last;
        }
        if (next != NO_CEILING && next - tally->live < room) {
            room = next - tally->live;
        }
    }
    return room;
}

static void tell(uint32_t number, int64_t reached, int is_refused)
{
    struct tally *tally = &tallies[number];
    tally->is_asked = 1;
    tally->brakes = BRAKES;
    /* Where somebody else has to come and stop it, it goes on until then. */
    int waits = budgets_cross(number, reached, is_refused);
    int64_t grace = budgets_grace(tally->ceiling);
    tally->brake = waits ? reached + grace / 2 : NO_CEILING;
    tally->last = is_refused ? NO_CEILING : reached + grace;
}

static void set_brake(uint32_t number)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->brake = NO_CEILING;
    if (tally->brakes > 0) {
        tally->brakes--;
        tally->brake = tally->live + budgets_grace(tally->ceiling) / BRAKES;
    }
    running.room = tallies_room();
}

void tallies_put_off(uint32_t number)
{
    tallies[number].last = NO_CEILING;
    set_brake(number);
}

uint32_t tallies_cross(void)
{
    uint32_t too_much = NOBODY;
    for (uint32_t number = running.tally; number != NOBODY; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        int64_t reached = tally->live + running.net;
        if (tally->is_asked) {
            if (reached > tally->brake) {
                budgets_wait(number);
                set_brake(number);
            }
            if (reached > tally->last && too_much == NOBODY && budgets_are_for_this_thread(number)) {
                too_much = number;
            }
        }
        else if (tally->ceiling != NO_CEILING && reached > tally->ceiling) {
            tell(number, reached, 0);
            break; /* the innermost is told first */
        }
    }
    running.room = tallies_room();
    return too_much;
}

static void note_refusal(struct tally *tally, int64_t reached)
{
    refused++;
    tally->refused++;
    tally->wanted = reached > tally->wanted ? reached : tally->wanted;
}

void tallies_take_back(uint32_t number, size_t size)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    note_refusal(tally, tally->live + (int64_t)size);
    budgets_replace(number, tally->live + (int64_t)size);
    tally->last = tally->live + budgets_grace(tally->ceiling) / BRAKES; /* or nothing at all would work any more */
    running.room = tallies_room();
}

int tallies_refuse(uint32_t number, size_t growth)
{
    if (LIKELY(!tallies_are_limited())) {
        return 0;
    }
    if (number != running.tally) {
        tallies_turn_over(number);
    }
    tallies_settle();
    for (; number != NOBODY; number = tallies[number].parent) {
        struct tally *tally = &tallies[number];
        int64_t reached = tally->live + (int64_t)growth;
        if (reached <= tally->wall) {
            continue;
        }
        note_refusal(tally, reached);
        if (tally->is_asked) {
            budgets_replace(number, reached);
        }
        else {
            tell(number, reached, 1);
            running.room = tallies_room();
        }
        return 1;
    }
    return 0;
}

int64_t tallies_refused(void)
{
    return refused;
}

void tallies_answered(uint32_t number, int has_room)
{
    struct tally *tally = &tallies[number];
    tallies_settle();
    tally->is_asked = 0;
    tally->brake = tally->last = NO_CEILING;
    if (tally->ceiling != NO_CEILING && (has_room || tally->live > tally->ceiling)) {
        int64_t reached = tally->live > tally->ceiling ? tally->live : tally->ceiling;
        tally->ceiling = reached + budgets_grace(tally->ceiling);
    }
    running.room = tallies_room();
}

void tallies_limit(uint32_t number, int64_t ceiling, int64_t wall, void *stopper)
{
    struct tally *tally = &tallies[number];
    (void)atomic_fetch_add(&limited_count, (uint32_t)(ceiling != NO_CEILING) - (uint32_t)(tally->ceiling != NO_CEILING));
    tally->ceiling = ceiling;
    tally->wall = wall;
    tally->brake = tally->last = NO_CEILING;
    tally->stopper = stopper;
    tallies_settle();
}

/* Requests to stop an owner, and how they get to the thread that crossed; see budgets.h. */

#define MAX_REQUESTS 64
#define LEAST_GRACE ((int64_t)1 << 20)
#define ATTEMPTS 2000
#define BETWEEN_ATTEMPTS_NS 500000
#define BETWEEN_LOOKS_NS 200000
#define MOST_LOOKS 100
#define LINGERS_NS 100000000

enum answer { LET_BE, ASK_LATER, RAISE };

struct request {
    int is_taken;
    uint32_t number;
    uint32_t serial;
    int64_t used;
    int is_refused;
    unsigned long thread;
    int attempts; /* of the helper's that are left; 0 for what is not its business */
};

static struct request requests[MAX_REQUESTS];
static int has_helper;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the next two; nobody waits who holds it */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int is_called;
static _Atomic(int64_t) wants_gil_since; /* the helper; 0 while it does not */
static unsigned long main_thread;
static int64_t interval_ns = 5000000;

void budgets_set_main_thread(unsigned long thread)
{
    main_thread = thread;
}

void budgets_after_fork(void)
{
    memset(requests, 0, sizeof requests);
    has_helper = is_called = 0;
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    changed = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    atomic_store(&wants_gil_since, 0);
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

/* Leave an exception for another thread; whether that has to be tried again. GIL, in the helper. */
static int stop_there(struct request *request)
{
    PyObject *found = NULL;
    enum answer answer = ask(request, &found);
    if (answer == RAISE) {
        (void)PyThreadState_SetAsyncExc(request->thread, found);
        Py_DECREF(found);
    }
    if (answer != ASK_LATER || --request->attempts == 0) {
        request->attempts = 0;
        give_back(request, answer == RAISE);
        return 0;
    }
    if (tallies[request->number].serial == request->serial) {
        tallies_put_off(request->number);
    }
    return 1;
}

/* Wait until somebody calls, or for a while if nobody can. Without the GIL. */
static void wait_for_call(void)
{
    struct timespec until;
    int has_lingered = 0;
    (void)pthread_mutex_lock(&mutex);
    while (!is_called && !has_lingered) {
        (void)clock_gettime(CLOCK_REALTIME, &until);
        int64_t ns = until.tv_nsec + LINGERS_NS;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        has_lingered = pthread_cond_timedwait(&changed, &mutex, &until) != 0 && !tallies_are_limited();
    }
    is_called = 0;
    (void)pthread_mutex_unlock(&mutex);
}

static void call_helper(void)
{
    (void)pthread_mutex_lock(&mutex);
    is_called = 1;
    (void)pthread_cond_signal(&changed);
    (void)pthread_mutex_unlock(&mutex);
}

static PyObject *help(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    int is_outstanding = 0, was_idle = 0;
    while (is_outstanding || !was_idle || tallies_are_limited()) {
        Py_BEGIN_ALLOW_THREADS
        if (is_outstanding) {
            nanosleep(&(struct timespec){.tv_nsec = BETWEEN_ATTEMPTS_NS}, NULL);
        }
        else {
            wait_for_call();
        }
        atomic_store(&wants_gil_since, now_ns());
        Py_END_ALLOW_THREADS
        atomic_store(&wants_gil_since, 0);
        is_outstanding = 0;
        was_idle = 1;
        for (int n = 0; n < MAX_REQUESTS; n++) {
            if (requests[n].attempts > 0) {
                was_idle = 0;
                is_outstanding = stop_there(&requests[n]) || is_outstanding;
            }
        }
    }
    has_helper = 0;
    Py_RETURN_NONE;
}

static PyMethodDef help_method = {"stop_those_over_their_budget", help, METH_NOARGS, NULL};

void budgets_get_ready(void)
{
    if (has_helper || PyThread_get_thread_ident() == main_thread) {
        return;
    }
    uint32_t charged = here.tally;
    here.tally = NOBODY; /* a thread is not the owner's that is the first to need it */
    has_helper = 1;
    PyObject *module = PyImport_ImportModule("_thread");
    PyObject *function = module == NULL ? NULL : PyCFunction_New(&help_method, NULL);
    PyObject *started =
        function == NULL ? NULL : PyObject_CallMethod(module, "start_new_thread", "O()", function);
    if (started == NULL) {
        PyErr_Clear(); /* no more threads may be made, as at the end of the interpreter */
        has_helper = 0;
    }
    Py_XDECREF(started);
    Py_XDECREF(function);
    Py_XDECREF(module);
    here.tally = charged;
}

static struct request *take(void)
{
    for (int n = 0; n < MAX_REQUESTS; n++) {
        if (!requests[n].is_taken) {
            requests[n] = (struct request){.is_taken = 1};
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
    request->thread = PyThread_get_thread_ident();
    if (request->thread == main_thread && Py_AddPendingCall(stop_here, request) == 0) {
        return 0;
    }
    if (!has_helper) {
        request->is_taken = 0; /* judged at its end */
        return 0;
    }
    request->attempts = ATTEMPTS;
    call_helper();
    return 1;
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
        int64_t since = atomic_load(&wants_gil_since);
        if (since != 0 && now_ns() - since > interval_ns + BETWEEN_LOOKS_NS) {
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = BETWEEN_LOOKS_NS}, NULL);
    }
    errno = found_errno;
}
