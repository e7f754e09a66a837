"""Whether the running process leaks, what leaks, and which object holds it."""

from memtools.leaks._diagnosis import Diagnosis, Leak
from memtools.leaks._investigate import Investigator, investigate, investigate_async

__all__ = ["Diagnosis", "Investigator", "Leak", "investigate", "investigate_async"]
