"""Text on the page of a report: shown as it was given, nothing of it runs, and hints differ where it is said."""

import random
import unicodedata

from page_doubles import choose, everything, pack, record, solve, update

HOSTILE = [
    "</script><script>document.title='x'; window.ran = 1</script>",
    "<img src=x onerror=\"window.ran = 2; document.title='x'\">",
    "<svg onload='window.ran = 3'><style>body{display:none}</style>",
    "javascript:window.ran=4",
    "&lt;b&gt; &amp;amp; &#60;",
    "{{data}} ${title} `x`",
    "__proto__",
    "constructor",
    "random",
    "nul \0 bell \a escape \x1b[31m delete \x7f next line \x85 tab \t return \r end",
    "right-to-left \u202egnp.exe\u202c \u2066x\u2069 \u200e\u200f\u061c",
    "zero width: a\u200bb\u200cc\u200dd\u2060e\ufefff, soft\u00adhyphen, lines \u2028\u2029",
    "emoji 👩\u200d🚀 🏳️ e\u0301 שלום مرحبا",
    "lone \ud83d and \ude00 and \udfff",
    "x" * 20_000,
    "two\n\n lines  and blanks \n",
    "",
]
SHOWN = """(node) => {  // the text of an element as it was given: what is spelled out put back
  const copy = node.cloneNode(true);
  for (const box of copy.querySelectorAll(".symbol")) {
    box.replaceWith(String.fromCodePoint(parseInt(/^\\[U\\+([0-9A-F]{4,6})\\]$/.exec(box.textContent)[1], 16)));
  }
  return copy.textContent;
}"""
# every message and hint of every episode, cell by cell: [[messages, as shown], [hint boxes], [raw texts]]
WALK = f"""(() => {{
  const shown = {SHOWN};
  const texts = (selector) => [...document.querySelectorAll(selector)];
  return [...document.querySelectorAll("#grid button")].map((_, i) => {{
    document.querySelectorAll("#grid button")[i].click();
    const raw = texts("#episode .text").map((node) => {{
      const copy = node.cloneNode(true);
      copy.querySelectorAll(".symbol").forEach((box) => box.remove());
      return copy.textContent;
    }});
    return [texts(".message .text").map(shown), texts(".hints .text").map(shown), raw.join("")];
  }});
}})()"""


def hostile_everywhere():
    data = everything()
    [evaluation] = data["evaluations"]
    data |= {"title": " ".join(HOSTILE), "settings": {text: text for text in HOSTILE}, "packs": []}
    evaluation["title"] = evaluation["differences"][0]["label"] = data["title"]
    evaluation["records"] += [record(text, [0.5, 0.5, 0.5]) for text in HOSTILE]
    for text in HOSTILE:
        messages = [{"role": text, "text": text, "tokens": [[text, -1.0, None], [text, -1.0, 0.1]]}]
        episodes = [update(0, text, text[::-1], messages=messages), solve(1, before=text, messages=messages)]
        data["packs"].append(pack(text, (text, episodes)))
    return data


def test_hostile_text_is_shown_as_text(opened):
    data = hostile_everywhere()
    browser = opened(data, width=400)
    expected = [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in HOSTILE]
    assert browser.run(f"({SHOWN})(document.querySelector('h1'))") == " ".join(expected)
    names = browser.run(f"[...document.querySelectorAll('.settings th')].map({SHOWN})")
    assert names == expected
    labels = browser.run(f"[...document.querySelectorAll('.numbers tbody th')].map({SHOWN})")
    assert set(expected) <= set(labels)
    for i, text in enumerate(expected):
        choose(browser, "pack", str(i))
        for measure in ("none", "advantage", "change", "logp"):
            choose(browser, "measure", measure)
            [[messages, hints, _], [_, [hint], _]] = browser.run(WALK)
            assert messages == [text if measure == "none" else text + text]
            assert [hints[0], hint] == [text, text]
        assert browser.run("document.documentElement.scrollWidth") <= 400
    assert browser.run("window.ran") is None and browser.run("document.querySelectorAll('img, script').length") == 2
    assert browser.run("document.title") != "x" and len(browser.requests) == 1 and browser.complaints == []


def random_text(rng):
    everywhere = [(0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x2000, 0x2070), (0xD800, 0xE000), (0x1F300, 0x1F700)]
    pieces = []
    for _ in range(rng.randrange(60)):
        low, high = rng.choice([*everywhere, (0, 0x110000), (9, 14), (0x20, 0x7F)])
        pieces.append(chr(rng.randrange(low, high)))
    return "".join(pieces)


def test_the_text_that_is_shown_is_the_text_that_was_given(opened):
    rng = random.Random(0)
    given = [[random_text(rng) for _ in range(8)] for _ in range(40)]
    messages = [[{"role": "user", "text": text, "tokens": None} for text in each] for each in given]
    episodes = [solve(j, messages=messages[j], before=given[j][0]) for j in range(len(given))]
    browser = opened({"title": "x", "packs": [pack("p", ("r", episodes))]})
    shown = browser.run(WALK)
    for each, (found, _, raw) in zip(given, shown, strict=True):
        assert found == [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in each]
        kinds = {unicodedata.category(character) for character in raw if character != "\n"}
        assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}  # what no reader sees is spelled out
    assert browser.complaints == []


def longest_common(a, b):
    """Length of the longest common subsequence, from the definition, row by row."""
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[j], before[j + 1]))
    return row[-1]


def pairs_of_hints(rng):
    """(before, after), any and by hand; then, behind an x, letters as words."""

    def hint():
        pieces = ["up", "down", "left", " ", "  ", "\n", "\n\n", ".", "Direction 4 "]
        return "".join(rng.choices(pieces, k=30))

    by_hand = [("", "new"), ("old", ""), ("", ""), ("one two three", "one 2 three"), ("a\nb", "a\nb\nc d")]
    long = tuple(" ".join(rng.choices("abc", k=5000)) for _ in range(2))  # too long to be compared in time
    letters = [tuple("x " + " ".join(rng.choices("abc", k=12)) for _ in range(2)) for _ in range(30)]
    return [*((hint(), hint()) for _ in range(60)), *by_hand, long], letters


def test_the_hints_differ_where_they_are_marked(opened):
    some, letters = pairs_of_hints(random.Random(1))
    episodes = [update(j, *pair) for j, pair in enumerate(some + letters)]
    browser = opened({"title": "x", "packs": [pack("p", ("r", episodes))]})
    shown = browser.run("""[...document.querySelectorAll("#grid button")].map((_, i) => {
      document.querySelectorAll("#grid button")[i].click();
      return [...document.querySelectorAll(".hints .text")].map((box) =>
        [...box.childNodes].map((node) => [node.nodeName.toLowerCase(), node.textContent]));
    })""")
    taken_out = {}
    for (before, after), (old, new) in zip(some + letters, shown, strict=True):
        assert "".join(text for _, text in old) == before and "".join(text for _, text in new) == after
        assert {name for name, _ in old} <= {"#text", "del"} and {name for name, _ in new} <= {"#text", "ins"}
        kept = "".join(text for name, text in old if name == "#text")
        assert kept == "".join(text for name, text in new if name == "#text")
        if (before, after) in letters:  # no more is marked than must be
            assert len(kept.split()) == longest_common(before.split(), after.split())
        taken_out[before, after] = [text for name, text in old if name == "del"]
    assert taken_out["one two three", "one 2 three"] == [" two"] and taken_out["a\nb", "a\nb\nc d"] == []
