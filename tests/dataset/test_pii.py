from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.pii import iban_is_right, luhn_is_right, nhs_is_right, pii_flags, pii_kinds

DIGITS = st.text("0123456789", min_size=1, max_size=18)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Write to ada.lovelace+ward@mail.example.org, please.", ("email",)),
        ("Call +44 20 7946 0018 before noon.", ("phone",)),
        ("Call (212) 555-0147.", ("phone",)),
        ("Call 212-555-0147 or 1-212-555-0147.", ("phone",)),
        ("Tel: 030 1234567", ("phone",)),
        ("Card 4111 1111 1111 1111 expires soon.", ("card",)),
        ("Card 378282246310005.", ("card",)),
        ("Pay to GB82 WEST 1234 5698 7654 32 today.", ("iban",)),
        ("DE89370400440532013000", ("iban",)),
        ("His number is 078-05-1120.", ("ssn",)),
        ("It came from 81.2.69.160 last night.", ("ip",)),
        ("It came from 2a00:1450:4009:80b::200e.", ("ip",)),
        ("NHS number: 943 476 5919", ("nhs",)),
        ("Passport no. C01234567 was lost.", ("passport",)),
        ("The patient was born on 3 May 1961.", ("birth_date",)),
        ("DOB: 1961-05-03, mail a@b.co", ("email", "birth_date")),
    ],
)
def test_personal_data_is_found(text, kinds):
    assert pii_kinds(text) == kinds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What does section 12.3.4.5 say of the 2020-2021 season?",
        "Version 81.2.69.160 of the program",
        "The host 192.168.0.1 and 127.0.0.1 are local; so is ::1.",
        "Give 12 mg at 08:30:00 and 4111 1111 1111 1112 more.",
        "Clause 1.2.3.4 applies to all of 10.000.000 shares.",
        "The trial NCT04280705 ran from 2020-03-01 to 2020-10-31.",
        "The share price was 123-45-67 to 987-65-4321.",
        "Under 42 U.S.C. 1983 and Article 5 @ noon",
        "She was born in 1961 in York.",
        "A passport holder must pay 200 crowns.",
        "ISBN 978-3-16-148410-0, doi 10.1056/NEJMoa2021436",
        "NHS trusts treated 943 476 5918 people.",
        "$1,250,000 due on 12/31/2020",
    ],
)
def test_ordinary_numbers_are_not(text):
    assert pii_kinds(text) == ()


def test_flags_carry_the_kind_and_stand_once():
    assert pii_flags("a@b.co", "c@d.co, 078-05-1120") == ("pii_email", "pii_ssn")


@given(DIGITS)
def test_just_one_check_digit_fits_a_card_number(digits):
    assert sum(luhn_is_right(digits + check) for check in string.digits) == 1


@given(DIGITS, st.integers(0, 17), st.integers(1, 9))
def test_the_check_of_card_numbers_sees_every_wrong_digit(digits, at, change):
    number = next(digits + check for check in string.digits if luhn_is_right(digits + check))
    at %= len(number)
    wrong = number[:at] + str((int(number[at]) + change) % 10) + number[at + 1 :]
    assert not luhn_is_right(wrong)


@given(st.text("0123456789", min_size=9, max_size=9))
def test_at_most_one_check_digit_fits_an_nhs_number(digits):
    assert sum(nhs_is_right(digits + check) for check in string.digits) <= 1


@given(st.text("0123456789", min_size=18, max_size=18), st.integers(0, 17), st.integers(1, 9))
def test_the_check_of_ibans_sees_every_wrong_digit(digits, at, change):
    check = 98 - int(digits + "131400") % 97  # D is 13, E is 14
    iban = f"DE{check:02d}{digits}"
    assert iban_is_right(iban)
    assert pii_kinds(f"Pay to {iban} AT ONCE") == ("iban",)
    wrong = iban[: 4 + at] + str((int(iban[4 + at]) + change) % 10) + iban[5 + at :]
    assert not iban_is_right(wrong)


@given(st.integers(0, 2**32 - 1))
def test_private_addresses_are_left_alone(number):
    address = ipaddress.ip_address(number)
    if not address.is_global:
        assert pii_kinds(f"The host {address} answers.") == ()


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    assert set(pii_kinds(text)) <= {"email", "phone", "card", "iban", "ssn", "ip", "nhs", "passport", "birth_date"}
