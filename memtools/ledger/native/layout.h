/* Layouts and constants that the Python implementation of the ledger repeats.

   The C code and the Python code fill the same records: an owner may be opened by one and closed by the other. Each
   group below names the Python definition that it has to be kept in step with; the tests of `tests/ledger` run both. */

#ifndef MEMTOOLS_LAYOUT_H
#define MEMTOOLS_LAYOUT_H

/* The usage of a closed owner, a `UsageTuple`: `configure` refuses a type whose `_fields` are not these. */
#define EACH_USAGE_FIELD(FIELD)                             \
    FIELD(USAGE_NAME, "name")                               \
    FIELD(USAGE_RETAINED_BYTES, "retained_bytes")           \
    FIELD(USAGE_PEAK_BYTES, "peak_bytes")                   \
    FIELD(USAGE_ALLOCATED_BYTES, "allocated_bytes")         \
    FIELD(USAGE_FREED_BYTES, "freed_bytes")                 \
    FIELD(USAGE_RESIDENT_DELTA_BYTES, "resident_delta_bytes") \
    FIELD(USAGE_DURATION_S, "duration_s")                   \
    FIELD(USAGE_STEPS, "steps")                             \
    FIELD(USAGE_METER, "meter")                             \
    FIELD(USAGE_EXACT, "exact")                             \
    FIELD(USAGE_NOTE, "note")

enum usage_field {
#define FIELD(field, name) field,
    EACH_USAGE_FIELD(FIELD)
#undef FIELD
    USAGE_FIELDS
};

/* What a counter returns to Python, a tuple. Keep in step with the callers of `Counter.read`
   (`memtools/ledger/meters/_native.py`). */
enum counter_figure { COUNTER_LIVE_BYTES, COUNTER_PEAK_BYTES, COUNTER_ALLOCATED_BYTES, COUNTER_FIGURES };

/* What a counter returns about refused blocks, a tuple. Keep in step with the callers of
   `Counter.refusals`. */
enum refusal_figure { REFUSAL_BLOCKS, REFUSAL_HIGHEST_BYTES, REFUSAL_FIGURES };

/* A child among the largest of its parent, a tuple, and how many of them a parent remembers. Keep in step with
   `memtools/ledger/_ledger.py`. */
enum largest_child_field { CHILD_NAME, CHILD_PEAK_BYTES, CHILD_FIELDS };
#define MAX_LARGEST_CHILDREN 3

/* An account is checkpointed whenever it has closed a power of two of owners, from this one on. Keep in step with
   `FIRST_CHECKPOINT` (`memtools/ledger/_owner.py`). */
#define FIRST_CHECKPOINT 16

/* How old a reading of the resident memory may be. Keep in step with `memtools/ledger/meters/_rss.py`. */
#define RESIDENT_MAX_AGE_S 0.001

#endif
