/* Notice when this is no more the only interpreter of the process: the hooks rely on it.

   Once there is a second one, `PyGILState_Check` says yes to everybody, so that calls of the domain "raw" without the
   GIL are taken for calls with it; and interpreters with a GIL of their own (3.12 and later) make objects at once. That
   does not end when they do. So the ledger does not begin where there is one, or was, and stops for good when one is
   made, which an audit hook tells before it runs.

   Locking: under the GIL. */

#ifndef MEMTOOLS_INTERPRETERS_H
#define MEMTOOLS_INTERPRETERS_H

/* Begin to watch, where that has not been done; why the ledger cannot be relied upon, empty if it can. Lets go of the GIL
   for a moment, the first time. */
const char *interpreters_watch(void);

/* Whether the caller's is the main one. */
int interpreters_is_main(void);

#endif
