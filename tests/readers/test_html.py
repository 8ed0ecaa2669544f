"""Html shows what a reader sees: no menus, no controls, and nothing hidden."""

from __future__ import annotations

import pytest

from tests.readers.files import read_one, refusal


def test_html_shows_what_a_reader_sees() -> None:
    page = """<!DOCTYPE html><html><head><title>Visiting | Orrin Hospital</title><style>p{}</style></head><body>
      <header>Site header</header><nav>Home</nav><h1>Visiting</h1><p>Wards open
      at <b>14:00</b>.</p><script>alert(1)</script><p hidden>secret one</p><p style="display:none">secret two</p>
      <div aria-hidden="true">secret three</div><!-- secret four -->
      <h2>Children</h2><ul><li>under 12<li>with an adult</ul>
      <table><tr><th>Ward</th><th>Hours</th></tr><tr><td>Ash</td><td>2 to 4</td></tr></table>
      <footer>Imprint</footer></body></html>"""
    document = read_one(page, "x.html")
    assert document.title == "Visiting"
    assert document.text == (
        "# Visiting\n\nWards open at 14:00.\n\n## Children\n\n- under 12\n- with an adult\n\n"
        "Ward | Hours\n\nAsh | 2 to 4"
    )


def test_html_menus_that_are_not_marked_as_such_are_left_out() -> None:
    page = """<body><p>Wards open.</p>
      <ul class="related"><li><a href=/a>A to Z</a></li><li><a href=/c>Contact</a></li></ul>
      <ul><li>See <a href=/v>Visiting</a></li><li><a href=/p>Parking</a></li></ul>
      <article><ol><li><a href=#1>Section 1</a></li><li><a href=#2>Section 2</a></li></ol></article></body>"""
    text = read_one(page, "x.html").text
    assert "A to Z" not in text
    assert all(kept in text for kept in ("Wards open.", "- See Visiting", "- Parking", "- Section 2"))


LINKS = "<{tag} {named}><li><a href=/a>Form A</a></li><li><a href=/b>Form B</a></li></{tag}>"


@pytest.mark.parametrize(
    ("page", "kept"),
    [
        ('<h1>Forms</h1><div role="main"><p>Use these:</p>{links}</div>', True),
        ('<div role="main"><p>Use these:</p>{links}</div><h1>Forms</h1>', True),
        ("<h1>Forms</h1><section>{links}</section>", True),
        ("<h1>Forms</h1><div><p>Use these:</p>{links}</div>", True),
        ("<p>Use these:</p>{links}", True),
        ('<body class="with-sidebar"><div id="header-page"><h1>Forms</h1>{links}</div></body>', True),
        ("<h1>Forms</h1><div class=canvas>{links}</div>", True),
        ("{links}<h1>Forms</h1><p>Use these.</p>", False),
        ("<h1>Forms</h1><div id=mainMenu><div>{links}</div></div>", False),
        ("<h1>Forms</h1><div role=navigation>{links}</div>", False),
        ('<h1>Forms</h1><div class="page BREADCRUMBS">{links}</div>', False),
        ('<body class="with-sidebar"><h1>Forms</h1><div class="site_footer">{links}</div></body>', False),
    ],
)
@pytest.mark.parametrize("tag", ["ul", "ol"])
def test_html_lists_of_links_are_menus_by_their_place_or_name(page: str, kept: bool, tag: str) -> None:
    data = page.format(links=LINKS.format(tag=tag, named=""))
    assert ("- Form A" in read_one(data, "x.html").text) == kept


def test_html_headings_that_are_links_are_no_menu() -> None:
    page = "<ul><li><h2><a href=/a>Leave</a></h2></li><li><h2><a href=/b>Pay</a></h2></li></ul>"
    assert "## Leave" in read_one(page, "x.html").text


def test_html_form_around_the_body_loses_its_controls_only() -> None:
    page = """<body><form id="aspnetForm"><input value="one"><h1>Leave</h1><p>Staff have 27 days.</p>
      <label>Grade</label><select><option>two</option></select><textarea>three</textarea><button>four</button>
      <datalist><option>five</option></datalist><header>six</header></form>After the form.</body>"""
    text = read_one(page, "x.html").text
    assert text == "# Leave\n\nStaff have 27 days.\n\nGrade\n\nAfter the form."


@pytest.mark.parametrize("around", ["<article>{}</article>", "<section>{}</section>", "<div role=main>{}</div>"])
def test_html_headers_and_footers_of_the_content_stay(around: str) -> None:
    inner = "<header><h1>Leave</h1>By the Board</header>27 days.<footer>In force since 2020.</footer>"
    page = f"<header>Site</header>{around.format(inner)}<footer>Imprint</footer>"
    text = read_one(page, "x.html").text
    assert text == "# Leave\n\nBy the Board\n\n27 days.\n\nIn force since 2020."


def test_html_title_keeps_what_is_not_the_site() -> None:
    data = "<title>Visiting (2022) | Site</title><h1>Visiting</h1><p>No."
    assert read_one(data, "x.html").title == "Visiting (2022) | Site"


