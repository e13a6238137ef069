"""Words of others in Markdown."""

from svdexp.runtime.markdown import code, fenced, in_line, numbered, table

BAD = "<script>x</script> & a|b\n# not a title"


def test_no_html_and_no_line_gets_through() -> None:
    assert in_line(BAD) == "&lt;script&gt;x&lt;/script&gt; &amp; a|b # not a title"
    assert numbered([BAD]) == f"1. {in_line(BAD)}"
    assert table([["head"], [BAD]]).splitlines() == ["| head |", "|---|", f"| {in_line(BAD)} |".replace("a|b", "a\\|b")]


def test_code_ends_where_it_should() -> None:
    assert code("a`b\n<i>") == "`a'b &lt;i&gt;`"
    assert fenced("one\n```\n# two") == "````\none\n```\n# two\n````"
    assert fenced("one") == "```\none\n```"
