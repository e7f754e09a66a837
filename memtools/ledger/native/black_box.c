/* Mapping of the black box, and what happens where its file is cut or the process is forked. */

#include "black_box.h"

#include <errno.h>
#include <string.h>

#include "platform.h"

static _Alignas(64) struct black_box_hot unread; /* written while there is no file; in a cache line of its own */

struct black_box_hot *black_box_hot = &unread;
struct black_box_counter *black_box_counters;
struct black_box_thread *black_box_threads;

static size_t mapped_size;    /* of the file; 0 while there is none */
static uint32_t used_records; /* of the file, which is not asked itself */

void black_box_write_counter(uint32_t number, const struct black_box_counter *record)
{
    struct black_box_counter *at = &black_box_counters[number];
    BLACK_BOX_STORE(at->state, 0);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* a release store does not keep later stores from moving before it */
    at->own = record->own;
    at->peak = record->peak;
    at->parent = record->parent;
    at->account = record->account;
    at->generation = record->generation;
    if (number >= used_records) {
        used_records = number + 1;
        BLACK_BOX_STORE(black_box_hot->used, used_records);
    }
    BLACK_BOX_STORE(at->state, record->state);
}

void black_box_stopped(void)
{
    BLACK_BOX_STORE(black_box_hot->has_stopped, 1);
}

void black_box_lost_blocks(uint64_t count)
{
    BLACK_BOX_STORE(black_box_hot->lost_blocks, count);
}

void black_box_filled(void)
{
    BLACK_BOX_STORE(black_box_hot->is_counting, 1);
    black_box_set_unsure(0);
}

#ifndef PLATFORM_MAPS_FILES

int black_box_open(int fd, const struct black_box_places *places)
{
    (void)fd;
    (void)places;
    (void)mapped_size;
    return ENOSYS;
}

void black_box_close(void)
{
}

int black_box_check(void)
{
    return 0;
}

int black_box_write(size_t at, const void *bytes, size_t size)
{
    (void)at;
    (void)bytes;
    (void)size;
    return -1;
}

#else

#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MAP_POPULATE
#define MAP_POPULATE 0
#endif

static char *range; /* the addresses of the file; mapped for good, to memory while there is no file */
static size_t range_size;
static int file = -1;
static volatile sig_atomic_t is_lost;

/* A program may replace the handler by one that calls it in turn, as `faulthandler.enable` does; `black_box_check` puts
   it in front again. So a fault that is not the file's may come here twice, from two sides of a circle: it is passed to
   the handler found last, then to the one found first, then to the system's. */
static struct sigaction found_first, found_last;
static int has_handler;
static volatile sig_atomic_t passed_faults;

static int black_box_is_cut(void)
{
    struct stat status;
    return file >= 0 && fstat(file, &status) == 0 && (size_t)status.st_size < mapped_size;
}

/* Returns whether the fault is the file's. A handler that was called first has passed it on by `raise`, which leaves no
   address. */
static int black_box_owns_fault(const siginfo_t *fault)
{
    if (fault->si_code <= 0) {
        return mapped_size != 0 && !is_lost && fault->si_pid == getpid() && black_box_is_cut();
    }
    const char *at = fault->si_addr;
    return range != NULL && at >= range && at < range + range_size;
}

/* Put memory in the place of the file, and the store is done again. Where another thread was faster, that is all there
   is to do, too. Returns whether there is memory. */
static int black_box_lose_file(void)
{
    const int flags = PLATFORM_MAP_FLAGS | MAP_FIXED;
    if (mapped_size != 0 && !is_lost &&
        mmap(range, range_size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
        return 0;
    }
    is_lost = 1;
    return 1;
}

static void black_box_pass_fault(int number, const siginfo_t *fault)
{
    static const struct sigaction system_default = {.sa_handler = SIG_DFL};
    sig_atomic_t passed = passed_faults;
    passed_faults = passed + 1;
    const struct sigaction *next = passed == 0 ? &found_last : passed == 1 ? &found_first : &system_default;
    (void)sigaction(number, next, NULL);
    if (fault->si_code <= 0) {
        (void)raise(number); /* it was sent, so it does not come again by itself, as a fault does */
    }
}

static void black_box_on_fault(int number, siginfo_t *fault, void *context)
{
    (void)context;
    int error = errno;
    if (!black_box_owns_fault(fault) || !black_box_lose_file()) {
        black_box_pass_fault(number, fault);
    }
    errno = error;
}

static int black_box_is_handler(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == black_box_on_fault;
}

static void black_box_install_handler(void)
{
    struct sigaction now;
    if (sigaction(SIGBUS, NULL, &now) < 0 || black_box_is_handler(&now)) {
        return;
    }
    if (!has_handler) {
        found_first = now;
    }
    found_last = now;
    has_handler = 1;
    passed_faults = 0;
    struct sigaction handler = {.sa_sigaction = black_box_on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    (void)sigemptyset(&handler.sa_mask);
    (void)sigaction(SIGBUS, &handler, NULL);
}

/* Only where no other handler was put before it, which may call it. */
static void black_box_remove_handler(void)
{
    struct sigaction now;
    if (has_handler && sigaction(SIGBUS, NULL, &now) == 0 && black_box_is_handler(&now)) {
        (void)sigaction(SIGBUS, &found_last, NULL);
        has_handler = 0;
    }
}

/* Also runs in the child of a fork, before any of Python's code: the file is the parent's. */
static void black_box_release(void)
{
    unread = (struct black_box_hot){0};
    black_box_hot = &unread;
    black_box_counters = NULL;
    black_box_threads = NULL;
    file = -1;
    if (mapped_size != 0) {
        mapped_size = 0;
        platform_clear(range, range_size);
    }
}

/* Reserve the addresses, once; 0, or an error number. */
static int black_box_reserve(size_t size)
{
    if (range != NULL) {
        return size <= range_size ? 0 : EINVAL;
    }
    char *made = platform_map(size);
    if (made == NULL) {
        return ENOMEM;
    }
    int error = pthread_atfork(NULL, NULL, black_box_release);
    if (error != 0) {
        platform_unmap(made, size);
        return error;
    }
    range = made;
    range_size = size;
    return 0;
}

int black_box_open(int fd, const struct black_box_places *places)
{
    if (mapped_size != 0) {
        return EBUSY;
    }
    int error = black_box_reserve(places->size);
    if (error != 0) {
        return error;
    }
    is_lost = 0;
    if (mmap(range, places->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED) {
        error = errno;
        platform_clear(range, range_size); /* the call may have unmapped what was there */
        return error;
    }
    mapped_size = places->size;
    file = fd;
    black_box_install_handler();
    struct black_box_hot *hot = (struct black_box_hot *)(range + places->hot);
    hot->is_unsure = 1;
    used_records = 0;
    black_box_hot = hot;
    black_box_threads = (struct black_box_thread *)(range + places->threads);
    black_box_counters = (struct black_box_counter *)(range + places->counters);
    return 0;
}

void black_box_close(void)
{
    if (mapped_size != 0) {
        black_box_release();
        black_box_remove_handler();
    }
}

int black_box_check(void)
{
    if (mapped_size != 0) {
        black_box_install_handler();
        passed_faults = 0;
    }
    return mapped_size != 0 && is_lost;
}

int black_box_write(size_t at, const void *bytes, size_t size)
{
    if (mapped_size == 0 || size > mapped_size || at > mapped_size - size) {
        return -1;
    }
    memcpy(range + at, bytes, size);
    return 0;
}

#endif
