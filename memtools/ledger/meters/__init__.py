"""The three ways of counting: the native ledger, tracemalloc, and the resident memory."""
