"""A test that reads current and peak bytes of its profiler."""


def test_profiled(memory_profiler):
    rows = bytes(2_000_000)
    assert 2_000_000 < memory_profiler.current_bytes < 2_200_000
    del rows
    assert memory_profiler.current_bytes < 200_000
    assert memory_profiler.peak_bytes > 2_000_000
    assert memory_profiler.usage.meter in ("native", "tracemalloc")
