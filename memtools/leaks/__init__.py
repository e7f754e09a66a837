"""Does this process leak, what, and who holds it: asked while it runs."""

from memtools.leaks._diagnosis import Diagnosis, Leak
from memtools.leaks._investigate import BackgroundInvestigation, Investigator, investigate, investigate_async

__all__ = ["BackgroundInvestigation", "Diagnosis", "Investigator", "Leak", "investigate", "investigate_async"]
