"""Ask a process of Python 3.14 or later that has no black box, by a script that it runs: `sys.remote_exec`.

The script says hello over a Unix socket, with the stack of the main thread, and starts a thread that does the work.
Traps:

- *Signals.* A handler of the program may run while the main thread is in the script, and raise: that is raised again
  behind the script. A write to a socket that was closed must not be a SIGPIPE.
- *A request stays pending* where the main thread waits in the kernel, and cannot be taken back. A script that is gone
  then would make the process print a traceback, so an empty one stays in its place.
- *A wait for events* (epoll, an event loop that is idle) returns after an interruption, and the loop runs Python code;
  every other call of the system is begun again by the kernel. PTRACE_INTERRUPT does it unseen: no signal is sent, and
  no parent is told.
"""

import ctypes
import json
import os
import platform
import re
import select
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

from memtools.black_box._mailbox import NoAnswer
from memtools.readings._other_processes import has_same_root, process_user, root_of, waiting_call
from memtools.readings._shares import process_start

_FOLDER: Final = re.compile(r"memtools-attach-(\d{1,10})-(\d{1,20})-\w+")
_WAKE_AFTER_S: Final = 0.3
_HELLO_S: Final = 2.0  # a busy program takes up to 1.6 s
_POLL_S: Final = 0.05
_MAX_BYTES: Final = 4 << 20
_SCRIPT: Final = """\
try:
    import sys, _thread, _socket
    c = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    c.settimeout(1.0)
    c.connect({path!r})
    f, t = sys._getframe().f_back, []
    while f is not None and len(t) < 20:
        t.append(f"{{f.f_code.co_qualname}} ({{f.f_code.co_filename}}:{{f.f_lineno}})")
        f = f.f_back
    f = None  # or the variables of that function would stay alive
    c.sendall(" <- ".join(t).encode("utf-8", "replace").replace(b"\\0", b"") + b"\\0", _socket.MSG_NOSIGNAL)
    c.settimeout({timeout!r})

    def work(c, root, word, seconds, nosignal):
        try:
            import json, sys
            try:
                try:
                    import memtools
                except ImportError:
                    if root is None:
                        raise
                    from importlib.machinery import PathFinder
                    from importlib.util import module_from_spec
                    spec = PathFinder.find_spec("memtools", [root])
                    sys.modules["memtools"] = memtools = module_from_spec(spec)
                    try:
                        spec.loader.exec_module(memtools)
                    except BaseException:
                        del sys.modules["memtools"]
                        raise
                from memtools.commands._attached import observe
                answer = observe(word, seconds)
            except BaseException as error:
                answer = {{"refused": f"it failed: {{type(error).__name__}}: {{error}}"}}
            c.sendall(json.dumps(answer).encode("ascii") + b"\\0", nosignal)
        except BaseException:
            pass
        finally:
            c.close()

    # Under gevent, that of a real thread.
    s = getattr(sys.modules.get("gevent.monkey"), "saved", {{}}).get("_thread", {{}}).get("start_new_thread")
    (s or _thread.start_new_thread)(work, (c, {root!r}, {word!r}, {seconds!r}, _socket.MSG_NOSIGNAL))
except Exception:
    pass
except KeyboardInterrupt:
    _thread.interrupt_main()
except BaseException as e:
    import ctypes
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(_thread.get_ident()), ctypes.py_object(type(e)))
"""

_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_PTRACE_DETACH: Final = 17
_EVENT_STOP: Final = 128  # the stop of an interruption, and not of a signal
_WALL: Final = 0x40000000
_STOP_S: Final = 1.0  # it takes less than a millisecond, unless the process hangs in the kernel


class CannotInject(Exception):
    """A process that runs no script of another one; the text says why, and what can be done."""


def inject(
    pid: int, word: str, seconds: float, *, timeout_s: float, is_alive: Callable[[], bool]
) -> dict[str, Any]:  # Any: what the process says
    """Have a process observe itself, and return its answer.

    Args:
        pid: the process.
        word: one of the four words.
        seconds: for how long it is to be observed.
        timeout_s: how many seconds longer than that to wait at most.
        is_alive: whether it is still there.

    Raises:
        CannotInject: where it takes no script.
        NoAnswer: where no answer comes.
    """
    with _meeting_place(pid) as place:
        folder, inside = place.folder, place.inside
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(os.path.join(folder, "s"))
            server.listen(1)
            _give_to(os.path.join(folder, "s"), pid)
            root = _root_of_memtools() if folder == inside else None
            text = _SCRIPT.format(
                path=os.path.join(inside, "s"), root=root, word=word, seconds=seconds, timeout=timeout_s
            )
            _write_script(folder, text, pid)
            place.is_pending = True
            try:
                _send(pid, os.path.join(inside, "attach.py"))
            except CannotInject:
                place.is_pending = False
                raise
            connection = _accept(server, pid, is_alive)
            place.is_pending = False
        with connection:
            return _receive(connection, seconds + timeout_s)


def _send(pid: int, script: str) -> None:
    remote_exec = getattr(sys, "remote_exec", None)  # Python 3.14
    if remote_exec is None:
        raise CannotInject(f"this is Python {platform.python_version()}; sys.remote_exec came with 3.14")
    try:
        remote_exec(pid, script)
    except PermissionError as error:
        raise CannotInject(
            "the system does not permit it: that takes its user and the right to trace it; in a container "
            "CAP_SYS_PTRACE, elsewhere /proc/sys/kernel/yama/ptrace_scope may forbid it, so try root"
        ) from error
    except (RuntimeError, OSError, NotImplementedError) as error:
        text = str(error)
        if "not enabled" in text:
            advice = "it was started with -X disable-remote-debug or PYTHON_DISABLE_REMOTE_DEBUG: start it without"
        elif "Can't send commands" in text:
            advice = f"{text}: run memtools by the Python that runs it"
        else:
            advice = f"it takes no script, since it is no Python of 3.14 or later, or another build: {text}"
        raise CannotInject(advice) from error


