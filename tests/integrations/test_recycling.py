"""When a worker is to be replaced, whose turn it is, and what is said where an adapter is in the wrong place.

The real servers are in `tests/integration/test_services.py`.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web
from celery import Celery
from django.core.handlers.asgi import ASGIHandler

from memtools import ConfigError, Level
from memtools.errors import ReadingError
from memtools.integrations import MemoryMiddleware
from memtools.integrations._recycling import WorkerSize, WorkerTurns, make_options, path_for_siblings
from memtools.integrations.celery import watch_worker
from memtools.integrations.gunicorn import recycle_workers
from memtools.integrations.uvicorn import RecyclingMiddleware
from memtools.integrations.wsgi import WSGIMemoryMiddleware

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers take turns by POSIX locks")


class Worker:
    """A scripted worker: its size, the time and the level are what the test says."""

    def __init__(self, **options: Any) -> None:
        self.size, self.time, self.level = 100 * MIB, 0.0, Level.NORMAL
        made = make_options(
            **{"growth": "20 MiB", "limit": None, "monitor": self, "warm_up": 10, "jitter": 0} | options
        )
        self.looks = WorkerSize(made, read=lambda: self.size, clock=lambda: self.time, draw=lambda: 1.0)

    def look(self, served: int) -> str | None:
        return self.looks.reason_to_recycle(served)


class TestWorkerSize:
    def test_growth_counts_from_the_size_when_warm(self) -> None:
        worker = Worker()

        assert worker.look(0) is None
        worker.size += 80 * MIB  # what it loads with its first requests
        assert worker.look(10) is None
        worker.size += 20 * MIB
        assert worker.look(500) is None
        worker.size += 1 * MIB
        reason = worker.look(1500)

        assert reason is not None
        assert f"worker {os.getpid()} is to be replaced: it holds 201.0 MiB, 21.0 MiB more than when" in reason
        assert "(growth=20.0 MiB with jitter) after 1,500 requests" in reason

    def test_worker_with_few_requests_is_warm_after_five_minutes(self) -> None:
        worker = Worker()

        assert worker.look(1) is None
        worker.time = 301
        assert worker.look(2) is None
        worker.size += 21 * MIB

        assert worker.look(3) is not None

    def test_limit_holds_before_the_worker_is_warm(self) -> None:
        worker = Worker(limit="150 MiB")
        worker.size += 51 * MIB

        reason = worker.look(0)

        assert reason is not None
        assert "it holds 151.0 MiB (limit=150.0 MiB) after 0 requests" in reason

    def test_quarter_of_the_growth_suffices_at_critical(self) -> None:
        worker = Worker()
        worker.look(10)
        worker.size += 6 * MIB

        assert worker.look(20) is None
        worker.level = Level.CRITICAL

        assert "level CRITICAL" in str(worker.look(30))

    def test_jitter_adds_to_the_growth(self) -> None:
        worker = Worker(jitter=0.5)
        worker.look(10)

        worker.size += 30 * MIB
        assert worker.look(20) is None
        worker.size += 1

        assert worker.look(20) is not None

    def test_reading_that_fails_once_is_no_end(self) -> None:
        worker, refused = Worker(), [True]

        def read() -> int:
            if refused:
                refused.pop()
                raise ReadingError(24, "Too many open files")
            return worker.size

        worker.looks = WorkerSize(make_options("20 MiB", "50 MiB", None, 10, 0), read=read)

        assert worker.look(10) is None
        assert worker.look(10) is not None

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"growth": "much"}, "growth"),
            ({"growth": -1}, "growth"),
            ({"limit": "10 MiB"}, "a size above growth='20 MiB'"),
            ({"monitor": 7}, "a MemoryMonitor"),
            ({"warm_up": -1}, "warm_up"),
            ({"jitter": 1.5}, "a share from 0 to 1"),
            ({"jitter": True}, "a share from 0 to 1"),
        ],
    )
    def test_senseless_option_is_refused_by_name(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            recycle_workers(**{"growth": "20 MiB"} | options)
        with pytest.raises(ConfigError, match=said):
            RecyclingMiddleware(_hello, **{"growth": "20 MiB"} | options)


def _work(turns: WorkerTurns, orders: "Connection[object, tuple[str, tuple[int, ...]]]") -> None:
    while True:
        order, arguments = orders.recv()
        orders.send(getattr(turns, order)(*arguments))


class Siblings:
    """Forked workers that do with their turns what the test says."""

    def __init__(self, turns: WorkerTurns) -> None:
        self.turns = turns
        self.started: list[tuple[Any, Connection[tuple[str, tuple[int, ...]], object]]] = []

    def start(self) -> int:
        ours, its = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_work, args=(self.turns, its))
        process.start()
        its.close()
        self.started.append((process, ours))
        return len(self.started) - 1

    def ask(self, number: int, order: str, *arguments: int) -> object:
        self.started[number][1].send((order, arguments))
        return self.started[number][1].recv()

    def kill(self, number: int) -> None:
        process, pipe = self.started[number]
        process.kill()
        process.join()
        process.close()
        pipe.close()

    def serving(self) -> int:
        number = self.start()
        self.ask(number, "join")
        return number


@pytest.fixture
def siblings() -> Iterator[Siblings]:
    turns = WorkerTurns(3)
    siblings = Siblings(turns)
    yield siblings
    for number, (_, pipe) in enumerate(siblings.started):
        if not pipe.closed:
            siblings.kill(number)
    turns.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestWorkerTurns:
    def test_one_goes_at_a_time_and_only_while_all_others_serve(self, siblings: Siblings) -> None:
        first, second, third = (siblings.serving() for _ in range(3))

        assert siblings.ask(first, "try_take") is True
        assert siblings.ask(second, "try_take") is False
        siblings.kill(first)
        assert siblings.ask(second, "try_take") is False  # the replacement does not serve yet
        replacement = siblings.start()
        assert siblings.ask(third, "try_take") is False
        siblings.ask(replacement, "join")

        assert siblings.ask(third, "try_take") is True
        assert siblings.ask(second, "try_take") is False

    def test_worker_that_was_killed_frees_its_turn(self, siblings: Siblings) -> None:
        first, second, _ = (siblings.serving() for _ in range(3))
        siblings.ask(first, "try_take")

        siblings.kill(first)
        siblings.serving()

        assert siblings.ask(second, "try_take") is True

    def test_largest_of_those_that_ask_goes_first(self, siblings: Siblings) -> None:
        first, second, third = (siblings.serving() for _ in range(3))
        siblings.ask(first, "try_take", 10)
        siblings.kill(first)
        siblings.ask(second, "try_take", 20)
        siblings.ask(third, "try_take", 30)
        siblings.serving()

        assert siblings.ask(second, "try_take", 21) is False
        assert siblings.ask(third, "try_take", 31) is True

    def test_worker_that_is_to_stay_away_is_not_waited_for(self) -> None:
        now = 0.0
        turns = WorkerTurns(3, clock=lambda: now)
        siblings = Siblings(turns)
        siblings.serving()
        turns.join()

        assert turns.try_take() is False
        now = 299.0
        assert turns.try_take() is False
        now = 301.0
        taken = turns.try_take()
        siblings.kill(0)
        turns.close()

        assert taken

    def test_single_worker_waits_for_no_other(self) -> None:
        turns = WorkerTurns(1)
        turns.join()

        assert turns.try_take()
        turns.close()

    def test_last_worker_removes_the_file_of_siblings(self, tmp_path: Path) -> None:
        path = tmp_path / "workers"
        turns = WorkerTurns(2, path=str(path))
        siblings = Siblings(turns)
        siblings.serving()
        turns.join()

        turns.leave()
        assert path.exists()
        siblings.ask(0, "leave")
        is_there = path.exists()
        siblings.kill(0)
        turns.close()

        assert not is_there

    def test_worker_that_joins_after_the_removal_makes_a_new_file(self, tmp_path: Path) -> None:
        path = tmp_path / "workers"
        turns = WorkerTurns(2, path=str(path))
        path.unlink()

        turns.join()
        other = Siblings(WorkerTurns(2, path=str(path)))
        other.serving()
        taken = turns.try_take()
        other.kill(0)
        other.turns.close()
        turns.close()

        assert taken

    def test_link_of_another_user_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "workers").symlink_to(tmp_path / "elsewhere")

        with pytest.raises(OSError, match="workers"):
            WorkerTurns(2, path=str(tmp_path / "workers"))

        assert not (tmp_path / "elsewhere").exists()

    def test_path_is_that_of_all_children_of_one_parent(self) -> None:
        path = path_for_siblings()

        assert path == path_for_siblings()
        assert str(os.getppid()) in path


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Connection", b"keep-alive")]})
    await send({"type": "http.response.body", "body": b"hello"})


class TestRecyclingMiddleware:
    async def test_another_server_is_told_once_and_served(self, caplog: pytest.LogCaptureFixture) -> None:
        app = RecyclingMiddleware(_hello, growth="20 MiB")

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answers = [await client.get("/"), await client.get("/")]

        assert [answer.text for answer in answers] == ["hello", "hello"]
        (warning,) = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
        assert warning.startswith("RecyclingMiddleware replaces no worker: no uvicorn serves here")

    async def test_single_process_drains_and_ends_by_itself(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "uvicorn.error")
        kept: list[bytes] = []

        async def leak(scope: Any, receive: Any, send: Any) -> None:
            kept.append(b"x" * 4 * MIB)
            await _hello(scope, receive, send)

        app = RecyclingMiddleware(leak, growth="10 MiB", warm_up=1)
        config = uvicorn.Config(app, port=0, log_config=None, timeout_keep_alive=1, lifespan="off")
        before = signal.getsignal(signal.SIGTERM)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]

        closed = False
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            while not closed:
                answer = await client.get("/")
                closed = answer.headers["connection"] == "close"
                await asyncio.sleep(0.05)
        await asyncio.wait_for(serving, 30)
        await asyncio.sleep(0.5)  # its task sees that, where no loop ends with the server
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

        assert len(warned) == 1
        assert f"worker {os.getpid()} is to be replaced" in warned[0]
        assert signal.getsignal(signal.SIGTERM) is before

    def test_wsgi_application_is_refused(self) -> None:
        flask = SimpleNamespace(wsgi_app=None, __call__=None)

        with pytest.raises(ConfigError, match="an ASGI application"):
            RecyclingMiddleware(flask, growth="20 MiB")  # type: ignore[arg-type]


class TestRecycleWorkers:
    def test_hook_in_another_place_says_where_it_belongs(self) -> None:
        hook = recycle_workers(growth="20 MiB")

        with pytest.raises(ConfigError, match="for uvicorn without gunicorn there is RecyclingMiddleware"):
            hook(_hello)


class TestAdapterInAnotherPlace:
    """The wrong adapter names the right one."""

    @pytest.mark.parametrize("middleware", [MemoryMiddleware, WSGIMemoryMiddleware])
    @pytest.mark.parametrize(
        ("make_app", "adapter"),
        [
            (web.Application, r"memtools\.integrations\.aiohttp\.MemoryMiddleware"),
            (Celery, r"memtools\.integrations\.celery\.watch_worker"),
            (ASGIHandler, r"memtools\.integrations\.django\.MemoryMiddleware, the first entry of MIDDLEWARE"),
        ],
    )
    def test_application_of_another_library_is_refused(self, middleware: Any, make_app: Any, adapter: str) -> None:
        app = ASGIHandler.__new__(ASGIHandler) if make_app is ASGIHandler else make_app()

        with pytest.raises(ConfigError, match=adapter):
            middleware(app)

    def test_label_of_the_user_makes_any_application_right(self) -> None:
        MemoryMiddleware(ASGIHandler.__new__(ASGIHandler), label=lambda scope: "all")

    def test_worker_of_celery_is_of_an_application_of_celery(self) -> None:
        with pytest.raises(ConfigError, match="an application of Celery"):
            watch_worker(_hello)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"limit": "1 GiB"}, "None where growth is None"),
            ({"warn": "much"}, "warn"),
            ({"growth": "much"}, "growth"),
            ({"monitor": 7}, "a MemoryMonitor"),
        ],
    )
    def test_senseless_option_of_a_worker_is_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            watch_worker(Celery("tasks"), **options)
