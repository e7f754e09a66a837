"""The kind of a leak, from synthetic sequences of counters."""

import random
from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtools.analysis import LeakKind
from memtools.analysis._leak_kind import judge_leak
from memtools.readings._counters import Counters

MIB = 1 << 20
Curve = Callable[[float], float]  # of the time, 0 to 1


def flat(_: float) -> float:
    return 0.0


def line(share: float) -> float:
    return share


def sequence(
    *,
    blocks: Curve = flat,
    malloc: Curve | None = flat,
    resident: Curve = flat,
    traced: Curve | None = None,
    number: int = 100,
    seconds: float = 20.0,
    uneven: random.Random | None = None,
) -> list[Counters]:
    """Counters whose figures rise by 20,000 blocks and 20 MiB where a curve is 1."""
    found = []
    for place in range(number):
        share = (place + (uneven.random() if uneven is not None else 0.0)) / (number - 1)
        found.append(
            Counters(
                at=1_000.0 + seconds * share,
                resident_bytes=round((60 + 20 * resident(share)) * MIB),
                blocks=round(90_000 + 20_000 * blocks(share)),
                malloc_bytes=None if malloc is None else round((8 + 20 * malloc(share)) * MIB),
                traced_bytes=None if traced is None else round((5 + 20 * traced(share)) * MIB),
            )
        )
    return found


def sawtooth(teeth: float) -> Curve:
    return lambda share: (share * teeth) % 1.0


def filling(full_at: float) -> Curve:
    return lambda share: min(share / full_at, 1.0)


def burst(at: float, length: float = 0.05) -> Curve:
    return lambda share: 1.0 if at <= share < at + length else 0.0


@pytest.mark.parametrize(("samples", "kind"), [
    (sequence(blocks=line, malloc=line, resident=line), LeakKind.PYTHON),
    (sequence(blocks=line, resident=lambda share: share / 2), LeakKind.PYTHON),
    (sequence(blocks=line), LeakKind.PYTHON),
    (sequence(malloc=line, resident=line), LeakKind.NATIVE),
    (sequence(malloc=None, resident=line), LeakKind.NATIVE),
    (sequence(resident=line), LeakKind.FRAGMENTATION),
    (sequence(malloc=line, resident=line, traced=line), LeakKind.PYTHON),
    (sequence(malloc=line), LeakKind.NONE),
    (sequence(), LeakKind.NONE),
])  # fmt: skip
def test_growing_counter_decides_the_kind(samples: Sequence[Counters], kind: LeakKind) -> None:
    assert judge_leak(samples).kind is kind


@pytest.mark.parametrize("curve", [
    sawtooth(1.5), sawtooth(2.2), sawtooth(3.9), sawtooth(7.3), sawtooth(30.4),
    burst(0.1), burst(0.5), burst(0.94, 0.2), filling(0.2), filling(0.5), filling(0.7),
    lambda share: float(share > 0.6), lambda share: float(share > 0.3) + float(share > 0.8), lambda share: 1 - share,
    lambda share: 1 - 0.5 ** (share * 12),
])  # fmt: skip
def test_memory_given_back_or_settling_is_no_leak(curve: Curve) -> None:
    verdict = judge_leak(sequence(blocks=curve, malloc=curve, resident=curve))

    assert verdict.kind is LeakKind.NONE
    assert verdict.bytes_per_s == 0
    assert verdict.reason


@pytest.mark.parametrize("curve", [
    line, lambda share: share**2, lambda share: share + 0.8 * sawtooth(9)(share),
    lambda share: round(share * 12) / 12, lambda share: share + 2 * burst(0.5, 0.1)(share),
])  # fmt: skip
def test_leak_beside_fluctuation_is_found(curve: Curve) -> None:
    assert judge_leak(sequence(blocks=curve, malloc=curve, resident=curve)).kind is LeakKind.PYTHON


def test_rate_is_of_resident_or_traced_memory() -> None:
    resident = judge_leak(sequence(blocks=line, resident=line))
    traced = judge_leak(sequence(blocks=line, resident=line, traced=lambda share: share / 2))

    assert resident.bytes_per_s == pytest.approx(MIB, rel=0.05)
    assert resident.blocks_per_s == pytest.approx(1_000, rel=0.05)
    assert traced.bytes_per_s == pytest.approx(MIB / 2, rel=0.05)


