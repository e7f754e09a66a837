"""Fork while threads without the GIL free blocks."""

import ctypes
import os
import sys
import threading
import warnings

warnings.simplefilter("ignore", DeprecationWarning)
from memtools.ledger import _native, choose_meter  # noqa: E402  # after the filter

bare = ctypes.CDLL(None)
bare.PyMem_RawMalloc.restype = ctypes.c_void_p
bare.PyMem_RawFree.argtypes = [ctypes.c_void_p]
bare.PyMem_RawFree.restype = None
sys.setswitchinterval(1e-6)
choose_meter("native").acquire()
counter = _native.Counter()
enough = False


def churn():
    _native.switch(counter)
    while not enough:
        bare.PyMem_RawFree(bare.PyMem_RawMalloc(100))
    _native.switch(None)


threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(150):
    child = os.fork()
    if not child:
        code = 1
        try:
            before = counter.read()[0]
            _native.switch(counter)
            block = bare.PyMem_RawMalloc(5000)
            _native.switch(None)
            during = counter.read()[0]
            bare.PyMem_RawFree(block)
            code = 0 if during - before >= 5000 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
enough = True
for thread in threads:
    thread.join()
print("all counted")
