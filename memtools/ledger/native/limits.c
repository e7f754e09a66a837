/* What happens at a limit, and how the request to enforce it reaches the thread that crossed it. */

#include "limits.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "counters.h"

#define MAX_REQUESTS 64
#define MIN_GRACE_BYTES ((int64_t)1 << 20)
#define GRACE_SHARE 10 /* of the limit: a tenth */
#define THROTTLES 8
#define ATTEMPTS 2000
#define ATTEMPT_INTERVAL_NS 500000
#define POLL_NS 200000
#define MAX_POLLS 100
#define LINGER_NS 100000000

enum answer { IGNORE, RETRY, RAISE };

struct request {
    int is_taken;
    uint32_t number;
    uint32_t generation;
    int64_t used_bytes;
    int is_refused;
    unsigned long thread;
    int attempts; /* that the enforcer thread has left; 0 for a request that is not for the enforcer thread */
};

static struct request requests[MAX_REQUESTS];
static int64_t refused_blocks;
static int has_enforcer_thread;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the next two; its holder never waits for the GIL */
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static int is_woken;
static _Atomic(int64_t) wants_gil_since; /* the enforcer thread; 0 while it does not */
static unsigned long main_thread;
static int64_t switch_interval_ns = 5000000;

void limits_set_main_thread(unsigned long thread)
{
    main_thread = thread;
}

void limits_after_fork(void)
{
    memset(requests, 0, sizeof requests);
    has_enforcer_thread = is_woken = 0;
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    woken = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
    atomic_store(&wants_gil_since, 0);
}

void limits_set_switch_interval(double seconds)
{
    switch_interval_ns = (int64_t)(seconds * 1e9);
}

int64_t limits_refused_blocks(void)
{
    return refused_blocks;
}

static int64_t limits_now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Keep in step with the docstring of `memtools/ledger/_in_flight.py`, which promises the grace. */
int64_t limits_grace(int64_t limit)
{
    return limit / GRACE_SHARE > MIN_GRACE_BYTES ? limit / GRACE_SHARE : MIN_GRACE_BYTES;
}

/* Requests: a table that the hooks may fill, since that allocates nothing. */

static struct request *limits_take_request(void)
{
    for (int n = 0; n < MAX_REQUESTS; n++) {
        if (!requests[n].is_taken) {
            requests[n] = (struct request){.is_taken = 1};
            return &requests[n];
        }
    }
    return NULL;
}

static struct request *limits_find_request(uint32_t number)
{
    for (int n = 0; n < MAX_REQUESTS; n++) {
        if (requests[n].is_taken && requests[n].number == number) {
            return &requests[n];
        }
    }
    return NULL;
}

/* A block was refused while the request was outstanding. */
static void limits_mark_refused(uint32_t number, int64_t used_bytes)
{
    struct request *request = limits_find_request(number);
    if (request != NULL) {
        request->used_bytes = used_bytes;
        request->is_refused = 1;
    }
}

static int limits_is_for_this_thread(uint32_t number)
{
    const struct request *request = limits_find_request(number);
    return request != NULL && request->thread == PyThread_get_thread_ident();
}

/* The throttle points of a counter: where its thread waits for the enforcer thread. */

static void limits_set_throttle(uint32_t number)
{
    struct counter *counter = &counters[number];
    counters_flush();
    counter->throttle_at = NO_LIMIT;
    if (counter->throttles_left > 0) {
        counter->throttles_left--;
        counter->throttle_at = counter->live + limits_grace(counter->soft_limit) / THROTTLES;
    }
    counters_update_limit_headroom();
}

/* The enforcer wants to be asked again, because the thread is at no point where it may be interrupted. */
static void limits_retry_later(const struct request *request)
{
    if (counters[request->number].generation == request->generation) {
        counters[request->number].emergency_limit = NO_LIMIT;
        limits_set_throttle(request->number);
    }
}

/* Let the thread go on until the enforcer thread has asked for the GIL and a switch interval has passed. Blocks the
   whole process for at most MAX_POLLS times POLL_NS; see limits.h for what a crossing costs. */
