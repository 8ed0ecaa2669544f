"""What is read from an answer that is a failure."""

from __future__ import annotations

import email.utils
import json
import time

import aiohttp
import pytest

from raft.llm.endpoint_errors import LONGEST_SAID, StatusError, failure_of, one_line, retry_after_seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "soon"}, 9.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "later"}, None),
        ({}, None),
    ],
)
def test_how_long_an_answer_asks_to_wait(headers, seconds):
    assert retry_after_seconds(headers) == seconds


def test_a_date_is_counted_from_now():
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3500 < retry_after_seconds({"retry-after": in_an_hour}) <= 3600


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (429, {"message": "slow down"}, "limited"),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "quota"),
        (402, {"message": "Insufficient Balance"}, "quota"),
        (401, {"message": "no"}, "key"),
        (403, {"message": "no"}, "key"),
        (403, {"message": "Your input was flagged"}, "refused"),
        (404, {"message": "no such model"}, "model"),
        (400, {"message": "no", "code": "context_length_exceeded"}, "too_long"),
        (422, {"message": "no"}, "refused"),
        (408, {"message": "no"}, "passing"),
        (529, {"message": "overloaded"}, "passing"),
    ],
)
def test_the_kind_of_a_refusal(status, said, kind):
    failure = failure_of(StatusError(status, json.dumps({"error": said}), {}))
    assert (failure.kind, failure.status) == (kind, status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aiohttp.ClientConnectorError(None, OSError(111, "Connection refused")), "unreachable"),
        (aiohttp.ClientConnectorDNSError(None, OSError(-2, "Name or service not known")), "unreachable"),
        (aiohttp.ClientConnectorCertificateError(None, OSError("certificate verify failed")), "unreachable"),
        (aiohttp.ClientProxyConnectionError(None, OSError(111, "Connection refused")), "unreachable"),
        (aiohttp.ConnectionTimeoutError("no connection"), "unreachable"),
        (aiohttp.ServerDisconnectedError(), "passing"),
        (aiohttp.ClientOSError(104, "Connection reset by peer"), "passing"),
        (aiohttp.ClientPayloadError("not completed"), "passing"),
    ],
)
def test_a_connection_that_never_stood_is_told_from_one_that_broke(error, kind):
    assert failure_of(error).kind == kind


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"error": {"param": "seed"}}', "seed"),
        ('{"param": "seed"}', "seed"),
        ('{"error": {"param": null}}', None),
        ('{"error": "seed"}', None),
        ("[1]", None),
        ("<p>502</p>", None),
    ],
)
def test_the_parameter_that_a_refusal_names(text, param):
    assert failure_of(StatusError(400, text, {})).param == param


def test_a_message_is_one_bounded_line_without_secrets():
    said = one_line("bad key sk-12345678\n\n<p>of\tyou</p>" + "x" * 5000, ["sk-12345678"])
    assert said.startswith("bad key *** <p>of you</p>xxx")
    assert len(said) < LONGEST_SAID + 10
