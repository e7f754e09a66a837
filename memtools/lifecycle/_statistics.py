"""What a component owns and how its tasks fared, as one frozen record."""

from memtools.records import as_dict, record


@record
class ComponentStatistics:
    """What a component owns, at one moment.

    Attributes:
        name: the component's name.
        state: `"open"`, `"shutting down"` or `"ended"`.
        tasks: its tasks that have not ended.
        owned: the other things that it owns: pools, caches, children.
        failed: tasks of it that raised, before it was shut down.
    """

    name: str
    state: str
    tasks: int
    owned: int
    failed: int

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dict that JSON can hold."""
        return as_dict(self)