static void limits_wait(uint32_t number)
{
    int saved_errno = errno; /* belongs to the caller of the allocator */
    int is_outstanding = limits_find_request(number) != NULL;
    for (int poll = 0; is_outstanding && poll < MAX_POLLS; poll++) {
        int64_t since = atomic_load(&wants_gil_since);
        if (since != 0 && limits_now_ns() - since > switch_interval_ns + POLL_NS) {
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
    errno = saved_errno;
}

/* The answer of the enforcer. */

/* With room to clean up, the enforcer is asked again when the grace is used up. */
static void limits_answered(uint32_t number, int has_room)
{
    struct counter *counter = &counters[number];
    counters_flush();
    counter->is_enforcing = 0;
    counter->throttle_at = counter->emergency_limit = NO_LIMIT;
    if (counter->soft_limit != NO_LIMIT && (has_room || counter->live > counter->soft_limit)) {
        int64_t reached = counter->live > counter->soft_limit ? counter->live : counter->soft_limit;
        counter->soft_limit = reached + limits_grace(counter->soft_limit);
    }
    counters_update_limit_headroom();
}

static void limits_release_request(struct request *request, int has_raised)
{
    if (counters[request->number].generation == request->generation) {
        /* An owner that was refused a block, and in which the enforcer did not raise, is still within its budget. */
        limits_answered(request->number, !request->is_refused || has_raised);
    }
    request->is_taken = 0;
}

/* Call the enforcer; stores a new reference to what is to be raised. GIL, between two bytecodes. */
static enum answer limits_ask_enforcer(const struct request *request, PyObject **exception)
{
    const struct counter *counter = &counters[request->number];
    if (!counter->is_open || counter->generation != request->generation || counter->enforcer == NULL) {
        return IGNORE;
    }
    uint32_t charged = thread_state.counter;
    thread_state.counter = ROOT; /* the enforcer's own allocations are not the owner's */
    PyObject *enforcer = Py_NewRef((PyObject *)counter->enforcer);
    PyObject *result = PyObject_CallFunction(enforcer, "LkO", (long long)request->used_bytes, request->thread,
                                             request->is_refused ? Py_True : Py_False);
    if (result == NULL) {
        PyErr_WriteUnraisable(enforcer);
    }
    Py_DECREF(enforcer);
    thread_state.counter = charged;

    if (result == NULL || result == Py_None) {
        Py_XDECREF(result);
        return IGNORE;
    }
    if (result == Py_NotImplemented) {
        Py_DECREF(result);
        return RETRY;
    }
    *exception = result;
    return RAISE;
}

static int limits_enforce_pending_call(void *argument)
{
    struct request *request = argument;
    if (!request->is_taken) {
        return 0; /* the interpreter keeps pending calls across a fork, the child has dropped the requests */
    }
    PyObject *exception = NULL;
    enum answer answer = limits_ask_enforcer(request, &exception);
    if (answer == RETRY && Py_AddPendingCall(limits_enforce_pending_call, request) == 0) {
        limits_retry_later(request);
        return 0;
    }
    limits_release_request(request, answer == RAISE);
    if (answer != RAISE) {
        return 0;
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    return -1;
}

/* Set an exception for the thread of a request; return whether that has to be tried again. GIL, in the enforcer
   thread. */
static int limits_enforce_in_thread(struct request *request)
{
    PyObject *exception = NULL;
    enum answer answer = limits_ask_enforcer(request, &exception);
    if (answer == RAISE) {
        (void)PyThreadState_SetAsyncExc(request->thread, exception);
        Py_DECREF(exception);
    }
    if (answer != RETRY || --request->attempts == 0) {
        request->attempts = 0;
        limits_release_request(request, answer == RAISE);
        return 0;
    }
    limits_retry_later(request);
    return 1;
}

/* The enforcer thread. */

/* Without the GIL. Returns after LINGER_NS if no owner has a limit any more. */
static void limits_wait_for_wake(void)
{
    struct timespec until;
    int has_lingered = 0;
    (void)pthread_mutex_lock(&mutex);
    while (!is_woken && !has_lingered) {
        (void)clock_gettime(CLOCK_REALTIME, &until);
        int64_t ns = until.tv_nsec + LINGER_NS;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        has_lingered = pthread_cond_timedwait(&woken, &mutex, &until) != 0 && !counters_have_limits();
    }
    is_woken = 0;
    (void)pthread_mutex_unlock(&mutex);
}

static void limits_wake_enforcer(void)
{
    (void)pthread_mutex_lock(&mutex);
    is_woken = 1;
    (void)pthread_cond_signal(&woken);
    (void)pthread_mutex_unlock(&mutex);
}

static PyObject *limits_enforcer_thread_main(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(none))
{
    int is_outstanding = 0, was_idle = 0;
    while (is_outstanding || !was_idle || counters_have_limits()) {
        Py_BEGIN_ALLOW_THREADS
        if (is_outstanding) {
            nanosleep(&(struct timespec){.tv_nsec = ATTEMPT_INTERVAL_NS}, NULL);
        }
        else {
            limits_wait_for_wake();
        }
        atomic_store(&wants_gil_since, limits_now_ns());
        Py_END_ALLOW_THREADS
        atomic_store(&wants_gil_since, 0);
        is_outstanding = 0;
        was_idle = 1;
        for (int n = 0; n < MAX_REQUESTS; n++) {
            if (requests[n].attempts > 0) {
                was_idle = 0;
                is_outstanding = limits_enforce_in_thread(&requests[n]) || is_outstanding;
            }
        }
    }
    has_enforcer_thread = 0;
    Py_RETURN_NONE;
}

static PyMethodDef enforcer_thread_method = {"enforce_budgets", limits_enforcer_thread_main, METH_NOARGS, NULL};

void limits_start_enforcer_thread(void)
{
    if (has_enforcer_thread || PyThread_get_thread_ident() == main_thread) {
        return;
    }
    uint32_t charged = thread_state.counter;
    thread_state.counter = ROOT; /* the owner that is the first to need the thread does not pay for it */
    has_enforcer_thread = 1;
    PyObject *module = PyImport_ImportModule("_thread");
    PyObject *function = module == NULL ? NULL : PyCFunction_New(&enforcer_thread_method, NULL);
    PyObject *started =
        function == NULL ? NULL : PyObject_CallMethod(module, "start_new_thread", "O()", function);
    if (started == NULL) {
        PyErr_Clear(); /* the interpreter starts no more threads, for example while it shuts down */
        has_enforcer_thread = 0;
    }
    Py_XDECREF(started);
    Py_XDECREF(function);
    Py_XDECREF(module);
    thread_state.counter = charged;
}

/* Called by the hooks. */

/* Return whether the request goes to the enforcer thread. A request that finds no room, or no such thread, is
   dropped: the budget is checked when the owner closes. Allocates nothing and never waits for the GIL. */
static int limits_request_enforcement(uint32_t number, int64_t used_bytes, int is_refused)
{
    struct request *request = limits_take_request();
    if (request == NULL) {
        return 0;
    }
    request->number = number;
    request->generation = counters[number].generation;
    request->used_bytes = used_bytes;
    request->is_refused = is_refused;
    request->thread = PyThread_get_thread_ident();
    if (request->thread == main_thread && Py_AddPendingCall(limits_enforce_pending_call, request) == 0) {
        return 0;
    }
    if (!has_enforcer_thread) {
        request->is_taken = 0;
        return 0;
    }
    request->attempts = ATTEMPTS;
    limits_wake_enforcer();
    return 1;
}

static void limits_start_enforcing(uint32_t number, int64_t reached, int is_refused)
{
    struct counter *counter = &counters[number];
    counter->is_enforcing = 1;
    counter->throttles_left = THROTTLES;
    /* A request to the enforcer thread takes time, in which the thread goes on allocating. */
    int is_for_enforcer_thread = limits_request_enforcement(number, reached, is_refused);
    int64_t grace = limits_grace(counter->soft_limit);
    counter->throttle_at = is_for_enforcer_thread ? reached + grace / 2 : NO_LIMIT;
    counter->emergency_limit = is_refused ? NO_LIMIT : reached + grace;
}

/* Called when the segment has used up its headroom. */
static uint32_t limits_cross(void)
{
    uint32_t exceeded = ROOT;
    for (uint32_t number = segment.counter; number != ROOT; number = counters[number].parent) {
        struct counter *counter = &counters[number];
        int64_t reached = counter->live + segment.net;
        if (counter->is_enforcing) {
            if (reached > counter->throttle_at) {
                limits_wait(number);
                limits_set_throttle(number);
            }
            if (reached > counter->emergency_limit && exceeded == ROOT && limits_is_for_this_thread(number)) {
                exceeded = number;
            }
        }
        else if (counter->soft_limit != NO_LIMIT && reached > counter->soft_limit) {
            limits_start_enforcing(number, reached, 0);
            break; /* the innermost owner comes first */
        }
    }
    counters_update_limit_headroom();
    return exceeded;
}

void limits_start(void)
{
    counters_on_limit_crossed = limits_cross;
}

static void limits_count_refusal(struct counter *counter, int64_t reached)
{
    refused_blocks++;
    counter->refused_blocks++;
    counter->highest_refused = reached > counter->highest_refused ? reached : counter->highest_refused;
}

void limits_undo_charge(uint32_t number, size_t size)
{
    struct counter *counter = &counters[number];
    counters_flush();
    limits_count_refusal(counter, counter->live + (int64_t)size);
    limits_mark_refused(number, counter->live + (int64_t)size);
    /* A part of the grace stays usable, else no code of the owner could run at all. */
    counter->emergency_limit = counter->live + limits_grace(counter->soft_limit) / THROTTLES;
    counters_update_limit_headroom();
}

int limits_refuse(uint32_t number, size_t growth)
{
    if (LIKELY(!counters_have_limits())) {
        return 0;
    }
    if (number != segment.counter) {
        counters_switch(number);
    }
    counters_flush();
    for (; number != ROOT; number = counters[number].parent) {
        struct counter *counter = &counters[number];
        int64_t reached = counter->live + (int64_t)growth;
        if (reached <= counter->hard_limit) {
            continue;
        }
        limits_count_refusal(counter, reached);
        if (counter->is_enforcing) {
            limits_mark_refused(number, reached);
        }
        else {
            limits_start_enforcing(number, reached, 1);
            counters_update_limit_headroom();
        }
        return 1;
    }
    return 0;
}
