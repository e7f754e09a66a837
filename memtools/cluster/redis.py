"""The carrier for more than one machine: a Redis server, or one that speaks its protocol (extra `redis`).

One script in Lua does all operations, so that each is atomic, by the clock of the server. The pool is kept in three
keys with one hash tag, which a Redis Cluster holds on one server: the hash `pool`, the sorted set `times` of when each
thing in it expires, and the sorted set `queue` of the requests that wait. The keys expire by themselves a minute after
the last thing in them.

redis-py repeats a call that has failed, by default for minutes where a server is frozen: here it never does.
"""

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Generator
from importlib import import_module
from typing import Any, Final

from memtools.cluster._carrier import (
    CarrierError,
    HeldLease,
    LeaseRequest,
    Node,
    PoolFigures,
    settle_s,
    usable_bytes,
    without_password,
)
from memtools.errors import ConfigError, MissingExtraError
from memtools.readings import Level

try:
    from redis.backoff import NoBackoff
    from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError, TryAgainError
    from redis.exceptions import TimeoutError as NoAnswerError
    from redis.retry import Retry
except ImportError as _missing:
    raise MissingExtraError("redis", "redis") from _missing

_LARGEST: Final = 2**53  # the numbers of Lua are exact up to here
_URL: Final = "redis://USER:PASSWORD@HOST:PORT/NUMBER, rediss://… with TLS, or unix:///PATH?db=NUMBER"

