/* Notice when this is no more the only interpreter of the process: the hooks rely on it.

   Once there is a second one, `PyGILState_Check` says yes to everybody, so that calls of the domain "raw" without the
   GIL are taken for calls with it; and interpreters with a GIL of their own (3.12 and later) make objects at once. That
   does not end when they do. So the ledger does not begin where there is one, or was, and stops for good when one is
   made.

   An audit hook tells of that before it runs. But with any hook the interpreter packs the arguments of each audited call,
   `id(x)` among them, which programs that copy or pickle make by the million. So there is none until the program loads the
   module by which Python code makes interpreters. Those that C code makes are found by looking: when an owner is opened,
   and more closely, so that one is found that is gone by then, when somebody asks for the figures of the process.

   Locking: under the GIL. */

#ifndef MEMTOOLS_INTERPRETERS_H
#define MEMTOOLS_INTERPRETERS_H

/* Begin to watch, where that has not been done; why the ledger cannot be relied upon, empty if it can. Lets go of the GIL
   for a moment, the first time. */
const char *interpreters_watch(void);

/* Be told of each that is made from now on; stop where that cannot be had. */
void interpreters_listen(void);

/* Stop if there is another one now. */
void interpreters_look(void);

/* Stop if there ever was one; lets go of the GIL for a moment. */
void interpreters_look_closely(void);

/* Whether the caller's is the main one. */
int interpreters_is_main(void);

#endif
