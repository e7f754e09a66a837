"""The containers that hold most: the longest ones, and short ones of large objects."""

import linecache
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

from memtools.heap._census import HeapGrowth, find_by_address, heap_census, is_weak_storage
from memtools.heap._inspect import (
    ITERATORS,
    REVERSE_ITERATORS,
    OwnDict,
    container_kind,
    instance_dict,
    is_any_of,
    length_of,
    newest_items,
    real_type,
)
from memtools.heap._large_objects import buffer_types, find_untracked
from memtools.heap._referrers import MAX_SAMPLES, ReferrerWalk

_MAX_SAMPLE: Final = 200  # items of a container whose sizes are taken
_TIMEOUT_S: Final = 1.0  # for the walk from large objects to the containers that hold them
_BUILT_IN: Final = (
    int, float, complex, bool, list, dict, set, tuple, frozenset, type(None)
)  # fmt: skip
_basic_size_of: Final[Any] = type.__dict__["__basicsize__"].__get__


def largest_containers(limit: int = 5, *, minimum: int = 1000) -> list[Any]:  # Any: foreign objects
    """Return the containers that hold most, the largest first; the caller holds them, and should release them soon.

    The storage of weak sets and mappings is left out, and so are tables of the interpreter.

    Args:
        limit: how many containers to return at most.
        minimum: the number of items from which on a container is considered; fewer if large objects, of 64 KiB and
            more each, are among them.

    Raises:
        ConfigError: if `minimum` is not a whole number of at least 1.
    """
    return [container for container, _ in sized_largest(limit, minimum=minimum)]


def sized_largest(limit: int = 5, *, minimum: int = 1000) -> list[tuple[Any, int]]:  # Any: foreign objects
    """Return the same as `largest_containers`, each with the bytes that it and its items take, estimated from a sample.

    Args:
        limit: see `largest_containers`.
        minimum: see `largest_containers`.

    Raises:
        ConfigError: if `minimum` is not a whole number of at least 1.
    """
    counted = heap_census(minimum=minimum)
    # More than `limit`, because some are left out below.
    longest = sorted(counted.containers.items(), key=lambda item: item[1][1], reverse=True)[: 2 * limit + 8]
    wanted = {address: HeapGrowth(counted.names[cls], 0, length, 0.0, address) for address, (cls, length) in longest}
    found = {id(container): (container, shallow_size(container)) for container in find_by_address(wanted)}
    for container, size in _containers_of(counted.large):
        found[id(container)] = container, max(size, shallow_size(container))
    sized = [(container, size) for container, size in found.values() if not _is_no_leak(container)]
    return sorted(sized, key=lambda pair: pair[1], reverse=True)[:limit]


def _is_no_leak(container: object) -> bool:
    return container is sys.modules or container is linecache.cache or is_weak_storage(container)


def _containers_of(large: Mapping[int, tuple[int, int]]) -> Iterable[tuple[Any, int]]:
    """Return the containers that hold large objects, each with the bytes of those.

    The largest objects are looked at; of the others, each container is taken to hold the same share.
    """
    sizes = {address: size for address, (_, size) in large.items()}
    largest = sorted(sizes, key=lambda address: sizes[address], reverse=True)[:MAX_SAMPLES]
    samples, holders = find_untracked(set(largest))
    walk = ReferrerWalk(samples, excluded=(samples, holders), holders=holders)
    walk.run_for(_TIMEOUT_S)
    found: dict[int, tuple[Any, int]] = OwnDict()
    for sample in samples:
        container = _nearest_container(walk.path_to_root(sample) or walk.longest_path(sample))
        if container is not None:
            found[id(container)] = container, found.get(id(container), (None, 0))[1] + sizes[id(sample)]
    walk.clear()
    share = sum(sizes.values()) / max(sum(sizes[address] for address in largest), 1)
    return [(container, int(size * share)) for container, size in found.values()]


def _nearest_container(path: Sequence[object]) -> object | None:
    for place, holder in enumerate(path[1:], 1):
        above = path[place + 1] if place + 1 < len(path) else None
        if container_kind(real_type(holder)) is None or _is_namespace(holder, above):
            continue
        return holder
    return None


def _is_namespace(holder: object, above: object) -> bool:
    # The dict of an instance, class or module; without a name above it, a dict is taken for one of a module.
    if not issubclass(real_type(holder), dict):
        return False
    return above is None or issubclass(real_type(above), types.ModuleType | type) or instance_dict(above) is holder


def shallow_size(container: object) -> int:
    """Return the bytes of a container and its items, estimated from its newest items; 0 for other objects.

    No method of an item is called: an item that is not built in counts with the basic size of its class.
    """
    kind = container_kind(real_type(container))
    if kind is None:
        return 0
    try:
        if kind is dict:
            sample = list(islice(newest_items(container), _MAX_SAMPLE))  # type: ignore[arg-type]  # it is a dict
            items = sum(map(_item_size, chain.from_iterable(sample)))
        else:
            sample = list(islice((ITERATORS.get(kind) or REVERSE_ITERATORS[kind])(container), _MAX_SAMPLE))
            items = sum(map(_item_size, sample))
    except RuntimeError:
        return 0  # another thread changed it
    return _own_size(container, kind) + (items * length_of(container) // len(sample) if sample else 0)


def _item_size(target: object) -> int:
    cls = real_type(target)
    return sys.getsizeof(target) if is_any_of(cls, (*_BUILT_IN, *buffer_types())) else int(_basic_size_of(cls))


def _own_size(container: Any, kind: type[Any]) -> int:
    return int(vars(kind)["__sizeof__"](container))
