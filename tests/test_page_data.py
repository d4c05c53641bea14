"""The page of a report as text: the data in it can be read back, and cannot end the element that holds it."""

import html.parser
import json
import math

from hypothesis import given
from hypothesis import strategies as st

from record.page import page, write_page

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=20) | st.sampled_from(
    ["</script>", "<!--<script>", "{{data}}", "&lt;", "\u2028\u2029", "\ud800", "\0", "__proto__", "]]>"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


class Elements(html.parser.HTMLParser):
    """The names of the elements of a page, and what stands in the one that holds the data."""

    def __init__(self, text):
        super().__init__()
        self.names, self.data, self.inside = [], "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.inside = dict(attributes).get("type") == "application/json"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.data += data


def without_odd_numbers(value):
    if isinstance(value, dict):
        return {key: without_odd_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_odd_numbers(inner) for inner in value]
    return None if isinstance(value, float) and (math.isnan(value) or math.isinf(value)) else value


def no_constants(name):
    raise ValueError(f"{name} is no JSON")


PLAIN = Elements(page({"title": "plain"})).names


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_the_data_can_be_read_back_and_add_no_elements(data):
    text = page(data)
    found = Elements(text)
    assert found.names == PLAIN
    assert json.loads(found.data, parse_constant=no_constants) == without_odd_numbers(data)
    text.encode("utf-8")  # no lone surrogates


def test_what_could_end_the_script_is_escaped():
    data = {"title": "</script><!-- &amp; \u2028"}
    raw = page(data).split('type="application/json" id="data">')[1].split("</script>")[0]
    assert not set("<>&\u2028") & set(raw) and json.loads(raw) == data


def test_a_page_replaces_the_one_before(tmp_path):
    file = tmp_path / "report.html"
    for title in ("one", "two \ud800"):
        write_page({"title": title}, file)
        assert file.read_text("utf-8") == page({"title": title})
    assert list(tmp_path.iterdir()) == [file]
