/* Limits of counters: the enforcement of budgets while the code runs.

   An allocation that crosses a limit cannot raise, because it may happen in the middle of any C code; and no block is
   refused for it, because C code that never sees a failed allocation in ordinary life does not survive one. The
   allocation only asks for attention, and the enforcer, Python code, looks at the thread between two bytecodes:

   - From 3.12 on, by a pending call that any thread may run. It is run by the thread that holds the GIL, almost always
     the one that allocated. It raises nothing: the enforcer has `sys.monitoring` report the instructions of the code
     that the thread runs.
   - On 3.11, by a trace function, which the hook stores in the thread state: the interpreter calls it before each
     instruction. A trace function that is there already goes on receiving its events.

   Before each instruction the enforcer then decides whether that is a place where an exception may be raised. An
   exception that is raised there is handled by the handler of that very instruction. The interpreter does not promise
   that for exceptions from a pending call, from `PyThreadState_SetAsyncExc` or from the events of a jump, which may
   come at the jump and pass the handlers of its target by.

   No thread is started, and none waits.

   This file has the name of a header of the C library, so its folder must not be on the include path (`-I`).

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_LIMITS_H
#define MEMTOOLS_LIMITS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

/* No smaller block is refused by a hard limit: small blocks are also the interpreter's own, and not all of its code
   survives a refusal. */
#define MIN_REFUSED_SIZE ((size_t)1 << 20)

/* Have `counters` call this file when a limit is crossed. GIL, once, before any limit is set. */
void limits_start(void);

/* Add the functions of this file to the module. GIL. */
int limits_register(PyObject *module);

/* Drop, in the child of a fork, all requests: their threads exist no more. GIL. */
void limits_after_fork(void);

/* Have the garbage collector tell while it runs, as long as there is any limit. Keeps the raised exception. GIL,
   outside of hooks: calls Python. */
void limits_watch_collector(void);

/* Return the bytes that an owner may use above its limit to clean up. GIL. */
int64_t limits_grace(int64_t limit);

/* Have the enforcer asked next when the counter has grown by so many bytes, or never again if they are negative.
   GIL. */
void limits_ask_again(uint32_t number, int64_t after_bytes);

/* Return whether growth by one large block, a quarter of the limit at least, would exceed a hard limit of a counter or
   of an ancestor. Counts the refusal and asks for attention. GIL, inside a hook: no allocation, no Python call. */
int limits_refuse(uint32_t number, size_t growth);

/* Return how many blocks of all owners were refused. GIL. */
int64_t limits_refused_blocks(void);

#endif