def test_ending_program_does_not_hide_its_leak() -> None:
    samples = sequence(blocks=line, malloc=line, resident=line)
    ending = [*samples, Counters(1_020.4, 61 * MIB, 90_000, 8 * MIB), Counters(1_020.6, 61 * MIB, 90_000, 8 * MIB)]

    assert judge_leak(ending).kind is LeakKind.NONE
    assert judge_leak(ending, is_ending=True).kind is LeakKind.PYTHON


def test_objects_for_mappings_are_fragmentation() -> None:
    samples = sequence(blocks=lambda share: share / 20, resident=line)

    assert judge_leak(samples).kind is LeakKind.FRAGMENTATION


def test_object_leak_is_python_without_a_malloc_floor() -> None:
    samples = sequence(blocks=line, resident=lambda share: 3 * share)

    assert judge_leak(samples).kind is LeakKind.PYTHON


@pytest.mark.parametrize("number", [0, 1, 2, 20])
def test_few_samples_give_an_unknown_verdict(number: int) -> None:
    samples = sequence(blocks=line, malloc=line, resident=line)[:number]

    verdict = judge_leak(samples, is_ending=True)

    assert verdict.kind is LeakKind.UNKNOWN
    assert "too few" in verdict.reason


def test_small_rise_is_no_leak() -> None:
    a_little = sequence(blocks=lambda share: share / 500, resident=lambda share: share / 40)

    assert judge_leak(a_little).kind is LeakKind.NONE


@given(rate=st.floats(0.4, 3.0), noise=st.floats(0.0, 0.05), seed=st.integers(0, 10_000), number=st.integers(100, 400))
def test_steady_leak_is_always_found(rate: float, noise: float, seed: int, number: int) -> None:
    dice = random.Random(seed)

    def leaking(share: float) -> float:
        return rate * share + noise * dice.random()

    verdict = judge_leak(sequence(blocks=leaking, malloc=leaking, resident=leaking, number=number))

    assert verdict.kind is LeakKind.PYTHON


@given(teeth=st.floats(3.0, 15.0), height=st.floats(0.1, 5.0))
def test_resolved_sawtooth_is_never_a_leak(teeth: float, height: float) -> None:
    def breathing(share: float) -> float:
        return height * sawtooth(teeth)(share)

    samples = sequence(blocks=breathing, malloc=breathing, resident=breathing)

    assert judge_leak(samples).kind is LeakKind.NONE
    assert judge_leak(samples, is_ending=True).kind is LeakKind.NONE


def test_random_fluctuation_is_hardly_ever_a_leak() -> None:
    dice = random.Random(1)

    def verdict() -> bool:
        teeth, height, noise = dice.uniform(2.5, 60), dice.uniform(0.1, 5), dice.uniform(0, 0.3)

        def breathing(share: float) -> float:
            return height * sawtooth(teeth)(share) + noise * dice.random()

        return judge_leak(sequence(blocks=breathing, malloc=breathing, resident=breathing, uneven=dice)).is_leak

    assert sum(verdict() for _ in range(1_000)) <= 3


@given(
    st.lists(
        st.tuples(st.floats(0.0, 9.0), st.integers(0, 2**40), st.integers(0, 10**7), st.integers(0, 2**40)),
        max_size=120,
    ),
    st.booleans(),
)
def test_any_figures_give_a_verdict_with_a_reason(figures: list[tuple[float, int, int, int]], is_ending: bool) -> None:
    times = accumulate(gap for gap, *_ in figures)
    samples = [
        Counters(at, resident, blocks, malloc) for at, (_, resident, blocks, malloc) in zip(times, figures, strict=True)
    ]

    verdict = judge_leak(samples, is_ending=is_ending)

    assert verdict.reason
    assert verdict.bytes_per_s >= 0
    assert verdict.is_leak == (verdict.kind not in (LeakKind.NONE, LeakKind.UNKNOWN))
