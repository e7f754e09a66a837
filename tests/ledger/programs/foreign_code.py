"""Call a library in C or Rust under budgets that it exceeds, and one that it does not.

    python foreign_code.py LIBRARY [CALLS]

fails with the first call that ends with anything else than its result or `BudgetExceeded`, or without the peak in it.
"""

import io
import json
import sys
from collections.abc import Callable
from typing import Any

from memtools import BudgetExceeded, memory_scope

KIB = 1024
BUDGETS = [64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, 65_536 * KIB]
ROWS = [{"id": number, "name": f"user {number}", "values": [1.5, 2.0, None], "on": True} for number in range(5000)]
TEXT = json.dumps(ROWS).encode()


class Foreign:
    """Calls of each library. Any: none of them is imported for its types."""

    def orjson(self) -> list[Callable[[], Any]]:
        import orjson

        return [lambda: orjson.loads(TEXT), lambda: orjson.dumps(ROWS), lambda: orjson.dumps([1j] * 9, default=grow)]

    def msgspec(self) -> list[Callable[[], Any]]:
        import msgspec

        packed = msgspec.msgpack.encode(ROWS)
        return [
            lambda: msgspec.json.decode(TEXT),
            lambda: msgspec.json.encode(ROWS),
            lambda: msgspec.msgpack.decode(packed),
            lambda: msgspec.json.encode([1j] * 9, enc_hook=grow),
        ]

    def pydantic_core(self) -> list[Callable[[], Any]]:
        import pydantic

        class User(pydantic.BaseModel):
            id: int
            name: str
            values: list[float | None]

            @pydantic.field_validator("name")
            @classmethod
            def check_name(cls, name: str) -> str:
                return str(grow(name))

        adapter = pydantic.TypeAdapter(list[User])
        return [lambda: adapter.validate_json(TEXT), lambda: adapter.validate_python(ROWS)]

    def cbor2(self) -> list[Callable[[], Any]]:
        import cbor2

        packed = cbor2.dumps(ROWS)
        return [lambda: cbor2.dumps(ROWS), lambda: cbor2.loads(packed)]

    def ujson(self) -> list[Callable[[], Any]]:
        import ujson

        return [lambda: ujson.loads(TEXT), lambda: ujson.dumps(ROWS)]

    def msgpack(self) -> list[Callable[[], Any]]:
        import msgpack

        packed = msgpack.packb(ROWS)
        return [lambda: msgpack.packb(ROWS), lambda: msgpack.unpackb(packed, object_hook=grow)]

    def lxml(self) -> list[Callable[[], Any]]:
        from lxml import etree

        text = b"<a>" + b"<b c='d'>text</b>" * 5000 + b"</a>"
        return [lambda: [item.text for item in etree.fromstring(text)], lambda: list(etree.iterparse(io.BytesIO(text)))]

    def polars(self) -> list[Callable[[], Any]]:
        import polars

        table = polars.DataFrame({"a": list(range(5000))})
        return [
            lambda: polars.DataFrame(ROWS).to_dicts(),
            lambda: table["a"].map_elements(grow, return_dtype=polars.Int64),
        ]

    def numpy(self) -> list[Callable[[], Any]]:
        import numpy

        return [lambda: numpy.arange(10**5).tolist(), lambda: numpy.vectorize(grow)(numpy.arange(5000))]

    def pandas(self) -> list[Callable[[], Any]]:
        import pandas

        table = pandas.DataFrame(ROWS)
        return [lambda: pandas.DataFrame(ROWS), lambda: table["id"].apply(grow), lambda: table.to_dict("records")]

    def sqlite3(self) -> list[Callable[[], Any]]:
        import sqlite3

        database = sqlite3.connect(":memory:")
        database.create_function("grow", 1, grow)
        database.execute("create table rows (id integer, name text)")
        database.executemany("insert into rows values (?, ?)", [(number, "x" * 50) for number in range(5000)])
        return [
            lambda: database.execute("select * from rows").fetchall(),
            lambda: database.execute("select sum(id) from rows").fetchall(),
        ]

    def json(self) -> list[Callable[[], Any]]:
        return [
            lambda: json.loads(TEXT),
            lambda: json.dumps(ROWS),
            lambda: json.loads(TEXT, object_hook=grow),
            lambda: sorted(range(50_000), key=grow),
        ]


def grow(item: Any) -> Any:
    """Hold a little for each item."""
    held.append(bytes(1000))
    return "0" if isinstance(item, complex) else item


held: list[bytes] = []


def run(call: Callable[[], Any], budget: int) -> bool:
    """Return whether the call exceeded its budget."""
    scope = memory_scope("foreign", meter="native", budget=budget)
    held.clear()
    try:
        with scope:
            result = call()
            del result
    except BudgetExceeded as error:
        if not budget < error.used_bytes <= scope.usage.peak_bytes:
            raise AssertionError(f"{error.used_bytes} in the error, peak {scope.usage.peak_bytes}") from error
        return True
    if scope.usage.peak_bytes > budget:
        raise AssertionError(f"ended normally with a peak of {scope.usage.peak_bytes} under a budget of {budget}")
    return False


def main(library: str, calls: int) -> None:
    exceeded = 0
    for call in getattr(Foreign(), library)():
        call()  # what is imported and cached at the first call
        for number in range(calls):
            exceeded += run(call, BUDGETS[number % len(BUDGETS)])
    print(f"{library}: {calls} calls of each kind, {exceeded} exceeded their budget")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)
