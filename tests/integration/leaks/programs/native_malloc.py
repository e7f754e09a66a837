"""A C library hands out memory, and it is never given back."""

import ctypes

from _shape import play

VERDICT = "native"
OWNER = ""  # no object of Python's knows of it

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def encode(leaks: bool) -> None:
    block = libc.malloc(40_000)
    ctypes.memset(block, 1, 40_000)
    if not leaks:
        libc.free(block)


def step(leaks: bool) -> None:
    encode(leaks)


if __name__ == "__main__":
    play(step)
