/* What the ledger asks of the operating system: memory that is zero and occupies no page before it is touched, a clock,
   the end of a thread, and a function that the interpreter exports without declaring it.

   The part for Windows is compiled, and what needs no interpreter is run under Wine, by `.ci/windows`; it has never
   been run inside an interpreter on Windows, and the build leaves the ledger out there.

   Locking: every function may be called by any thread, with or without the GIL. */

#ifndef MEMTOOLS_PLATFORM_H
#define MEMTOOLS_PLATFORM_H

#include <stddef.h>

#ifdef _WIN32

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <string.h>
#include <windows.h>

/* Map zeroed memory; NULL if there is none. All of it counts into the system's commit charge at once, but a page is
   occupied only when it is touched. */
static inline void *platform_map(size_t size)
{
    return VirtualAlloc(NULL, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

static inline void platform_unmap(void *memory, size_t size)
{
    (void)size;
    (void)VirtualFree(memory, 0, MEM_RELEASE);
}

/* Zero mapped memory at its place, which other threads may read meanwhile. Decommitting would let them fault. */
static inline void platform_clear(void *memory, size_t size)
{
    memset(memory, 0, size);
}

static inline void platform_yield(void)
{
    (void)SwitchToThread();
}

/* Seconds of the clock of `time.perf_counter`. */
static inline double platform_now_s(void)
{
    LARGE_INTEGER now, per_second;
    (void)QueryPerformanceCounter(&now);
    (void)QueryPerformanceFrequency(&per_second);
    return (double)now.QuadPart / (double)per_second.QuadPart;
}

/* A value for each thread. Where it is not NULL when the thread ends, `at_end` is called with it, in that thread. */
typedef DWORD platform_key;
#define PLATFORM_AT_END(name, value) static void WINAPI name(void *value)

static inline int platform_make_key(platform_key *key, void(WINAPI *at_end)(void *))
{
    *key = FlsAlloc(at_end);
    return *key == FLS_OUT_OF_INDEXES ? -1 : 0;
}

static inline void *platform_get(platform_key key)
{
    return FlsGetValue(key);
}

static inline int platform_set(platform_key key, void *value)
{
    return FlsSetValue(key, value) ? 0 : -1;
}

/* Return the address of a function of the library that holds a variable; NULL if it exports none of that name. */
static inline void *platform_find_exported(const void *variable, const char *name)
{
    HMODULE library;
    DWORD how = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExA(how, (LPCSTR)variable, &library)) {
        return NULL;
    }
    return (void *)(size_t)GetProcAddress(library, name);
}

#else

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#define PLATFORM_MAPS_FILES /* with the calls of POSIX */

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#define PLATFORM_MAP_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* Map zeroed memory; NULL if there is no address space for it. */
static inline void *platform_map(size_t size)
{
    void *made = mmap(NULL, size, PROT_READ | PROT_WRITE, PLATFORM_MAP_FLAGS, -1, 0);
    if (made == MAP_FAILED) {
        return NULL;
    }
#ifdef MADV_NOHUGEPAGE
    /* With transparent huge pages the first touch would cost 2 MiB instead of 4 KiB. */
    (void)madvise(made, size, MADV_NOHUGEPAGE);
#endif
    return made;
}

static inline void platform_unmap(void *memory, size_t size)
{
    (void)munmap(memory, size);
}

/* Zero mapped memory at its place, which other threads may read meanwhile, and give its pages back. */
static inline void platform_clear(void *memory, size_t size)
{
    (void)mmap(memory, size, PROT_READ | PROT_WRITE, PLATFORM_MAP_FLAGS | MAP_FIXED, -1, 0);
}

static inline void platform_yield(void)
{
    (void)sched_yield();
}

/* Seconds of the clock of `time.perf_counter`. */
static inline double platform_now_s(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* A value for each thread. Where it is not NULL when the thread ends, `at_end` is called with it, in that thread. */
typedef pthread_key_t platform_key;
#define PLATFORM_AT_END(name, value) static void name(void *value)

static inline int platform_make_key(platform_key *key, void (*at_end)(void *))
{
    return pthread_key_create(key, at_end) == 0 ? 0 : -1;
}

static inline void *platform_get(platform_key key)
{
    return pthread_getspecific(key);
}

static inline int platform_set(platform_key key, void *value)
{
    return pthread_setspecific(key, value) == 0 ? 0 : -1;
}

#endif

#endif
