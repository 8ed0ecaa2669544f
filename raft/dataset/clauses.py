"""Where in its sentence an answer stands: what belongs to it, whether it can be asked for, and how a question opens.

    A drug round is begun within 2 hours of the alarm.       -> "Within how many hours"
    A pump that cannot be found for 14 days is lost.         -> cannot be asked for: a small teacher asks for how long
                                                                the pump is lost
    A certified copy costs 8 marns for each page.            -> the answer is "8 marns for each page"

The rules are those of English: in a text without one of its commonest words, everything can be asked for, and no
question has an opening.
"""

from __future__ import annotations

import re

_SUBORDINATE = re.compile(
    r"\b(?:that|which|who|whom|whose|if|where|when|whenever|unless|until|because|whatever|whether|while|than|except"
    r"|(?<!at )once|as soon as|provided)\b",
    re.IGNORECASE,
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|must|may|might|shall|should|can|could|will|would|has|have|had|does|do|did|needs?|requires?"
    r"|receives?|costs?|pays?|lasts?|applies|apply|becomes?|gives?|gets?|goes|go|means)\b"
)
_CLAUSE_BREAK = re.compile(r"[,;:]\s")
_TWO_SENTENCES = re.compile(r";\s|,\s(?:and|but|so|yet)\s")
_PLACE = re.compile(  # what may lead to an answer that begins its clause: "Within", "For the"
    r"\W*(?:(?:after|at|before|between|by|during|for|from|in|on|over|to|under|until|up to|with|within)\s)?"
    r"(?:at (?:least|most)\s)?(?:(?:the|an?|each|every)\s)?$",
    re.IGNORECASE,
)

_AMOUNT = (
    r"(?:\d+(?:[.,]\d+)*|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty"
    r"|forty|fifty|sixty|ninety)\b(?:\s\(\d+\))?)"
)
_TAIL = re.compile(  # belongs to the amount before it
    r"\s(?:or (?:more|less|fewer|over|under|older|younger|above|below|longer|later)\b|(?:late|early|earlier|later|apart"
    r"|old)\b|(?:(?:for|at|on|in|to) each|per|for every|at every)(?: (?:calendar|cubic|full|further|square|working))?"
    r" [a-z]+)",
)
_HEAD = re.compile(  # belongs to the amount behind it
    rf"\b(?:(?:(?:not?\s)?more often than\s)?every|between|from {_AMOUNT} to|from(?=\s{_AMOUNT}\s?(?:to|-|–))"
    r"|(?:the )?(?:first|last|next)|another|a further|an? extra|about|exactly|only)\s",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"\s?(?:and|or|to|-|–)\s?{_AMOUNT}")  # "14 and 40 days"
_ONE_OF = re.compile(rf"{_AMOUNT}\s(?:to|or)\s$")
_LISTED = re.compile(r",\s(?:and|or)\s(?:after|at|before|by|every|for|in|on|then|until|within)\b")
_SET_APART = re.compile(
    r"\b(?:outside|apart from|besides|except|including|like|other than|such as|without|not)\s(?:an?\s|the\s)?$",
    re.IGNORECASE,
)
_BESIDE_NAME = re.compile(r",\s$")  # "the fracture nurse, Dilys Harkaway": what is asked for would be the nurse
_LOOSE_BOUND = re.compile(r"\bof\s$")  # "any dose of more than 50 units"
_BOUND_WORD = re.compile(r"(?:over|under|above|below|(?:more|less|fewer)\sthan)\b", re.IGNORECASE)
_OWNS = re.compile(r"['’]")  # "ten weeks' rent"
_JOINED = re.compile(r",?\s(?:and|or|as well as|together with)\s")
_GOES_ON = re.compile(  # what may follow a name: not the noun that it belongs to ("Juniper Unit registrar")
    r"\s*(?:$|[.,;:!?)])|\s\(?(?:(?:a|after|an|as|at|before|between|but|by|during|for|from|if|in|into|is|may|must|no"
    r"|not|of|on|over|per|shall|should|so|that|the|then|to|under|unless|until|when|where|which|while|who|with|within"
    r"|without|can|could|will|would|are|was|were|once|alone|only)\b|\w+(?:s|ed|ly)\b)"
)

