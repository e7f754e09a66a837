"""Counter numbers of closed owners with live blocks are reused, and no figure changes."""

import random

import pytest

from memtools.ledger import choose_meter, native_reason

if native_reason():
    pytest.skip(f"no native ledger: {native_reason()}", allow_module_level=True)

from memtools.ledger import _native

MOST = 32_766  # numbers
BYTE = b"x"
SIZES = (2, 200, 70_000)  # of each way in which the block map stores a block


class Program:
    """Owners that allocate, close, are dropped or kept, with a model of what each should hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.accounts = [_native.AccountTotals() for _ in range(5)]
        self.account_bytes = [0] * 5
        self.held: list[tuple[_native.Counter, list[int]]] = []  # with the bytes of each and its children
        self.blocks: list[tuple[bytes, int, int, list[list[int]]]] = []

    def open(self) -> None:
        parent = self.random.choice(self.held) if self.held and self.random.random() < 0.5 else None
        account = self.random.randrange(5)
        counter = _native.Counter(parent[0] if parent else None)
        counter.attach_account(self.accounts[account])
        own = [0]
        self.make(counter, account, [own] if parent is None else [own, parent[1]])
        if parent is None and self.random.random() < 0.001:
            self.held.append((counter, own))
        else:
            counter.close()

    def make(self, counter: _native.Counter, account: int, above: list[list[int]]) -> None:
        size = self.random.choices(SIZES, (100, 10, 1))[0]
        _native.switch(counter)
        block = BYTE * size  # no call: its argument tuple would be another block
        _native.switch(None)
        counted = block.__sizeof__()
        for total in above:
            total[0] += counted
        self.account_bytes[account] += counted
        self.blocks.append((block, counted, account, above))

    def drop(self) -> None:
        _, counted, account, above = self.blocks.pop(self.random.randrange(len(self.blocks)))
        for total in above:
            total[0] -= counted
        self.account_bytes[account] -= counted

    def check(self) -> None:
        assert [account.live_bytes() for account in self.accounts] == self.account_bytes
        for counter, own in self.held:
            assert counter.read()[0] == own[0]


@pytest.mark.parametrize("seed", range(3))
def test_released_numbers_are_merged_and_figures_stay_right(seed: int) -> None:
    meter = choose_meter("native")
    meter.acquire()
    try:
        before = _native.counters_in_use()
        warm_up = Program(seed)
        for _ in range(1000):
            warm_up.open()
        del warm_up
        program = Program(seed)
        for number in range(int(MOST * 1.5)):
            program.open()
            if program.random.random() < 0.2:
                program.drop()
            if number % 8000 == 0:
                program.check()
        program.check()

        late = _native.Counter()
        assert not late.is_shared
        assert _native.counters_in_use() < MOST
        while program.blocks:
            program.drop()
        program.check()
        del late
        held = len(program.held)
        assert _native.counters_in_use() - before <= held + 5
    finally:
        meter.release()


def test_owner_shares_a_number_when_all_are_held() -> None:
    meter = choose_meter("native")
    meter.acquire()
    try:
        crowd = [_native.Counter() for _ in range(MOST + 10)]
        assert crowd[-1].is_shared
        del crowd
        assert not _native.Counter().is_shared
    finally:
        meter.release()
