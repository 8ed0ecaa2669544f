"""What in a text points at a person: small patterns, each with the check that keeps chance matches out.

    pii_kinds("Call Ada on (212) 555-0147 or write to ada@example.org.")     -> ("email", "phone")
    pii_kinds("Invoice 4111 1111 1111 1112")                                 -> ()   (the check digit is wrong)

A question with one of these is flagged ("pii_email"); whether it is refused is a setting. Names and addresses are
not looked for: telling a patient from a drug or a company takes a model, and no pattern does it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}(?![\w-])", re.IGNORECASE
)
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}"  # +44 20 7946 0018
    r"|\(\d{3}\)[ ]?\d{3}[ .-]\d{4}"  # (212) 555-0147
    r"|(?:1[ .-])?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}"  # 212-555-0147
    r")(?![\w/-]|[.,]\d)"
)
_NAMED_PHONE = re.compile(r"(?<!\w)(?:phone|tel|telephone|mobile|fax)\b\.?[ :]{0,3}\d(?:[ .-]?\d){7,11}(?!\w)", re.I)
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{1,7}|([ -]?)\d{6}\2\d{4,5})(?![\w-]|\.\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"(?<![\w.-])(\d{3})([ -])(\d{2})\2(\d{4})(?![\w-]|\.\d)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_NUMBERED_PART = re.compile(
    r"(?:\b(?:sections?|clauses?|paragraphs?|articles?|chapters?|version|v|no|rules?)\.?|§)\s*$", re.I
)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
_NHS = re.compile(r"\bNHS\b[^\d\n]{0,20}(\d{3}[ -]?\d{3}[ -]?\d{4})(?!\d)")
_PASSPORT = re.compile(
    r"\bpassport\b[ ]?(?:no\b\.?|nr\b\.?|number|#)?[ ]?(?:is|:)?[ ]?([A-Z]{0,2}\d{6,9})(?!\w)", re.IGNORECASE
)
_DATE = (
    r"(?:\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}|\d{1,2}(?:st|nd|rd|th)? [a-z]{3,9}\.?,? \d{4}|[a-z]{3,9}\.? \d{1,2},? \d{4})"
)
_BORN = re.compile(rf"\b(?:date of birth|birth ?date|d\.?o\.?b\b\.?|born(?: on)?)(?: is| was)?[ :]{{1,3}}{_DATE}", re.I)

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GI": 23, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26,
    "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25,
    "RO": 24, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26,
}  # fmt: skip


def pii_kinds(text: str) -> tuple[str, ...]:
    """The kinds of personal data in a text, in a fixed order and once each; empty when there is none."""
    return tuple(kind for kind, found in _FINDERS if found(text))


def pii_flags(*texts: str) -> tuple[str, ...]:
    """The flags for a question and whatever goes with it: ``pii_email`` and so on, once each."""
    return tuple(f"pii_{kind}" for kind in pii_kinds("\n".join(texts)))


def luhn_is_right(digits: str) -> bool:
    """The check of card numbers (ISO/IEC 7812-1, annex B): every second digit from the right counts double."""
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value // 10 + value % 10 for value in doubled) % 10 == 0


def iban_is_right(iban: str) -> bool:
    """Length of its country and remainder 1 by 97 (ISO 13616-1 and ISO/IEC 7064, MOD 97-10)."""
    if len(iban) != _IBAN_LENGTHS.get(iban[:2]):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def nhs_is_right(digits: str) -> bool:
    """The modulus 11 check of an NHS number (NHS Data Dictionary, "NHS NUMBER"): weights 10 to 2, then the check
    digit."""
    rest = 11 - sum(int(digit) * weight for digit, weight in zip(digits[:9], range(10, 1, -1), strict=True)) % 11
    return rest % 11 == int(digits[9]) and rest != 10


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _has_phone(text: str) -> bool:
    found = [match.group() for match in _PHONE.finditer(text)]
    return bool(_NAMED_PHONE.search(text)) or any(8 <= len(_digits(number)) <= 15 for number in found)


def _has_card(text: str) -> bool:
    found = [_digits(match.group()) for match in _CARD.finditer(text)]
    return any(13 <= len(number) <= 19 and len(set(number)) > 1 and luhn_is_right(number) for number in found)


def _has_iban(text: str) -> bool:
    for match in _IBAN.finditer(text):
        joined = match.group().replace(" ", "")
        if iban_is_right(joined[: _IBAN_LENGTHS.get(joined[:2], 0)]):  # a capital word may follow it
            return True
    return False


def _has_ssn(text: str) -> bool:
    """Numbers that the Social Security Administration gives out: no area 000, 666 or 9xx, no group 00, no 0000."""
    return any(
        area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
        for area, _, group, serial in _SSN.findall(text)
    )


def _has_ip(text: str) -> bool:
    """Addresses of machines in the world: none of a version, a numbered clause, a private net or an example."""
    candidates = [
        match.group()
        for pattern in (_IPV4, _IPV6)
        for match in pattern.finditer(text)
        if not _NUMBERED_PART.search(text[max(0, match.start() - 16) : match.start()])
    ]
    return any(_is_public(candidate) for candidate in candidates)


def _is_public(candidate: str) -> bool:
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    if address.version == 4 and max(address.packed) < 20:  # 1.2.3.4 is a heading far more often than a machine
        return False
    return address.is_global and not address.is_multicast


def _has_nhs_number(text: str) -> bool:
    return any(nhs_is_right(_digits(number)) for number in _NHS.findall(text))


def _has(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.search(text) is not None


_FINDERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("email", _has(_EMAIL)),
    ("phone", _has_phone),
    ("card", _has_card),
    ("iban", _has_iban),
    ("ssn", _has_ssn),
    ("ip", _has_ip),
    ("nhs", _has_nhs_number),
    ("passport", _has(_PASSPORT)),
    ("birth_date", _has(_BORN)),
)
