/* Check the hooks from the outside: allocate as Python does, and look at what was counted.

   Locking: under the GIL, while the hooks count. */

#ifndef MEMTOOLS_CHECK_H
#define MEMTOOLS_CHECK_H

/* Whether allocations still reach us: another tool may have put back what it found before we came. Does not show in
   anybody's figures. */
int check_hooks_are_in_place(void);

/* Make, resize and free blocks; what was not counted as it should be, empty if all was. */
const char *check_counting(void);

#endif
