/* Layouts and constants that the Python implementation of the ledger repeats.

   The C code and the Python code fill the same records: an owner may be opened by one and closed by the other. Each
   group below names the Python definition that it has to be kept in step with; the tests of `tests/ledger` run both. */

#ifndef MEMTOOLS_LAYOUT_H
#define MEMTOOLS_LAYOUT_H

/* The usage of a closed owner, a tuple. Keep in step with the fields of `Usage` (`memtools/ledger/_usage.py`). */
enum usage_field {
    USAGE_NAME,
    USAGE_RETAINED_BYTES,
    USAGE_PEAK_BYTES,
    USAGE_ALLOCATED_BYTES,
    USAGE_FREED_BYTES,
    USAGE_RESIDENT_DELTA_BYTES,
    USAGE_DURATION_S,
    USAGE_STEPS,
    USAGE_METER,
    USAGE_EXACT,
    USAGE_NOTE,
    USAGE_FIELDS
};

/* What a counter returns to Python, a tuple. Keep in step with the callers of `Tally.figures`
   (`memtools/ledger/_native_meter.py`). */
enum counter_figure { COUNTER_LIVE_BYTES, COUNTER_PEAK_BYTES, COUNTER_ALLOCATED_BYTES, COUNTER_FIGURES };

/* What a counter returns about refused blocks, a tuple. Keep in step with the callers of `Tally.refused`. */
enum refusal_figure { REFUSAL_BLOCKS, REFUSAL_HIGHEST_BYTES, REFUSAL_FIGURES };

/* A child among the largest of its parent, a tuple, and how many of them a parent remembers. Keep in step with
   `memtools/ledger/_book.py`. */
enum largest_child_field { CHILD_NAME, CHILD_PEAK_BYTES, CHILD_FIELDS };
#define MAX_LARGEST_CHILDREN 3

/* An account is checkpointed whenever it has closed a power of two of owners, from this one on. Keep in step with
   `FIRST_MARK` (`memtools/ledger/_accounts.py`). */
#define FIRST_CHECKPOINT 16

/* How old a reading of the resident memory may be. Keep in step with `memtools/ledger/_resident.py`. */
#define RESIDENT_MAX_AGE_S 0.001

#endif