_QUANTITY = re.compile(
    rf"(?P<head>\D*?)(?P<amount>{_AMOUNT}(?:\s?(?:-|–|to|and)\s?{_AMOUNT})?)(?P<unit>\s?.*)", re.IGNORECASE | re.DOTALL
)
_UNIT_END = re.compile(
    r"\s(?:or (?:more|less|fewer|over|under|older|younger|above|below|longer|later)"
    r"|(?:for|at|on|in|to) each|for every|at every|every|once|twice)\b.*",
    re.DOTALL,
)
_LEADS = re.compile(
    r"\b(on or (?:after|before)|after|at|before|by|for|from|into|in|on|over|to|under|until|with|within|up to)\s"
    r"(?:an?\s|the\s)?$",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(r"\s(after|before|of)\b")  # what the amount is counted from, or counts
_ASKED_BOUND = re.compile(
    r"\b(?:at least|at most|up to|below|under|above|over|(?:not?\s)?\w+(?:er|re|ss)\sthan|the first|first|the last|last"
    r"|the next|next)\s*$",
    re.IGNORECASE,
)
_ENGLISH = re.compile(  # one of the words that few other languages have, or two of those that some have
    r"\b(?:the|and|with|must|should|within|each|every|your|they|which|before|until|needs)\b"
    r"|\b(is|of|are|may|for|by|be|not|to|from|after|over|if|you|give|take|at)\b(?=.*\b(?!\1\b)"
    r"(?:is|of|are|may|for|by|be|not|to|from|after|over|if|you|give|take|at)\b)",
    re.IGNORECASE | re.DOTALL,
)
_LONGEST_ABBREVIATION = 2  # characters: "mg", "ml"
_OF_ONE = re.compile(r"(?:a|one|1)(?:\s\(\d+\))?", re.IGNORECASE)
_SORTS = ("business", "calendar", "clear", "consecutive", "cubic", "full", "further", "square", "whole", "working")
_PLURALS = {"foot": "feet", "person": "people", "child": "children", "man": "men", "woman": "women"}


def whole_answer(text: str, sentence: tuple[int, int], span: tuple[int, int]) -> tuple[int, int]:
    """The span of an amount with what belongs to it: "every 4 hours", "the first 20 minutes", "1.5 degrees or more",
    "8 marns for each page"."""
    start, end = span
    around = range(max(sentence[0], start - 30), start)
    head = next((found for at in around if (found := _HEAD.match(text, at)) and found.end() == start), None)
    tail = _TAIL.match(text, end, sentence[1])
    return head.start() if head else start, tail.end() if tail else end


def can_be_asked(text: str, sentence: tuple[int, int], span: tuple[int, int], kind: str) -> bool:
    """Whether the answer is whole, and stands in a main clause, behind its verb or at its beginning; always, in a text
    that is not English."""
    if not _ENGLISH.search(text):
        return True
    said = text[sentence[0] : span[0]], text[slice(*span)], text[span[1] : sentence[1]]
    if _is_part(*said, kind) or _says_two_things(text[slice(*sentence)]):
        return False
    clause = said[0][max((match.end() for match in _CLAUSE_BREAK.finditer(said[0])), default=0) :]
    if _SUBORDINATE.search(" ".join(clause.split()[:-1])):
        return False
    breaks = [match.start() for pattern in (_CLAUSE_BREAK, _SUBORDINATE) for match in pattern.finditer(said[2])]
    return bool(_PLACE.match(clause)) or not _FINITE.search(said[2][: min(breaks, default=len(said[2]))])


def _says_two_things(sentence: str) -> bool:
    """Whether two sentences are joined to one: a question about either would have to leave out the other."""
    return sum(_FINITE.search(part) is not None for part in _TWO_SENTENCES.split(sentence)) > 1


def _is_part(before: str, answer: str, after: str, kind: str) -> bool:
    """Whether the answer is a part of a longer one: of a list, of a name, of what somebody owns, or says what something
    is not."""
    if _OWNS.match(after) or _SET_APART.search(before):
        return True
    if kind == "number":
        loose = _BOUND_WORD.match(answer) and _LOOSE_BOUND.search(before)
        return bool(loose or _ANOTHER.match(after) or _LISTED.match(after) or _ONE_OF.search(before))
    if kind == "name" and (_BESIDE_NAME.search(before) or not _GOES_ON.match(after)):
        return True
    return bool(_JOINED.match(after))


def opening(text: str, sentence: tuple[int, int], span: tuple[int, int], kind: str) -> str:
    """The words with which a question for this answer asks: "Within how many hours of", "From which date", "With what".
    "" where the rules know none."""
    if not _ENGLISH.search(text):
        return ""
    leads = _LEADS.search(text, max(sentence[0], span[0] - 16), span[0])
    lead = " ".join(leads[1].split()).lower() if leads else ""
    said = " ".join(text[slice(*span)].split())
    follows = _FOLLOWS.match(text, span[1], sentence[1])
    asked = {"number": _asks_amount, "date": _asks_date, "phrase": lambda *_: "what"}.get(kind, lambda *_: "")(said)
    if not asked or (kind != "number" and not lead):
        return ""
    if asked == "how often":
        return "How often"
    words = " ".join([*([lead] if lead else []), asked, *([follows[1]] if follows and kind == "number" else [])])
    return words[:1].upper() + words[1:]


def _asks_date(said: str) -> str:
    return "which year" if re.fullmatch(r"\d{4}", said) else "which date"


def _asks_amount(said: str) -> str:
    """ "at least how many days" for "at least 7 days"; "" for what is no amount of a thing."""
    found = _QUANTITY.fullmatch(said)
    if found is None:
        return ""
    head, unit = found["head"].strip().lower(), _UNIT_END.sub("", found["unit"]).strip()
    if head.endswith("every"):
        return "how often"
    if head[-1:] in ("$", "€", "£", "¥") or head in ("usd", "eur", "gbp"):
        return "how much"
    if unit.startswith("years") and head in ("over", "under", "above", "below"):
        return f"{head} what age"
    bound = f"{head} " if _ASKED_BOUND.fullmatch(head) else ""
    if percent := re.match(r"(?:%|per ?cent\b)", unit):
        return f"{bound}what percentage{unit[percent.end() :]}"
    if not unit or unit.startswith(("per ", "-")):
        return ""
    return f"{bound}how many {_plural(unit) if _OF_ONE.fullmatch(found['amount']) else unit}"


def _plural(unit: str) -> str:
    """What is counted, of many instead of one: "working days a month" for "working day a month"; abbreviations stay as
    they are."""
    words = unit.split()
    at = next((n for n, word in enumerate(words) if word not in _SORTS), 0)
    noun = words[at]
    if len(noun) > _LONGEST_ABBREVIATION and noun.isalpha() and not noun.endswith("s"):
        ending = "es" if noun.endswith(("ch", "sh", "x")) else "s"
        regular = f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}{ending}"
        words[at] = _PLURALS.get(noun, regular)
    return " ".join(words)
