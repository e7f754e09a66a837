"""Things that live for a while and then end, all that belongs to them included."""

from memtools.lifecycle._component import Component, ComponentStatistics
from memtools.lifecycle._weak_parent import WeakParent

__all__ = ["Component", "ComponentStatistics", "WeakParent"]