def _accept(server: socket.socket, pid: int, is_alive: Callable[[], bool]) -> socket.socket:
    begun = time.monotonic()
    is_woken = False
    server.settimeout(_POLL_S)
    while True:
        try:
            return server.accept()[0]
        except TimeoutError:
            waited_s = time.monotonic() - begun
        if not is_alive():
            raise NoAnswer("it has ended meanwhile")
        call = waiting_call(pid)
        if not is_woken and waited_s > _WAKE_AFTER_S and call.startswith("epoll_"):
            is_woken = True
            _wake(pid)
        elif waited_s > _HELLO_S:
            raise NoAnswer(_why_silent(call))


def _why_silent(call: str) -> str:
    if call and call != "running":
        where = f"its main thread waits in the system call {call}, which nothing but its own end ends"
    else:
        where = "its main thread runs C code that does not return to Python, or waits for the GIL"
    return f"{where}; with a black box it would answer: MemoryMonitor(black_box=True), or MEMTOOLS_BLACK_BOX=/dev/shm"


def _wake(pid: int) -> None:
    """Interrupt the system call of the main thread; without the right to, nothing happens."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        libc.ptrace.restype = ctypes.c_long
        if libc.ptrace(_PTRACE_SEIZE, pid, 0, 0) < 0:
            return
        signal_to_pass = 0
        try:
            if libc.ptrace(_PTRACE_INTERRUPT, pid, 0, 0) == 0:
                signal_to_pass = _wait_for_stop(pid)
        finally:
            # The system does it, too, should this process end before.
            libc.ptrace(_PTRACE_DETACH, pid, 0, signal_to_pass)


def _wait_for_stop(pid: int) -> int:
    """Wait until the process has stopped; return the signal that has stopped it, which it has to get in the end."""
    until = time.monotonic() + _STOP_S
    while time.monotonic() < until:
        stopped, status = os.waitpid(pid, _WALL | os.WNOHANG)
        if stopped:
            return os.WSTOPSIG(status) if os.WIFSTOPPED(status) and status >> 16 != _EVENT_STOP else 0
        time.sleep(0.001)
    return 0


def _receive(connection: socket.socket, timeout_s: float) -> dict[str, Any]:
    until = time.monotonic() + timeout_s
    parts: list[bytes] = [b""]
    total = 0
    while len(parts) < 3:  # the stack, the answer, and what follows it: nothing
        left = until - time.monotonic()
        if left <= 0 or not select.select([connection], [], [], left)[0]:
            raise NoAnswer(f"no answer within {timeout_s:,.0f} s; a longer --timeout may do{_stack(parts)}")
        chunk = connection.recv(65536)
        if not chunk:
            raise NoAnswer(f"it has ended, or its thread did, before it has answered{_stack(parts)}")
        total += len(chunk)
        if total > _MAX_BYTES:
            raise NoAnswer(f"its answer is longer than {_MAX_BYTES:,} bytes")
        first, *more = chunk.split(b"\0")
        parts[-1] += first
        parts += more
    try:
        found: object = json.loads(parts[1])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoAnswer("what it has sent is no answer")
    answer = cast("dict[str, Any]", found)
    if answer.get("refused"):
        raise NoAnswer(f"the process refuses: {answer['refused']}")
    return answer


def _stack(parts: list[bytes]) -> str:
    return f"; its main thread is in {parts[0].decode('utf-8', 'replace')}" if len(parts) > 1 else ""


class _MeetingPlace:
    """A folder that this process and another one can use.

    Attributes:
        folder: its path for this process.
        inside: its path for the other one.
        is_pending: whether the other one may still read the script.
    """

    def __init__(self, folder: str, inside: str) -> None:
        self.folder = folder
        self.inside = inside
        self.is_pending = False


@contextmanager
def _meeting_place(pid: int) -> Generator[_MeetingPlace]:
    """Make the folder; in the end it is removed, or while a request is pending, an empty script stays in it."""
    inside = tempfile.gettempdir()
    outside = inside
    if not has_same_root(pid):
        inside, outside = "/tmp", f"{root_of(pid)}/tmp"
    prefix = f"memtools-attach-{pid}-{process_start(pid)}-"
    try:
        _remove_left_folders(outside)
        folder = tempfile.mkdtemp(prefix=prefix, dir=outside)
    except OSError as error:
        raise CannotInject(f"its folder for temporary files cannot be written: {error}") from error
    place = _MeetingPlace(folder, os.path.join(inside, os.path.basename(folder)))
    try:
        _give_to(folder, pid)
        yield place
    finally:
        if place.is_pending and process_user(pid) is not None:
            with suppress(OSError):
                _write_script(folder, "", pid)
            with suppress(OSError):
                os.unlink(os.path.join(folder, "s"))
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_left_folders(folder: str) -> None:
    """Remove the folders of processes that have ended with a request pending."""
    for name in os.listdir(folder):
        parts = _FOLDER.fullmatch(name)
        if parts is not None and process_start(int(parts[1])) != parts[2]:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)  # of another user it stays


def _write_script(folder: str, text: str, pid: int) -> None:
    path = os.path.join(folder, "attach.py")
    with open(f"{path}.part", "x", encoding="utf-8") as file:
        file.write(text)
    _give_to(f"{path}.part", pid)
    os.rename(f"{path}.part", path)  # the other process may be reading it


def _give_to(path: str, pid: int) -> None:
    user = process_user(pid)
    if os.geteuid() == 0 and user:
        os.chown(path, user, -1)


def _root_of_memtools() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
