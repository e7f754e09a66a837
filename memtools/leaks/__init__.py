"""Does this process leak, what, and who holds it: asked while it runs."""

from memtools.leaks._alongside import Alongside
from memtools.leaks._diagnosis import Diagnosis, Leak
from memtools.leaks._investigate import investigate, investigate_async
from memtools.leaks._investigator import Investigator

__all__ = ["Alongside", "Diagnosis", "Investigator", "Leak", "investigate", "investigate_async"]
