"""Tests that leave a thread or a descriptor, and one that leaves nothing."""

import os
import threading

import pytest

release = threading.Event()


@pytest.mark.no_leaked_tasks
def test_leaking_thread():
    threading.Thread(target=release.wait, name="importer", daemon=True).start()


@pytest.mark.no_leaked_tasks
def test_leaking_descriptor():
    os.open(os.devnull, os.O_RDONLY)


@pytest.mark.no_leaked_tasks
def test_fixed():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
