/* Find numbers for new tallies when all are taken: tallies that nobody holds any more, and that live on only because of
   some blocks, are merged.

   A block may pass to a tally of the same account that counts for the same ones above: no figure changes that anybody
   can still ask for. So of all that have ended, one is left for each account below each tally that is held. The blocks
   are found by reading the whole shadow, which takes some milliseconds for each GiB of heap; it is done only when there
   are many to be merged.

   Locking: under the GIL, which is kept all the while; other threads may make and free raw blocks without it. */

#ifndef MEMTOOLS_SWEEP_H
#define MEMTOOLS_SWEEP_H

/* Merge, where it is worth it. */
void sweep_tallies(void);

#endif
