"""The page: complete, self-contained, nothing unescaped."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from reid.evaluation.report import Picture, Report, Section, render_report
from tests.unit.evaluation.test_results import metrics, result

JPEG = Picture(data=b"\xff\xd8jpeg", media_type="image/jpeg", caption="easiest", description="a <strip>")
SVG = Picture(
    data=b'<?xml version="1.0"?><svg width="10pt" viewBox="0 0 1 1"><path/></svg>', media_type="image/svg+xml"
)


class Page(HTMLParser):
    """Collects tags and checks that they nest."""

    VOID = frozenset({"meta", "img", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text():
    report = Report(
        title="PPT <on> VeRi",
        results=[result(name="epoch 1", metrics=metrics(0.5)), result(name="epoch 2")],
        facts={"data set": "veri776"},
        sections=[
            Section(title="Curves", pictures=[SVG]),
            Section(title="Rank lists", introduction="green is right", pictures=[JPEG], wide=True),
            Section(title="Config", text="a: <b>", folded=True),
        ],
    )
    return render_report(report)


def test_the_page_nests_and_loads_nothing_from_elsewhere(text):
    page = Page(text)
    assert page.open == []
    assert page.tags.count("table") == 1
    assert "script" not in page.tags
    assert len(page.addresses) == 1
    assert all(address.startswith("data:image/jpeg;base64,/9hqcGVn") for address in page.addresses)


def test_the_newest_result_makes_the_headline(text):
    assert text.index("<b>80.6") < text.index("<table>")
    assert "<b>50.0" not in text


def test_text_is_escaped_and_svg_is_put_into_the_page(text):
    assert "PPT &lt;on&gt; VeRi" in text
    assert "a: &lt;b&gt;" in text
    assert '<svg viewBox="0 0 1 1">' in text
    assert 'alt="a &lt;strip&gt;"' in text


def test_hashes_and_protocol_are_on_the_page(text):
    assert "c0ffee" in text
    assert "beef" in text
    assert "<code>veri776</code>" in text


def test_a_report_without_results_is_refused():
    with pytest.raises(ValueError, match="at least one evaluation result"):
        render_report(Report(title="nothing", results=[]))


def test_re_ranked_figures_stand_beside_the_base_in_the_headline_and_in_the_table():
    after = result(post_processing="re-ranking k1=80 k2=15 lambda=0.2", metrics=metrics(0.89))
    text = render_report(Report(title="both", results=[result(name="now", reranked=after)]))
    head, table = text[: text.index("<table>")], text[text.index("<table>") :]
    assert head.index("<b>80.6") < head.index("<b>89.0")
    assert "<span>mAP+RR (%)" in head
    assert "<th>mAP+RR</th>" in table
    assert "+RR: re-ranking k1=80 k2=15 lambda=0.2" in table
