"""Leave caches and reference cycles to the shutdown of the interpreter."""

from memtools.structures import WeakCache


class Value:
    def __del__(self) -> None:
        cache.get("key")
        cache["late"] = self


cache: WeakCache[object, object] = WeakCache(on_evict=lambda key, value: None, ttl=100)
for number in range(200):
    cache[number] = Value()
everything: list[object] = [cache, Value()]
everything.append(everything)
