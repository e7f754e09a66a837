"""Synthetic traces of memory with frozen seeds: ten healthy families and eight that leak.

A trace is one figure a minute, as a share of the limit. A healthy one lasts a week, a leaking one until it reaches the
limit. Development and held-out seeds are disjoint: parameters were chosen on the former, tables show the latter.

Two more series stand for what is known inside a process. `blocks` is `sys.getallocatedblocks()`: it has the objects of
the program (load, caches, garbage that waits for the collector, what leaks), and has neither fragmentation nor pages
that the allocators keep. `left` is the live bytes that ended calls have left, by the native ledger: caches, garbage and
leaks are in it, and of what varies with the load only the part that sessions hold.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

DAY = 1440  # minutes
HEALTHY_MINUTES = 7 * DAY
MAX_LEAK_MINUTES = 14 * DAY
STEP_S = 60.0

DEVELOPMENT_SEEDS = range(1_000, 1_040)
HELD_OUT_SEEDS = range(9_000, 9_040)
REDUCED_SEEDS = range(5_000, 5_002)  # of the tests


@dataclass
class Trace:
    """What a process used, minute by minute.

    Attributes:
        family: which kind.
        seed: the seed.
        used: shares of the limit.
        blocks: Python's blocks, as shares of the limit.
        left: live bytes of ended calls, as shares of the limit.
        onset: the minute at which the leak begins; None for a healthy one.
    """

    family: str
    seed: int
    used: array  # of doubles
    blocks: array
    left: array
    onset: int | None

    @property
    def is_leak(self) -> bool:
        """Whether it leaks."""
        return self.onset is not None

    @property
    def half_life(self) -> float:
        """The minute in the middle between the onset and the limit."""
        return ((self.onset or 0) + len(self.used)) / 2


@dataclass
class _Parts:
    """What a trace is made of; heights are shares of the limit, times are minutes."""

    base: float
    noise: float = 0.005
    memory: float = 0.6  # of the noise, from one minute to the next
    warm_up: float = 10.0
    daily: float = 0.0
    phase: float = 0.0
    saw: float = 0.0
    saw_period: float = 60.0
    ramp: float = 0.0
    ramp_end: float = 1.0
    cache: float = 0.0
    cache_time: float = 1.0
    creep: float = 0.0
    creep_time: float = 1.0
    bursts_a_day: float = 0.0
    burst: tuple[float, float] = (0.1, 0.4)
    burst_minutes: tuple[float, float] = (5.0, 90.0)
    shifts_every: float = 0.0
    shift: float = 0.0
    onset: int | None = None
    life: float = 0.0
    growth: str = ""
    power: float = 1.0
    leak_steps: int = 0
    weekend: float = 1.0
    sessions: float = 0.0


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _healthy(family: str, rng: Random) -> _Parts:
    parts = _Parts(
        base=rng.uniform(0.15, 0.5),
        noise=_log_uniform(rng, 0.002, 0.015),
        memory=rng.uniform(0.0, 0.9),
        warm_up=rng.uniform(2, 20),
        phase=rng.random(),
        saw=rng.uniform(0.0, 0.03),
        saw_period=_log_uniform(rng, 5, 60),
        weekend=rng.uniform(0.4, 1.0),
        sessions=rng.uniform(0.0, 0.4),
    )
    match family:
        case "ramp to plateau":
            parts.ramp, parts.ramp_end = rng.uniform(0.05, 0.3), _log_uniform(rng, 30, 8 * 60)
        case "cache filling":
            parts.cache, parts.cache_time = rng.uniform(0.05, 0.4), _log_uniform(rng, 30, 10 * 60)
        case "sawtooth":
            parts.saw, parts.saw_period = rng.uniform(0.05, 0.3), _log_uniform(rng, 10, 8 * 60)
        case "daily cycle":
            parts.daily = rng.uniform(0.05, 0.3)
        case "deploy steps":
            parts.shifts_every, parts.shift = rng.uniform(6, 40) * 60, rng.uniform(0.02, 0.08)
        case "noise":
            parts.noise, parts.memory = rng.uniform(0.01, 0.04), rng.uniform(0.5, 0.995)
        case "fragmentation creep":
            parts.creep, parts.creep_time = rng.uniform(0.05, 0.2), _log_uniform(rng, 30, 360)
        case "bursts":
            parts.bursts_a_day = rng.uniform(2, 12)
        case "mixed":
            parts.daily, parts.cache = rng.uniform(0.03, 0.15), rng.uniform(0.05, 0.15)
            parts.cache_time, parts.bursts_a_day = _log_uniform(rng, 60, 16 * 60), rng.uniform(1, 6)
            parts.saw, parts.saw_period = rng.uniform(0.02, 0.1), _log_uniform(rng, 10, 240)
        case "runs hot":
            parts.base, parts.noise, parts.saw = rng.uniform(0.75, 0.88), rng.uniform(0.002, 0.008), 0.01
    return parts


def _leaking(family: str, rng: Random) -> _Parts:
    parts = _healthy("", rng)
    parts.onset, parts.life, parts.growth = 0, _log_uniform(rng, 4 * 60, 4 * DAY), "linear"
    match family:
        case "linear with daily cycle":
            parts.daily, parts.life = rng.uniform(0.05, 0.2), _log_uniform(rng, 1.5 * DAY, 6 * DAY)
        case "rising sawtooth floor":
            parts.saw, parts.saw_period = rng.uniform(0.05, 0.25), _log_uniform(rng, 10, parts.life / 20)
        case "step per event":
            parts.growth, parts.leak_steps = "steps", rng.randrange(25, 120)
        case "late onset":
            parts.onset = round(rng.uniform(6, 48) * 60)
        case "superlinear":
            parts.power = rng.uniform(1.3, 2.2)
        case "slow in noise":
            parts.life, parts.noise = rng.uniform(3, 8) * DAY, rng.uniform(0.015, 0.04)
            parts.memory = rng.uniform(0.5, 0.98)
        case "load-proportional":
            parts.growth, parts.daily = "load", rng.uniform(0.02, 0.1)
            parts.life = _log_uniform(rng, 1.5 * DAY, 6 * DAY)
    return parts


HEALTHY = (
    "ramp to plateau",
    "cache filling",
    "sawtooth",
    "daily cycle",
    "deploy steps",
    "noise",
    "fragmentation creep",
    "bursts",
    "mixed",
    "runs hot",
)
LEAKING = (
    "linear",
    "linear with daily cycle",
    "rising sawtooth floor",
    "step per event",
    "late onset",
    "superlinear",
    "slow in noise",
    "load-proportional",
)


def make_trace(family: str, seed: int) -> Trace:
    """Return the trace of a family for a seed: the same on every machine and Python."""
    rng = Random(f"{family}:{seed}")
    parts = _healthy(family, rng) if family in HEALTHY else _leaking(family, rng)
    used, blocks, left = array("d"), array("d"), array("d")
    for total, objects, kept in _minutes(parts, rng):
        if total >= 1.0:
            if parts.onset is not None:
                break
            total = 0.995  # a healthy one lives for the week
        used.append(total)
        blocks.append(objects)
        left.append(kept)
    return Trace(family, seed, used, blocks, left, parts.onset)


def make_traces(seeds: range) -> Iterator[Trace]:
    """Return the traces of all families for some seeds, one at a time."""
    return (make_trace(family, seed) for family in (*HEALTHY, *LEAKING) for seed in seeds)


def _minutes(parts: _Parts, rng: Random) -> Iterator[tuple[float, float, float]]:
    noise = shift = leaked = burst_height = 0.0
    burst_until, next_shift = -1.0, _next(rng, parts.shifts_every)
    spread = math.sqrt(1 - parts.memory**2)
    # The base load, garbage and bursts take part of the limit, so that a leak with a life of a day lasts about a day.
    room = 1.0 - parts.base - parts.daily * 0.6 - parts.saw * 0.8 - 2 * parts.noise
    saw_phase, kept_pages = rng.random(), 0.0
    last = HEALTHY_MINUTES if parts.onset is None else MAX_LEAK_MINUTES
    load_rng = 1.0
    for minute in range(last):
        if minute % DAY == 0:
            load_rng = rng.uniform(0.85, 1.15) * (parts.weekend if minute // DAY % 7 in (5, 6) else 1.0)
        load = load_rng * 0.5 * (1 + math.sin(2 * math.pi * (minute / DAY + parts.phase)))
        noise = parts.memory * noise + spread * rng.gauss(0.0, parts.noise)
        if minute >= next_shift:
            shift = min(max(0.7 * shift + rng.gauss(0.0, parts.shift), -0.12), 0.2)
            next_shift = minute + _next(rng, parts.shifts_every)
        if parts.bursts_a_day and rng.random() < parts.bursts_a_day / DAY and minute > burst_until:
            burst_height = rng.uniform(*parts.burst)
            burst_until = minute + _log_uniform(rng, *parts.burst_minutes)
        leaked = _leaked(parts, minute, load, leaked, rng)
        warm = 1 - 0.5 * math.exp(-minute / parts.warm_up)
        saw = parts.saw * ((minute / parts.saw_period + saw_phase) % 1.0)
        burst = burst_height if minute <= burst_until else 0.0
        kept = (
            saw
            + parts.ramp * min(1.0, minute / parts.ramp_end)
            + parts.cache * (1 - math.exp(-minute / parts.cache_time))
            + room * leaked
            + parts.daily * load * parts.sessions
        )
        objects = parts.base * warm + parts.daily * load * (1 - parts.sessions) + shift + burst + kept
        # What a burst took stays with the allocators for a while.
        kept_pages = max(kept_pages * 0.98, 0.3 * burst)
        creep = parts.creep * math.log1p(minute / parts.creep_time) / math.log1p(HEALTHY_MINUTES / parts.creep_time)
        total = objects + noise + creep + max(0.0, kept_pages - burst)
        yield max(0.01, total), objects, kept


def _next(rng: Random, mean: float) -> float:
    return rng.expovariate(1 / mean) if mean else math.inf


def _leaked(parts: _Parts, minute: int, load: float, leaked: float, rng: Random) -> float:
    if parts.onset is None or minute < parts.onset:
        return 0.0
    age = (minute - parts.onset) / parts.life
    match parts.growth:
        case "steps":
            rate = parts.leak_steps / parts.life
            return leaked + (rng.expovariate(1.0) / parts.leak_steps if rng.random() < rate else 0.0)
        case "load":
            return leaked + 2 * load / parts.life
        case _:
            return age**parts.power
