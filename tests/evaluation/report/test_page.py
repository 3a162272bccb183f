"""Pages: everything that was found is escaped, whatever the texts hold."""

import re

from collamo.evaluation.report.page import Page, Picture, Section, write_report

NASTY = '<script>alert("1")</script> & {{ 7 * 7 }} | `x`'


def written(tmp_path, *sections):
    write_report({"scores": {"x": 1}}, Page(NASTY, NASTY, sections), tmp_path)
    return (tmp_path / "report.html").read_text()


def test_no_text_becomes_markup(tmp_path):
    section = Section(NASTY, NASTY, [NASTY], [NASTY], [[NASTY]])
    drawing = Picture("one", "<?xml version='1.0'?><svg><circle/></svg>", NASTY)
    html = written(tmp_path, section, Section("two", pictures=[drawing], sub=True))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 9
    assert html.count("{{ 7 * 7 }}") == 9
    assert "<figure><svg><circle/></svg><figcaption>" in html
    assert "<h3>two</h3>" in html
    markdown = (tmp_path / "report.md").read_text()
    assert "\\| `x` |" in markdown
    assert f"![{NASTY}](one.svg)" in markdown


def test_columns_of_numbers_stand_flush_right(tmp_path):
    rows = [["CoLLaMo", "0.5 [0.4, 0.6]", "−3"], ["other", "–", "12%"]]
    html = written(tmp_path, Section("t", header=["who", "a", "b"], rows=rows))
    assert re.findall(r'<td class="n">([^<]*)</td>', html) == [r for row in rows for r in row[1:]]
    assert "<td>CoLLaMo</td>" in html
    assert "<details>" not in html
    folded = Section("t", header=["who"], rows=[["a"], ["b"]], folded=True)
    assert "<details><summary>2 rows</summary>" in written(tmp_path, folded)


def test_a_page_without_sections(tmp_path):
    assert written(tmp_path).rstrip().endswith("</html>")
