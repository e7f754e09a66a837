"""Functions that allocate and free, compiled once for each owner under a file name of its own."""


def grow(switch, counter, kept, size):
    switch(counter)
    kept.append(bytes(size))
    kept.append(str(size) * (size % 50))
    kept.append((size + 1000,) * (30 + size % 500))
    kept.append({size + 2000, size + 3000, size + 4000})
    switch(None)


def trim(switch, counter, kept, count):
    switch(counter)
    del kept[:count]
    switch(None)