HIDING = [
    "display:none", "DISPLAY : None", "visibility: hidden", "opacity:0", "opacity: 0.0", "font-size:0", "font-size:1px",
    "font-size:0.1em", "color:#fff;font-size:1px", "color: #FFFFFF", "color:white;background:#fff",
    "position:absolute;left:-9999px", "text-indent:-999px", "position:absolute;top:-100em",
    "clip: rect(0 0 0 0)", "clip:rect(1px, 1px, 1px, 1px)", "clip-path: inset(50%)", "transform: scale(0)",
    "transform: rotate(3deg) scale(0, 0)", "display:/* x */none", r"d\69splay:none", "color: #0000",
    "color:transparent",
    "color:rgba(0, 0, 0, 0)", "color:rgb(0 0 0 / 0%)", "color:#fefefe", "color:rgb(250,250,250);background:none",
    "color:hsl(0,0%,99%)", "opacity:.0", "color:red;color:white;background:url(a.png) #fff none",
    "max-height:0;overflow:hidden", "overflow:hidden;width:0px", "height:0;overflow-y:hidden",
]  # fmt: skip
SHOWING = [
    "display:block", "opacity:0.5", "font-size:0.9em", "font-size: 12px", "color:#fff;background:#036", "color:#333",
    "margin-left:-10px", "left:-1px", "background-color:white", "font-size:100%",
    "color:rgba(0,0,0,0.5)", "color:#000", "min-width:0;overflow:hidden", "opacity:.05",
    "line-height:0;overflow:hidden", "height:0",
    "max-height:0.5em;overflow:hidden", "transform:scale(0.9)", "color:rgb(255,200,0)", "color:#cccccc",
    "color:transparent;background:linear-gradient(red,blue);-webkit-background-clip:text", "border-color:transparent",
]  # fmt: skip


@pytest.mark.parametrize("style", HIDING)
def test_hidden_text_is_left_out(style: str) -> None:
    inline = f'<h1>Advice</h1><p>Seen.</p><div><p style="{style}">CANARY</p></div>'
    assert read_one(inline, "x.html").text == "# Advice\n\nSeen."
    if "color" not in style:
        sheet = f"<style>p{{margin:0}} /* .b {{}} */ div.a, #b {{ {style} }}</style>"
        page = f'{sheet}<p>Seen.</p><div class="x a">CANARY</div><p id=b>CANARY</p>'
        assert read_one(page, "x.html").text == "Seen."


@pytest.mark.parametrize(
    "page",
    [
        "<style>div .x { display:none }</style><div><p class=x>CANARY</p></div>",
        "<style>div>.x, p::before { display:none }</style><div><p class=x>CANARY</p></div>",
        "<style>p[data-a='1,2'], q:is(a, b) { display:none }</style><p data-a='1,2'>CANARY</p>",
        "<style>@media all, print { .x { display:none } }</style><p class=x>CANARY</p>",
        "<style>@import url(a.css); @layer a { @media screen { .x { display:none } } }</style><p class=x>CANARY</p>",
        "<style>.x { color:#fdfdfd; background:#fff }</style><p class=x>CANARY</p>",
        r"<style>.\31 0\:x { dis\70lay:none }</style><p class='10:x'>CANARY</p>",
        "<style>.x { color:rgba(1,1,1,.0) }</style><p class=x>CANARY</p>",
        "<font color=white>CANARY</font>", "<font color=#FFFFFF>CANARY</font>",
        "<table bgcolor=white><tr><td style='color:#fff'>CANARY</table>",
        "<dialog>CANARY</dialog>", "<object>CANARY</object>", "<audio>CANARY</audio>", "<video>CANARY</video>",
        "<canvas>CANARY</canvas>", "<noframes>CANARY</noframes>",
    ],
)  # fmt: skip
def test_text_hidden_by_sheets_and_elements_is_left_out(page: str) -> None:
    assert read_one(f"<p>Seen.</p>{page}", "x.html").text == "Seen."


@pytest.mark.parametrize("style", SHOWING)
def test_shown_text_stays(style: str) -> None:
    assert "WORDS" in read_one(f'<p>Seen.</p><p style="{style}">WORDS</p>', "x.html").text


@pytest.mark.parametrize(
    "page",
    [
        "<style>@media print { .a { display:none } }</style><p class=a>WORDS</p>",
        "<style>.a .b { display:none }</style><p class=b>WORDS</p>",
        "<style>@media screen and (max-width:9px) { .a { display:none } }</style><p class=a>WORDS</p>",
        "<style>@supports (x:y) { .a { display:none } }</style><p class=a>WORDS</p>",
        "<style media=print>.a { display:none }</style><p class=a>WORDS</p>",
        "<style>div > .a { display:none }</style><p class=a>WORDS</p>",
        "<style>.a::before, .a:nosuch, p[ { display:none }</style><p class=a>WORDS</p>",
        "<dialog open>WORDS</dialog>",
        "<table bgcolor=navy><tr><td><font color=white>WORDS</font></table>",
        "<style>.a:hover { display:none }</style><p class=a>WORDS</p>",
        '<body bgcolor="#003"><p style="color:#fff">WORDS</p>',
        '<div class=dark><p style="color:#fff">WORDS</p></div>',
        '<div style="background:#003"><p style="color:white">WORDS</p></div>',
        "<style>} { .b</style><p>WORDS</p>",
    ],
)
def test_rules_that_need_not_hold_hide_nothing(page: str) -> None:
    assert read_one(page, "x.html").text == "WORDS"


def test_a_page_without_visible_text_is_refused() -> None:
    assert refusal("<p hidden>words</p><script>1</script>", "x.html") == "holds no text"


def test_head_gives_date_and_author() -> None:
    page = """<meta name=author content="T. Orrin"><meta property="article:published_time" content="2024-03-01T08:00">
      <meta name="date" content="1 May 2020"><p>Words."""
    assert read_one(page, "x.html").metadata == {"date": "2024-03-01", "author": "T. Orrin", "format": "html"}
