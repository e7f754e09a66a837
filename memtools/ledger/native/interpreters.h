/* Detection of sub-interpreters, which the hooks cannot work with.

   Once a second interpreter exists, `PyGILState_Check` returns true in every thread, so that calls of the domain "raw"
   without the GIL look like calls with it; and interpreters with a GIL of their own (Python 3.12 and later) allocate
   objects in parallel. That does not end with the second interpreter. So the ledger does not begin where there is or
   was one, and stops for good when one is created.

   An audit hook reports the creation in advance. But with any audit hook the interpreter packs the arguments of each
   audited call, including `id(x)`, which programs that copy or pickle call by the million. So there is no audit hook
   until the program imports the module by which Python code creates interpreters. Interpreters that C code creates are
   found by a check when an owner is opened, read or closed, and by a closer check, which also finds one that is gone by
   then, when the figures of the process are read.

   Locking: every function is called under the GIL. */

#ifndef MEMTOOLS_INTERPRETERS_H
#define MEMTOOLS_INTERPRETERS_H

/* Say what is to be called, with the reason, when the ledger can no longer work; it may be called more than once,
   and under the GIL of another interpreter. GIL, once. */
void interpreters_start(void (*on_second_interpreter)(const char *why));

/* Begin to watch; return why the ledger cannot work in this process, empty if it can. GIL, which is released for a
   moment by the first call. */
const char *interpreters_watch(void);

/* Install the audit hook; calls back if another audit hook forbids that. GIL. */
void interpreters_listen(void);

/* Call back if there is a second interpreter now. GIL. */
void interpreters_check(void);

/* Call back if there ever was a second interpreter. GIL, which is released for a moment. */
void interpreters_check_history(void);

/* Return whether the calling thread runs the main interpreter. GIL. */
int interpreters_is_main(void);

#endif
