"""The meters: the native ledger, tracemalloc, and the resident memory."""
