"""Xml: journal articles (JATS), and any other as the text of its elements in order.

From a JATS article such as ::

    <article><front><article-meta><title-group><article-title>Sepsis</article-title></title-group>
      <pub-date><year>2024</year><month>3</month></pub-date><abstract><p>Early fluids help.</p></abstract>
    </article-meta></front><body><sec><title>Methods</title><p>We gave 30 ml/kg.</p></sec></body></article>

come "# Sepsis", "## Abstract", "Early fluids help.", "## Methods" and "We gave 30 ml/kg.", with the date 2024-03; the
list of references is left out. No entity is looked up, no DTD is loaded: ``&xxe;`` stands for nothing.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raft.errors import InputError
from raft.readers.plain import Limits, file_document, iso_date, one_line, table_row
from raft.records import Document

if TYPE_CHECKING:
    from lxml.etree import _Element

_MAX_HEADING = 6


def parse_xml(data: bytes) -> _Element:
    """The root of an xml file. Raises InputError when it is damaged."""
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(data, parser)
    except etree.LxmlError as error:
        raise InputError(f"damaged xml ({one_line(str(error))[:120]})") from None
    if root is None:
        raise InputError("damaged xml (it has no elements)")
    return root


def tag_of(element: _Element) -> str:
    """The tag without its namespace; "" for what is no element (an entity)."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def text_of(element: _Element) -> str:
    """All text inside an element, in order, on one line."""
    return one_line("".join(_strings(element)))


def _strings(element: _Element) -> Iterator[str]:
    yield element.text or "" if tag_of(element) else _named_character(element)
    for child in element:
        yield from _strings(child)
        yield child.tail or ""


def _named_character(entity: _Element) -> str:
    """The character of an html name such as ``&nbsp;``; nothing for an entity of the file's own."""
    name = str(entity.text or "")
    found = html.unescape(name)
    return found if found != name else ""


def read_xml(data: bytes, name: str, limits: Limits) -> Document:
    """A JATS article, or any other xml as readable text."""
    root = parse_xml(data)
    articles = [root] if tag_of(root) == "article" else [item for item in root if tag_of(item) == "article"]
    articles = [item for item in articles if _first(item, "front") is not None or _first(item, "body") is not None]
    if articles:
        return _read_jats(articles, name)
    return file_document(name, "\n\n".join(_blocks(root)), "xml")


def _first(element: _Element, tag: str) -> _Element | None:
    """The first element of this tag somewhere inside."""
    return next((item for item in element.iter(f"{{*}}{tag}") if item is not element), None)


# --- any xml -----------------------------------------------------------------------------------------------------

_HEADING_TAGS = {"title", "heading", "head", "header", "h1", "h2", "h3"}


def _blocks(element: _Element) -> Iterator[str]:
    """The paragraphs of an element: one for each that has text of its own, with all that stands inside it."""
    own = [element.text or "", *(child.tail or "" for child in element)]
    if any(part.strip() for part in own) or not any(tag_of(child) for child in element):
        text = text_of(element)
        if text:
            yield f"## {text}" if tag_of(element).lower() in _HEADING_TAGS and len(text) < 200 else text
    elif tag_of(element).lower() in ("tr", "row") and all(not len(child) for child in element):
        yield table_row([text_of(cell) for cell in element])
    else:
        for child in element:
            yield from _blocks(child)


# --- JATS --------------------------------------------------------------------------------------------------------

_LEFT_OUT = {"ref-list", "label", "object-id", "fn-group", "supplementary-material", "title"}


def _read_jats(articles: list[_Element], name: str) -> Document:
    blocks = [block for article in articles for block in _jats_blocks(article)]
    meta = _first(articles[0], "front")
    meta = articles[0] if meta is None else meta
    title = _first(meta, "article-title")
    metadata = {"date": _jats_date(meta), "author": ", ".join(_jats_authors(meta))}
    text = "\n\n".join(block for block in blocks if block)
    return file_document(name, text, "jats", "" if title is None else text_of(title), metadata)


def _jats_blocks(article: _Element) -> Iterator[str]:
    front = _first(article, "front")
    if front is not None:
        title = _first(front, "article-title")
        yield "" if title is None else f"# {text_of(title)}"
        for abstract in front.iter("{*}abstract"):
            heading = next((text_of(item) for item in abstract if tag_of(item) == "title"), "Abstract")
            yield f"## {heading}"
            yield from _section(abstract, 2)
    for part in article:
        if tag_of(part) in ("body", "back"):
            yield from _section(part, 1)


def _section(section: _Element, level: int) -> Iterator[str]:
    """The blocks of a section, its own title left to the caller."""
    for item in section:
        tag = tag_of(item)
        if tag in ("sec", "ack", "app", "app-group", "notes", "glossary", "boxed-text", "sub-article"):
            titles = [text_of(child) for child in item if tag_of(child) == "title"]
            yield f"{'#' * min(level + 1, _MAX_HEADING)} {titles[0]}" if titles and titles[0] else ""
            yield from _section(item, level + 1)
        elif tag in ("table-wrap", "fig", "table-wrap-group", "fig-group"):
            yield from _float(item)
        elif tag == "list":
            yield "\n".join(f"- {text_of(entry)}" for entry in item if tag_of(entry) == "list-item")
        elif tag and tag not in _LEFT_OUT:
            yield text_of(item)


def _float(item: _Element) -> Iterator[str]:
    """A figure's caption, or a table: its caption and a line a row."""
    named = [text_of(part) for part in item.iter("{*}label", "{*}caption")]
    rows = [table_row([text_of(cell) for cell in row if tag_of(cell) in ("td", "th")]) for row in item.iter("{*}tr")]
    yield "\n".join(line for line in (" ".join(named), *rows) if line)


def _jats_date(meta: _Element) -> str:
    dates = []
    for date in meta.iter("{*}pub-date"):
        parts = {tag_of(part): text_of(part) for part in date}
        numbers = [part.zfill(2) for part in (parts.get("year", ""), parts.get("month", ""), parts.get("day", ""))]
        known = next(
            (at for at, part in enumerate(numbers) if not re.fullmatch(r"\d\d|\d{4}", part) or part == "00"), 3
        )
        dates.append(iso_date("-".join(numbers[:known])))
    return max(dates, key=len, default="")


def _jats_authors(meta: _Element) -> Iterator[str]:
    for contributor in meta.iter("{*}contrib"):
        if contributor.get("contrib-type", "author") == "author":
            given, family = _first(contributor, "given-names"), _first(contributor, "surname")
            words = one_line(" ".join(text_of(part) for part in (given, family) if part is not None))
            if words:
                yield words
