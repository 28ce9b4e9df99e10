"""How the bundled model `emoji` was made: its captions, edits and questions as token sequences."""

from __future__ import annotations

from benchmarks.recipes.curriculum import Curriculum

from ..edits import sample_edit
from ..questions import QUESTION_TYPES, sample_question
from ..text import sample_caption

# What asks for one of a thousand names is hard, so it is asked more often.
ALL_KINDS = (*QUESTION_TYPES, "name", "name", "name", "name", "kind", "presence", "presence", "place", "place")
# The kinds of questions up to a share of all steps: first what needs the names.
_PHASES = ((0.4, ("name", "name", "name", "kind", "background", "place")), (1.0, ALL_KINDS))

CURRICULUM = Curriculum(sample_caption, sample_edit, sample_question, _PHASES)