# The hash `pool` has in `state` the sums and counters, and of each thing in it:
#   node:ID    TIME CRITICAL JSON    when a process has told, whether it is critical, what it has told
#   bytes:ID   LEASED MEASURED       of a process
#   lease:ID   BYTES FENCE NODE
#   waiter:ID  NODE                  of a request in the queue
# The members of `times` are N:ID, L:ID and W:ID; all times are in microseconds. The sums are kept, since adding up
# thousands of leases for each request would hold up the server.
_SCRIPT: Final = """
local POOL, TIMES, QUEUE = KEYS[1], KEYS[2], KEYS[3]
local QUEUE_US, KEPT_US, CHUNK = 2000000, 60000000, 1000
local STATE = '>dddddddddddd'
local op = ARGV[1]
-- One argument, since redis-py takes as long for each as this takes for all.
local budget, ttl, usable, usable_critical, settle = string.match(ARGV[2], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
budget, ttl = tonumber(budget), tonumber(ttl)
local is_member = budget > 0 -- and not a process that only looks at the pool
local call, format, max = redis.call, string.format, math.max
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- The fields of the hash that have been read or changed; false for one that does not exist.
local fields, changed = {}, {}

local function fetch(...)
    for i, value in ipairs(call('HMGET', POOL, ...)) do fields[select(i, ...)] = value end
end

local function get(name)
    if fields[name] == nil then fields[name] = call('HGET', POOL, name) end
    return fields[name]
end

local function put(name, value)
    fields[name] = value
    changed[#changed + 1] = name
end

local pool

local function restart(ready)
    fields = {}
    pool = {budget = budget, used = 0, leased = 0, leases = 0, nodes = 0, waiting = 0, critical = 0, counter = 0,
        ready = ready, kept = now + KEPT_US, due = math.huge, epoch = now}
    if is_member then
        call('DEL', POOL, TIMES, QUEUE)
        pool.is_changed, pool.is_kept = true, true
    end
end

-- What is left means nothing where the server has been emptied, or has dropped a key for want of memory. Members then
-- have to tell what they use before anything is granted anew; a pool that is opened where none was has no members.
local function load()
    local state = get('state')
    local settled = now + tonumber(settle)
    if not state then return restart(op == 'open' and 0 or settled) end
    local epoch, known, used, leased, leases, nodes, waiting, critical, counter, ready, kept, due =
        struct.unpack(STATE, state)
    pool = {budget = known, used = used, leased = leased, leases = leases, nodes = nodes, waiting = waiting,
        critical = critical, counter = counter, ready = ready, kept = kept, due = due, epoch = epoch}
    if op ~= 'acquire' and op ~= 'release' and (call('ZCARD', QUEUE) ~= pool.waiting
        or call('ZCARD', TIMES) ~= pool.leases + pool.nodes + pool.waiting) then restart(settled) end
end

local function save()
    if pool.is_changed then
        put('state', struct.pack(STATE, pool.epoch, pool.budget, pool.used, pool.leased, pool.leases, pool.nodes,
            pool.waiting, pool.critical, pool.counter, pool.ready, pool.kept, pool.due))
    end
    local set, removed = {}, {}
    for _, name in ipairs(changed) do
        local value = fields[name]
        if value then
            set[#set + 1] = name
            set[#set + 1] = value
        else
            removed[#removed + 1] = name
        end
    end
    for i = 1, #set, CHUNK do call('HSET', POOL, unpack(set, i, math.min(i + CHUNK - 1, #set))) end
    for i = 1, #removed, CHUNK do call('HDEL', POOL, unpack(removed, i, math.min(i + CHUNK - 1, #removed))) end
    if pool.is_kept then
        for _, key in ipairs(KEYS) do call('PEXPIREAT', key, format('%.0f', pool.kept / 1000)) end
    end
end

-- Let something expire at a time, and the keys not before; a key that is new has no time yet.
local function schedule(member, ends, is_new)
    call('ZADD', TIMES, ends, member)
    if ends < pool.due then pool.due, pool.is_changed = ends, true end
    if ends > pool.kept then pool.kept, pool.is_kept, pool.is_changed = ends + KEPT_US, true, true end
    if is_new then pool.is_kept = true end
end

-- It rises also where the server has come back with old counters.
local function next_number()
    pool.counter = max(pool.counter + 1, now)
    pool.is_changed = true
    return pool.counter
end

-- Change what is leased to a process, and set what it uses where that is told.
local function account(node, leased_more, measured)
    local leased, before = string.match(get('bytes:' .. node) or '0 0', '^(%d+) (%d+)$')
    leased, before = tonumber(leased), tonumber(before)
    local leased_now, measured_now = leased + leased_more, measured or before
    if leased_now == leased and measured_now == before then return end
    pool.used = pool.used - max(leased, before) + max(leased_now, measured_now)
    pool.leased = pool.leased + leased_more
    pool.is_changed = true
    put('bytes:' .. node, leased_now + measured_now > 0 and format('%.0f %.0f', leased_now, measured_now))
end

local function read_lease(id)
    return string.match(get('lease:' .. id) or '', '^(%d+) (%S+) (.*)$')
end

local function add_lease(id, node, bytes)
    local fence = format('%.0f:%.0f', pool.epoch, next_number())
    put('lease:' .. id, format('%.0f %s %s', bytes, fence, node))
    schedule('L:' .. id, now + ttl, pool.leases + pool.nodes + pool.waiting == 0)
    account(node, bytes, nil)
    pool.leases = pool.leases + 1
    return fence
end

local function remove_lease(id)
    local bytes, _, node = read_lease(id)
    if not bytes then return false end
    put('lease:' .. id, false)
    call('ZREM', TIMES, 'L:' .. id)
    account(node, -tonumber(bytes), nil)
    pool.leases = pool.leases - 1
    return true
end

local function was_critical(node)
    return tonumber(string.match(get('node:' .. node) or '', '^%d+ (%d)'))
end

local function remove_node(node)
    local critical = was_critical(node)
    if not critical then return end
    put('node:' .. node, false)
    call('ZREM', TIMES, 'N:' .. node)
    account(node, 0, 0)
    pool.nodes, pool.critical, pool.is_changed = pool.nodes - 1, pool.critical - critical, true
end

local function remove_request(id)
    if call('ZREM', QUEUE, id) == 0 then return end
    call('ZREM', TIMES, 'W:' .. id)
    put('waiter:' .. id, false)
    pool.waiting, pool.is_changed = pool.waiting - 1, true
end

local removers = {L = remove_lease, N = remove_node, W = remove_request}

local function usable_now()
    return pool.critical > 0 and usable_critical or usable
end

local operations = {}

function operations.acquire(id, node, size, waits)
    local _, fence = read_lease(id)
    if fence then return fence end
    local bytes = tonumber(size)
    local first = pool.waiting > 0 and call('ZRANGE', QUEUE, 0, 0)[1]
    if (not first or first == id) and now >= pool.ready and pool.used + bytes <= tonumber(usable_now()) then
        if first then remove_request(id) end
        return add_lease(id, node, bytes)
    end
    if waits == '1' then
        local is_new = not call('ZSCORE', QUEUE, id)
        if is_new then
            call('ZADD', QUEUE, next_number(), id)
            put('waiter:' .. id, node)
        end
        schedule('W:' .. id, now + QUEUE_US, is_new and pool.waiting == 0)
        if is_new then pool.waiting = pool.waiting + 1 end
    end
    return false
end

function operations.release(id)
    return remove_lease(id) and 1 or 0
end

local function define_others()
    function operations.withdraw(id)
        remove_request(id)
        remove_lease(id)
        return false
    end

    function operations.open()
        pool.kept, pool.is_kept, pool.is_changed = max(pool.kept, now + KEPT_US), true, true
        if pool.budget == budget then return false end
        if pool.nodes + pool.leases > 0 then return format('%.0f', pool.budget) end
        pool.budget, pool.is_changed = budget, true
        return false
    end

    function operations.publish(node, measured, critical, told, ...)
        local leases, lost = {...}, {}
        local before = was_critical(node)
        account(node, 0, tonumber(measured))
        put('node:' .. node, format('%.0f %s %s', now, critical, told))
        schedule('N:' .. node, now + ttl, pool.leases + pool.nodes + pool.waiting == 0)
        if not before then pool.nodes = pool.nodes + 1 end
        pool.critical, pool.is_changed = pool.critical + tonumber(critical) - (before or 0), true
        for i = 1, #leases, 3 do
            local id = leases[i]
            if read_lease(id) then
                schedule('L:' .. id, now + ttl, false)
            elseif leases[i + 2] == '1' then
                add_lease(id, node, tonumber(leases[i + 1]))
            else
                lost[#lost + 1] = id
            end
        end
        return lost
    end

    function operations.nodes()
        local found = {format('%.0f', now)}
        for _, member in ipairs(call('ZRANGE', TIMES, 0, -1)) do
            local id = string.sub(member, 3)
            if string.sub(member, 1, 2) == 'N:' and get('node:' .. id) then
                local leased = string.match(get('bytes:' .. id) or '0', '^%d+')
                for _, value in ipairs({id, get('node:' .. id), leased}) do found[#found + 1] = value end
            end
        end
        return found
    end

    function operations.figures()
        return {format('%.0f', pool.budget), pool.critical, format('%.0f', pool.used), format('%.0f', pool.leased),
            pool.leases, pool.waiting, pool.nodes}
    end

    function operations.leave(node)
        for _, member in ipairs(call('ZRANGE', TIMES, 0, -1)) do
            local kind, id = string.sub(member, 1, 1), string.sub(member, 3)
            local _, _, holder = read_lease(kind == 'L' and id or '')
            if holder == node or (kind == 'W' and get('waiter:' .. id) == node) then removers[kind](id) end
        end
        remove_node(node)
        return false
    end
end

if op == 'acquire' then
    fetch('state', 'lease:' .. ARGV[3], 'bytes:' .. ARGV[4])
elseif op == 'release' then
    fetch('state', 'lease:' .. ARGV[3])
else
    define_others() -- which would take as long as the others need for all
end
load()
if now >= pool.due then
    for _, member in ipairs(call('ZRANGEBYSCORE', TIMES, '-inf', now)) do
        removers[string.sub(member, 1, 1)](string.sub(member, 3))
    end
    pool.due, pool.is_changed = tonumber(call('ZRANGE', TIMES, 0, 0, 'WITHSCORES')[2]) or math.huge, true
end
if is_member and pool.budget ~= budget and op ~= 'open' then
    save()
    local known = format('%.0f', pool.budget)
    return redis.error_reply('BUDGET the pool was made anew, with a budget of ' .. known .. ' bytes')
end
local answer = operations[op](unpack(ARGV, 3))
save()
return answer
"""
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class RedisCarrier:
    """A pool on a Redis server, version 5 or later, or on Valkey.

    Leases end by the clock of the server: where that is set back, those of processes that have died last longer by as
    much. A call that fails drops the connection, and the next one makes another: the server may have become a replica,
    or may have another address now.

    Args:
        url: as redis-py reads it; what it says of timeouts and retries is not used.
        pool: the name of the pool.
        ttl_s: seconds for which a lease is valid without being renewed.
        timeout_s: seconds after which a call gives up, but for the time in which the system finds a host's address.

    Raises:
        ConfigError: for a URL that redis-py refuses.
    """

    def __init__(self, url: str, pool: str, *, ttl_s: float, timeout_s: float) -> None:
        self._kind, self._options = _connection_options(url, timeout_s)
        tag = pool.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        self._keys = tuple(f"memtools:{{{tag}}}:{name}".encode() for name in ("pool", "times", "queue"))
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._numbers = "0 0 0 0 0"  # until the pool is opened
        self._server: dict[str, object] = {}  # the one that a cluster has named
        self._connection: Any = None  # redis-py has no types for it
        with _refusing(url):
            self._kind(**self._options)

    def open(self, budget_bytes: int) -> None:
        """See `Carrier`."""
        if budget_bytes > _LARGEST:
            raise ConfigError("budget", budget_bytes, f"at most {_LARGEST} bytes on Redis")
        usable = (usable_bytes(budget_bytes, is_critical=is_critical) for is_critical in (False, True))
        ttl_us, settle_us = int(self._ttl_s * 1e6), int(settle_s(self._ttl_s) * 1e6)
        self._numbers = " ".join(map(str, (budget_bytes, ttl_us, *usable, settle_us)))
        other = self._run("open")
        if other is not None:
            raise ConfigError("budget", budget_bytes, f"{int(other)} bytes, as the processes that are in the pool now")

    def publish(self, node: Node, leases: tuple[HeldLease, ...]) -> tuple[str, ...]:
        """See `Carrier`."""
        told = json.dumps(
            [node.name, node.host, node.pid, node.used_bytes, node.limit_bytes, node.headroom_bytes, node.level.value,
             node.interval_s]
        )  # fmt: skip
        is_critical = int(node.level is Level.CRITICAL)
        held = (value for lease in leases for value in (lease.id, lease.size_bytes, int(lease.is_local)))
        lost: list[bytes] = self._run("publish", node.id, node.used_bytes, is_critical, told, *held)
        return tuple(key.decode() for key in lost)

    def acquire(self, request: LeaseRequest) -> str | None:
        """See `Carrier`."""
        fence: bytes | None = self._run("acquire", request.id, request.node, request.size_bytes, int(request.waits))
        return None if fence is None else fence.decode()

    def withdraw(self, lease_id: str) -> None:
        """See `Carrier`."""
        self._run("withdraw", lease_id)

    def release(self, lease_id: str) -> bool:
        """See `Carrier`."""
        return bool(self._run("release", lease_id))

    def nodes(self) -> tuple[Node, ...]:
        """See `Carrier`."""
        now, *found = self._run("nodes")
        read = (
            _read_node(key.decode(), told, int(leased), int(now))
            for key, told, leased in zip(found[::3], found[1::3], found[2::3], strict=True)
        )
        return tuple(sorted(read, key=lambda node: (node.name, node.id)))

    def figures(self) -> PoolFigures:
        """See `Carrier`."""
        budget, critical, used, leased, leases, waiting, nodes = map(int, self._run("figures"))
        usable = usable_bytes(budget, is_critical=critical > 0)
        return PoolFigures(budget, usable, used, leased, leases, waiting, nodes)

    def leave(self, node_id: str) -> None:
        """See `Carrier`."""
        self._run("leave", node_id)

    def abandon(self) -> None:
        """See `Carrier`."""
        # In another process than the one that has connected, redis-py closes the descriptor and nothing more.
        self._connection = None

    def close(self) -> None:
        """See `Carrier`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                connection.disconnect()

    def _run(self, operation: str, *values: object) -> Any:  # Any: what the operation returns
        arguments = (len(self._keys), *self._keys, operation, self._numbers, *values)
        deadline = time.monotonic() + self._timeout_s
        try:
            try:
                return self._evaluate(deadline, arguments)
            except ResponseError as error:
                server = _moved_to(error)
                if server is None or "path" in self._options:
                    raise
                self.close()
                self._server = server
                return self._evaluate(deadline, arguments)
        except (RedisError, OSError, UnicodeError) as error:  # the last for a host name that cannot be one
            words = self._words(error)
            self.close()
            self._server = {}
            raise CarrierError(words) from None  # what the library says could hold the password
        except BaseException:
            self.close()  # the answer is still under way
            raise

    def _evaluate(self, deadline: float, arguments: tuple[object, ...]) -> Any:  # Any: see _run
        connection = self._connection
        if connection is None:
            connection = self._connection = self._kind(**{**self._options, **self._server})
        connection.deadline = deadline
        try:
            connection.send_command("EVALSHA", _SHA, *arguments)
            return connection.read_response()
        except NoScriptError:
            connection.send_command("EVAL", _SCRIPT, *arguments)
            return connection.read_response()

    def _words(self, error: Exception) -> str:
        options = {**self._options, **self._server}
        where = str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")
        words = _words_of_cluster(error) or str(error) or type(error).__name__
        for name in ("password", "ssl_password"):
            secret = options.get(name)
            if isinstance(secret, str) and secret:
                words = words.replace(secret, "***")
        return words if where in words else f"{where}: {words}"


class _Deadline:
    """Bounds all that a connection reads, its handshake too, by one moment; mixed into the connections of redis-py."""

    deadline = 0.0

    def read_response(self, *arguments: Any, **options: Any) -> Any:  # Any: as in redis-py
        connection: Any = super()
        left_s = self.deadline - time.monotonic()
        if left_s <= 0 or not connection.can_read(left_s):
            raise NoAnswerError("the server does not answer")
        return connection.read_response(*arguments, **options)


def _words_of_cluster(error: Exception) -> str:
    """Return what a Redis Cluster means, where it has not done what it was asked for."""
    server = _moved_to(error)
    if server is not None:
        return f"the Redis Cluster has this pool on {server.get('host', '')}:{server['port']}: give the address of that"
    # Half of the keys may be on another server, or the next one that is made would be: they are in no one's hands.
    if isinstance(error, AskError | TryAgainError) or str(error).split()[:1] in (["ASK"], ["TRYAGAIN"]):
        return "the Redis Cluster is moving this pool to another server: it will answer when that is done"
    return ""


def _moved_to(error: Exception) -> dict[str, object] | None:
    """Return the server that has the keys, where this is what a Redis Cluster answers: `MOVED 3999 10.0.0.7:6381`."""
    words = str(error).split()
    if not (isinstance(error, MovedError) or words[:1] == ["MOVED"]):  # redis-py 5 has no class for it here
        return None
    host, _, port = words[-1].rpartition(":")
    return {"host": host, "port": int(port)} if host else {"port": int(port)}


def _connection_options(url: str, timeout_s: float) -> tuple[Any, dict[str, Any]]:  # Any: redis-py has no types for it
    """Return the class of the connection that a URL asks for, and its arguments."""
    library: Any = import_module("redis.connection")
    with _refusing(url):
        options: dict[str, Any] = library.parse_url(url)
    if "path" in options and not hasattr(socket, "AF_UNIX"):
        raise ConfigError("url", without_password(url), "redis:// or rediss://: this system has no Unix sockets")
    kind = options.pop("connection_class", library.Connection)
    for name in ("max_connections", "timeout", "retry_on_error"):
        options.pop(name, None)
    options |= {
        # Connecting, or a handshake of TLS, may take as long as an answer after it.
        "socket_connect_timeout": timeout_s / 2,
        "socket_timeout": timeout_s / 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "decode_responses": False,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "protocol": 2,
    }
    return type(f"Bounded{kind.__name__}", (_Deadline, kind), {}), options


@contextlib.contextmanager
def _refusing(url: str) -> Generator[None]:
    """Turn what redis-py says of a URL into a ConfigError that shows no password."""
    try:
        yield
    except TypeError as error:  # it names the option
        raise ConfigError("url", without_password(url), f"{_URL}: {error}") from None
    except (RedisError, ValueError, AttributeError):  # these may hold a part of the password
        raise ConfigError("url", without_password(url), _URL) from None


def _read_node(key: str, told: bytes, leased_bytes: int, now: int) -> Node:
    at_us, _, text = told.split(b" ", 2)
    name, host, pid, used, limit, headroom, level, interval_s = json.loads(text)
    return Node(
        id=key, name=name, host=host, pid=pid, used_bytes=used, limit_bytes=limit, headroom_bytes=headroom,
        level=Level(level), leased_bytes=leased_bytes, age_s=max(now - int(at_us), 0) / 1e6, interval_s=interval_s,
    )  # fmt: skip
