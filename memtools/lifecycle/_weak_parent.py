"""An attribute that refers weakly to a parent object.

A file of its own because it does not depend on components.
"""

from typing import Any, Generic, Self, TypeVar, overload
from weakref import ref

from memtools.errors import ConfigError

P = TypeVar("P")


class WeakParent(Generic[P]):
    """An attribute that refers to a parent weakly, so that parent and child form no reference cycle.

    ```python
    class Shop:
        pass

    class Shelf:
        shop = WeakParent[Shop]()

        def __init__(self, shop: Shop) -> None:
            self.shop = shop

    shop = Shop()
    shelf = Shelf(shop)
    assert shelf.shop is shop
    del shop
    assert shelf.shop is None  # freed at once, without the garbage collector
    ```

    Reading gives None after the parent's end, and before a parent was set. A class with `__slots__` needs a slot for
    the reference: `_shop_reference` for an attribute `shop`. A pickled child has no parent. A deep copy that includes
    the parent refers to the copy.

    Raises:
        ConfigError: on setting an object that cannot be weakly referenced.
    """

    __slots__ = ("_attribute", "_name")

    def __init__(self) -> None:
        self._name = self._attribute = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name
        self._attribute = f"_{name.lstrip('_')}_reference"

    @overload
    def __get__(self, child: None, owner: type[Any]) -> Self: ...
    @overload
    def __get__(self, child: object, owner: type[Any]) -> P | None: ...
    def __get__(self, child: object | None, owner: type[Any]) -> Self | P | None:
        if child is None:
            return self
        reference: _ParentRef[P] | None = getattr(child, self._attribute, None)
        return None if reference is None else reference()

    def __set__(self, child: object, parent: P | None) -> None:
        try:
            reference = None if parent is None else _ParentRef(parent)
        except TypeError:
            accepted = "an object that can be weakly referenced (a class with slots needs `__weakref__`), or None"
            raise ConfigError(self._name, parent, accepted) from None
        setattr(child, self._attribute, reference)

    def __delete__(self, child: object) -> None:
        setattr(child, self._attribute, None)


class _ParentRef(ref[P]):
    """A weak reference that can be copied and pickled along with the child that holds it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle that included the parent would include all that hangs on it; the copy of the child has no parent.
        return _no_parent, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_ParentRef[P] | None":
        parent = self()
        if parent is None:
            return None
        # Copied together with its parent the child belongs to the copy; copied alone, to the same parent as before.
        return _ParentRef(memo.get(id(parent), parent))


def _no_parent() -> None:
    return None
