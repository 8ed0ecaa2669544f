"""Mail: headers, the words once, and attachments by name and text."""

from __future__ import annotations

from email.message import EmailMessage

from tests.readers.files import make_docx, outcomes_of, read_one, refusal


def make_mail() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = "Alice Örrin <alice@example.com>", "bob@example.com"
    message["Subject"], message["Date"] = "Annual leave", "Fri, 16 Dec 2022 17:04:16 -0500"
    message.set_content("Staff have 27 days.\n")
    return message


def test_words_are_there_once_and_headers_are_readable() -> None:
    message = make_mail()
    message.add_alternative("<p>Staff have <b>27</b> days.</p>", subtype="html")
    document = read_one(message.as_bytes(), "x.eml")
    assert document.title == "Annual leave"
    assert document.text == (
        "# Annual leave\n\nFrom: Alice Örrin <alice@example.com>\nTo: bob@example.com\n"
        "Date: Fri, 16 Dec 2022 17:04:16 -0500\n\nStaff have 27 days."
    )
    assert document.metadata == {"author": "Alice Örrin <alice@example.com>", "date": "2022-12-16", "format": "eml"}
    assert read_one(message.as_bytes(), "1700.M1P2.host:2,S").text == document.text


def test_html_is_read_where_there_is_no_plain_text() -> None:
    message = make_mail()
    message.set_content("<p>Staff.</p><p style='display:none'>CANARY</p>", subtype="html")
    assert read_one(message.as_bytes(), "x.eml").text.endswith("\n\nStaff.")


def test_attachments_are_named_and_read() -> None:
    message = make_mail()
    message.add_attachment(make_docx(), maintype="application", subtype="octet-stream", filename="policy.docx")
    message.add_attachment(b"\x89PNG\r\n", maintype="image", subtype="png", filename="photo.png")
    message.add_attachment("id,text\n1,Row one.\n", subtype="csv", filename="a/rows.csv")
    message.add_attachment("---\nlabels: [board]\n---\nSECRET", filename="minutes.md")
    (outcome,) = outcomes_of(message.as_bytes(), "x.eml")
    text = outcome.document.text if outcome.document else ""
    assert outcome.reason.startswith("attachments not read: photo.png (")
    assert outcome.reason.endswith(", minutes.md (has access labels of its own)")
    assert "## Attachment: policy.docx\n\n# Leave Policy" in text
    assert "## Attachment: minutes.md\n\n(not read)" in text
    assert "## Attachment: photo.png\n\n(not read)" in text
    assert "## Attachment: a_rows.csv\n\nRow one." in text


def test_a_mail_in_a_mail_is_read_once() -> None:
    inner = make_mail()
    inner.add_attachment("A plan.", filename="plan.txt")
    outer = make_mail()
    outer.replace_header("Subject", "Fwd")
    outer.add_attachment(inner)
    text = read_one(outer.as_bytes(), "x.eml").text
    assert text.count("A plan.") == 1
    inner.add_attachment(b"MZ", maintype="application", subtype="octet-stream", filename="a.exe")
    outer = make_mail()
    outer.add_attachment(inner)
    (outcome,) = outcomes_of(outer.as_bytes(), "x.eml")
    assert outcome.reason.startswith("attachments not read: message.eml (attachments not read: a.exe (")
    assert text.index("# Fwd") < text.index("## Attachment: message.eml") < text.index("# Annual leave")


def test_odd_mails_are_one_outcome() -> None:
    headers = "From: a@b.c\nTo: b@b.c\nSubject: Hi\nContent-Type: {}\n\nWords.\n"
    for kind in (
        "text/plain; charset=none",
        "multipart/mixed",
        "multipart/mixed; boundary=x",
        "text",
        "a/b",
        "text/html",
    ):
        assert "Hi" in read_one(headers.format(kind), "x.eml").text
    assert refusal("From: a@b.c\n\n", "x.eml") == "holds no text"
