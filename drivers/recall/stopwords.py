"""English words that say nothing of what a question is about.

Pure functions, called by whoever plans the words' part of a ranking by words and meaning; a search
by words alone knows no stop words, for `the who` is a band (docs/design/0003, section 5).
"""

from collections.abc import Mapping
from typing import Final

from memosd.drivers.recall.words import fold

__all__ = ["STOP_WORDS", "content_words"]

_TEXT: Final = (
    "a an the and or but if then else of at by for with about against between into through during "
    "before after above below to from up down in out on off over under again further once here "
    "there when where why how all any both each few more most other some such no nor not only own "
    "same so than too very s t can will just don should now i me my myself we our ours ourselves "
    "you your yours yourself yourselves he him his himself she her hers herself it its itself they "
    "them their theirs themselves what which who whom this that these those am is are was were be "
    "been being have has had having do does did doing would could might may must shall d ll m o re "
    "ve"
)

STOP_WORDS: Final = frozenset(_TEXT.split())
"""The usual list, with modal verbs and the tails of contractions (`she'll`)."""


def content_words(terms: Mapping[str, str]) -> dict[str, str]:
    """Of a query's terms (key -> word, quoted or not), those that are no stop words; else all."""
    content = {key: word for key, word in terms.items() if fold(word.strip('"')) not in STOP_WORDS}
    return content or dict(terms)
