/* Attributes and hints of GCC and Clang under short names. */

#ifndef MEMTOOLS_COMPILER_H
#define MEMTOOLS_COMPILER_H

#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* For variables that the sources of this library share: each access is direct, without a load from the offset table. */
#ifdef _WIN32
#define HIDDEN /* a library for Windows exports nothing unasked */
#else
#define HIDDEN __attribute__((visibility("hidden")))
#endif

#define NOINLINE __attribute__((noinline))

/* The fast kind of thread-local variable. glibc reserves a few bytes for such variables of libraries that are loaded
   late; musl and other libraries may refuse to load one. The general kind costs a function call per allocation. */
#ifdef __GLIBC__
#define INITIAL_EXEC __attribute__((tls_model("initial-exec")))
#else
#define INITIAL_EXEC
#endif

#endif
