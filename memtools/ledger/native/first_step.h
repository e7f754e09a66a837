/* The first step of what is followed (steps.h): whose it is, and who follows it.

   What is plain (book.h) is done here, all else by methods of the Python class above: `_begin` opens the owner of one that
   follows its coroutine itself, `_join` that of one whose task is followed already.

   Locking: all under the GIL. */

#ifndef MEMTOOLS_FIRST_STEP_H
#define MEMTOOLS_FIRST_STEP_H

#include "seats.h"
#include "steps.h"

/* Have one that joins open its owner under the driver that follows the task, if there is one: it is joined then. -1 with an
   exception. */
int first_step_join(Steps *self);

/* Open the owner of one that follows its coroutine itself. -1 with an exception. */
int first_step_begin(Steps *self, struct slot *slot);

/* Make what these need, once; -1 with an exception. */
int first_step_start(void);

#endif
