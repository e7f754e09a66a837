"""memtools: put a memory budget on any function, block, task or process, and always know who is eating it."""
