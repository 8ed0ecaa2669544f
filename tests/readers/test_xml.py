"""Xml: articles with their sections, other files as readable text, and no entity looked up."""

from __future__ import annotations

import pytest

from tests.readers.files import outcomes_of, read_one, refusal

JATS = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS//EN" "http://127.0.0.1:9/JATS-archivearticle1.dtd">
<article><front><article-meta>
  <title-group><article-title>Early fluids in <italic>sepsis</italic></article-title></title-group>
  <contrib-group><contrib contrib-type="author"><name><surname>Orrin</surname><given-names>T.</given-names></name>
  </contrib><contrib contrib-type="editor"><name><surname>Ed</surname></name></contrib></contrib-group>
  <pub-date><year>2023</year></pub-date><pub-date><day>5</day><month>3</month><year>2024</year></pub-date>
  <abstract><sec><title>Aim</title><p>To learn.</p></sec></abstract></article-meta></front>
<body><sec><label>1</label><title>Methods</title><p>We gave 30&nbsp;ml/kg.</p>
  <list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list>
  <sec><title>Doses</title><table-wrap><label>Table 1</label><caption><p>Doses.</p></caption>
  <table><tr><th>Drug</th><th>mg</th></tr><tr><td>A</td><td>4</td></tr></table></table-wrap></sec></sec></body>
<back><ack><p>Thanks.</p></ack><ref-list><ref><mixed-citation>REFERENCE</mixed-citation></ref></ref-list></back>
</article>"""


def test_jats_keeps_title_abstract_sections_and_tables() -> None:
    document = read_one(JATS, "x.nxml")
    assert document.title == "Early fluids in sepsis"
    assert document.text == (
        "# Early fluids in sepsis\n\n## Abstract\n\n### Aim\n\nTo learn.\n\n## Methods\n\nWe gave 30 ml/kg.\n\n"
        "- one\n- two\n\n### Doses\n\nTable 1 Doses.\nDrug | mg\nA | 4\n\nThanks."
    )
    assert document.metadata == {"date": "2024-03-05", "author": "T. Orrin", "format": "jats"}


def test_other_xml_is_its_text_in_order() -> None:
    data = """<act xmlns="urn:x"><title>Leases Act</title><!-- unseen --><s no="1"><p>A lease <b>ends</b> after
      ten years.</p></s><rows><row><c>a</c><c>b</c></row></rows></act>"""
    document = read_one(data, "x.xml")
    assert document.text == "## Leases Act\n\nA lease ends after ten years.\n\na | b"
    assert document.metadata == {"format": "xml"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_xml_of_any_declared_encoding_is_read(encoding: str) -> None:
    data = f'<?xml version="1.0" encoding="{encoding}"?><p>Gebühr</p>'.encode(encoding)
    assert read_one(data, "x.xml").text == "Gebühr"
    assert read_one(data, "x").text == "Gebühr"


def test_entities_are_not_looked_up() -> None:
    dtd = '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY % y SYSTEM "http://127.0.0.1:9/y"> ]>'
    assert (
        read_one(f"<?xml version='1.0'?>{dtd}<d><p>Dose &amp; note.</p><p>&x;</p></d>", "x.xml").text == "Dose & note."
    )


def test_entities_that_unfold_without_end_are_harmless() -> None:
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    data = f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a0 "ha">{laughs}]><d><p>Words.</p>&a9;</d>'
    (outcome,) = outcomes_of(data, "x.xml")
    assert outcome.document is None or outcome.document.text == "Words."


@pytest.mark.parametrize("data", ["<a><b></a>", "<a>" * 5000, "no xml", "<?xml version='1.0'?>"])
def test_damaged_xml_is_refused(data: str) -> None:
    assert "damaged xml" in refusal(data, "x.xml")


def test_xhtml_and_pages_named_xml_are_pages() -> None:
    page = '<?xml version="1.0"?><!DOCTYPE html><html><body><h1>Leave</h1><p hidden>x</p></body></html>'
    assert read_one(page, "x.xml").metadata["format"] == "html"
    assert read_one(page, "x.xhtml").text == "# Leave"
