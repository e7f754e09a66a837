"""A file that says who held what, for after the process was killed."""

from memtools.black_box._black_box import BlackBox
from memtools.black_box._post_mortem import Holding, PastReading, PostMortem
from memtools.black_box._reader import read_black_box

__all__ = ["BlackBox", "Holding", "PastReading", "PostMortem", "read_black_box"]
