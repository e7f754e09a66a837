"""Components of a service, and their orderly shutdown."""

from memtools.lifecycle._component import Component, ComponentStatistics
from memtools.lifecycle._weak_parent import WeakParent

__all__ = ["Component", "ComponentStatistics", "WeakParent"]
