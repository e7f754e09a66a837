"""Functions of one owner, compiled once for each owner under a file name of its own.

No lists, dicts, floats or short tuples, not even for the arguments of `bytes(size)`: the interpreter keeps some of them
in free lists and reuses them, which no allocator sees, but tracemalloc does. No `id`: it calls audit hooks, and makes a
tuple for them.
"""

many = (None,) * 600
one = bytearray(b"x")
several = frozenset(range(5000, 5200))


def grow(switch, counter, kept, size):
    switch(counter)
    kept.append(b"x" * size)
    kept.append("x" * (size % 5000))
    kept.append(many[: 30 + size % 500])
    kept.append({size + 2000, size + 3000, size + 4000})
    kept.append(one * size)
    switch(None)


def resize(switch, counter, kept, size):
    switch(counter)
    for thing in reversed(kept):
        if type(thing) is bytearray:
            if size % 2:
                thing.extend(b"x" * size)
            else:
                del thing[size:]
        elif type(thing) is set:
            thing |= several
            break
    thing = None
    switch(None)


def trim(switch, counter, kept, size):
    switch(counter)
    del kept[: size % 9]
    switch(None)


def scatter(switch, counter, kept, size):
    switch(counter)
    kept.sort(key=len)
    for number in range(size % 40):
        kept.append(b"y" * (2 + number * 20))
    number = None
    switch(None)
