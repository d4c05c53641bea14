"""The page of a report in a real browser: what it asks for, what it shows, and its controls."""

import pytest
from page_doubles import choose, everything, pack, record, solve, texts

from record.page import page


def where(browser):
    """The episode that is shown, by title, by the cell that is marked, and by the choice of rollout."""
    [title] = texts(browser, ".steps h3")
    [cell] = browser.run("[...document.querySelectorAll('#grid [aria-pressed=true]')].map((b) => b.ariaLabel)")
    chosen = browser.run("document.querySelector('#rollout').selectedOptions[0].text")
    assert cell.startswith(title) and title.startswith(f"{chosen}, ")
    return title


def test_what_a_page_complains_about_and_asks_for_is_seen(chromium, tmp_path):
    """Without this, the tests below would pass with a browser that tells nothing."""
    script = "console.error('said'); setTimeout(() => { throw new Error('thrown') })"
    (tmp_path / "bad.html").write_text(f"<img src=http://example.invalid/x.png><script>{script}</script>", "utf-8")
    chromium.open(tmp_path / "bad.html")
    assert "http://example.invalid/x.png" in chromium.requests
    assert any("said" in text for text in chromium.complaints) and any("thrown" in text for text in chromium.complaints)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_needs_no_network_and_fits(opened, width):
    colours = set()
    for dark in (False, True):
        browser = opened(everything(), width=width, dark=dark)
        assert browser.complaints == [] and [url[:5] for url in browser.requests] == ["file:"]
        assert browser.run("performance.getEntriesByType('resource').length") == 0
        browser.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        browser.run("new Promise(requestAnimationFrame)")
        assert browser.run("document.documentElement.scrollWidth") <= width
        colours.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        levels = [
            int(name[1])
            for name in browser.run("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map((h) => h.tagName)")
        ]
        assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(colours) == 2


def rows(browser, selector):
    return browser.run(
        f"[...document.querySelectorAll({selector!r})].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def test_tables_say_what_the_data_say(opened):
    browser = opened(everything())
    title = "frozenlake/tiny, seed 0"
    assert texts(browser, "h1") == [title] and browser.run("document.title") == title
    found = rows(browser, ".numbers tr")
    head = ["", "packs", "position 0", "position 1", "position 2", "gap, last - first", "broken format", "truncated"]
    low = ["0.20 [0.15, 0.25]", "0.20 [0.15, 0.25]", "0.30 [0.25, 0.35]"]
    assert found[:2] == [head, ["before", "100", *low, "0.50 [0.40, 0.60]", "12.5 %", "0.0 %"]]
    differences = ["0.05 [-0.10, 0.10]", "0.60 [0.50, 0.70] ▲", "-0.60 [-0.70, -0.50] ▼", "0.02 [-0.20, 0.30]"]
    at = found.index(["after - before", *differences])
    assert found[at - 1] == ["", "position 0", "position 1", "position 2", "mean over positions"]
    assert ["before", "4.0", "3.5", "3.0"] in found and ["learner", "4.0", "3.0", "2.5"] in found
    assert ["before", "20.0", "30.0"] in found and ["learner", "0.0", "0.0"] not in found
    assert ["after", "100", "0.10", "0.70", "0.80"] in found
    assert rows(browser, ".settings tr") == [["env", "frozenlake"], ["steps", "40"], ["envs", "null"]]


def test_pictures_show_what_the_data_say(opened):
    browser = opened(everything())
    training, evaluation = browser.run("""[...document.querySelectorAll(".chart svg")].map((picture) => ({
      ticks: [...picture.querySelectorAll("text[text-anchor=end]")].map((text) => Number(text.textContent)),
      lines: [...picture.querySelectorAll(".axis")].map((a) => a.getBBox()).filter((a) => a.width).map((a) => a.y),
      names: [...picture.parentNode.nextSibling.querySelectorAll("li")].map((li) => li.textContent),
      labels: [...picture.querySelectorAll("text")].map((t) => t.textContent),
      marks: [...picture.querySelectorAll(".series")].map((s) => [...s.querySelectorAll(".mark")].map((m) =>
        m.transform.baseVal[0].matrix).map(({ e, f }) => [e, f])),
      bars: [...picture.querySelectorAll(".bar")].map((b) => b.getBBox()).map(({ x, y, height }) => [x, y, height]),
    }))""")
    assert training["names"] == ["position 0", "position 1", "position 2", "broken replies", "broken hints"]
    assert evaluation["names"] == ["before", "after", "learner (reference)"]
    assert "training step" in training["labels"]
    assert {"position in the pack", "success (mean, 95 % interval)"} <= set(evaluation["labels"])
    line = dict(zip(evaluation["ticks"], evaluation["lines"], strict=True))  # value -> its height on the axis
    unit = line[0] - line[1]
    assert unit > 100
    for found, means in zip(evaluation["marks"], ([0.2, 0.2, 0.3], [0.2, 0.8, 0.9], [0.25, 1, 1]), strict=True):
        assert [y for _, y in found] == pytest.approx([line[0] - mean * unit for mean in means], abs=0.2)
    assert len({round(x) for x, _, _ in evaluation["bars"]}) == 9  # side by side
    assert [h for _, _, h in evaluation["bars"]] == pytest.approx([0.1 * unit] * 6 + [0] * 3, abs=0.2)


def wait(browser, ms):
    browser.run(f"new Promise((later) => setTimeout(later, {ms}))")


def test_keys_move_through_the_episodes_and_stop_at_the_ends(opened):
    browser = opened(everything())
    browser.run("document.querySelector('#browser').scrollIntoView()")
    wait(browser, 100)
    top = browser.run("scrollY")
    seen = [where(browser)]
    for _ in range(6):
        browser.press("ArrowRight")
        seen.append(where(browser))
    order = ["task 0", "hint 0", "task 1", "hint 1", "task 2", "task 2", "task 2"]
    assert seen == [f"rollout 0, {name}" for name in order]
    browser.press("ArrowLeft", "ArrowDown")
    assert where(browser) == "rollout 1, hint 1"
    browser.press("ArrowDown")
    assert where(browser) in ("no hints, task 1", "no hints, task 2")  # it has no hint 1
    browser.press("ArrowDown", *["ArrowLeft"] * 5)
    assert where(browser) == "no hints, task 0"
    browser.press(*["ArrowUp"] * 4)
    assert where(browser) == "rollout 0, task 0"
    wait(browser, 300)
    assert browser.run("scrollY") == top and browser.complaints == []


def test_keys_are_left_to_the_page_and_to_lists(opened):
    browser = opened(everything())
    browser.press("ArrowDown", "ArrowRight")  # far above the episodes: the page scrolls as always
    wait(browser, 300)
    assert where(browser) == "rollout 0, task 0" and browser.run("scrollY") > 0
    browser.run("document.querySelector('#measure').focus()")
    browser.press("ArrowDown", "ArrowRight")
    assert where(browser) == "rollout 0, task 0"
    assert browser.run("document.querySelector('#measure').value") != "advantage"
    browser.run("document.querySelector('#grid [aria-pressed=true]').focus()")
    browser.press("ArrowRight", "ArrowDown")
    assert browser.run("document.activeElement.ariaLabel") == "rollout 1, hint 0"  # the focus goes along
    assert browser.run("document.activeElement.matches(':focus-visible')")


def test_buttons_choose_an_episode(opened):
    browser = opened(everything())
    for name, expected in (
        ("previous episode", "rollout 0, task 0"),
        ("next episode", "rollout 0, hint 0"),
        ("rollout below", "rollout 1, hint 0"),
        ("next episode", "rollout 1, task 1"),
        ("rollout above", "rollout 0, task 1"),
        ("rollout above", "rollout 0, task 1"),
        ("previous episode", "rollout 0, hint 0"),
    ):
        browser.run(f"(document.querySelector('button[aria-label=\"{name}\"]').click(), null)")
        assert where(browser) == expected
    off = browser.run("[...document.querySelectorAll('.steps [aria-disabled=true]')].map((button) => button.ariaLabel)")
    assert off == ["rollout above"]


def test_lists_and_cells_choose_an_episode(opened):
    browser = opened(everything())
    choose(browser, "rollout", "1")
    assert where(browser) == "rollout 1, task 0"
    choose(browser, "pack", "1")
    assert where(browser) == "alone, task 0" and texts(browser, "#grid button") == ["1.00"]
    assert texts(browser, ".hints .text") == []  # a task without a hint
    choose(browser, "pack", "0")
    assert texts(browser, "#grid thead th") == ["task 0", "hint 0", "task 1", "hint 1", "task 2"]
    row = ["1.00", "hint", "0.00", "hint", "1.00"]
    assert texts(browser, "#grid button") == [*row, *row, "1.00", "1.00", "1.00"]
    browser.run("(document.querySelectorAll('#grid button')[11].click(), null)")
    assert where(browser) == "no hints, task 1"
    facts = dict(zip(texts(browser, ".facts dt"), texts(browser, ".facts dd"), strict=True))
    numbers = {"outcome": "1.000", "reward": "1.000", "return": "0.750", "baseline": "0.250", "advantage": "+0.500"}
    assert facts == numbers
    assert texts(browser, ".message summary") == ["system", "user", "assistant"]
    assert texts(browser, ".hints .text") == ["a hint"]


def colours(browser):
    """Red, green, blue and opacity of the sampled tokens."""
    found = browser.run("[...document.querySelectorAll('.token')].map((t) => getComputedStyle(t).backgroundColor)")
    numbers = [[float(x) for x in colour[colour.index("(") + 1 : -1].split(",")] for colour in found]
    return [(r, g, b, *(rest or [1.0])) for r, g, b, *rest in numbers]


def test_tokens_are_coloured_by_sign_and_size(opened):
    large, small = solve(0, advantage=0.5), solve(0, advantage=0.1)
    minus, none = solve(0, advantage=-0.5, weighted=-0.4), solve(0, advantage=0.0)
    groups = [(f"rollout {i}", [episode]) for i, episode in enumerate((large, small, minus, none))]
    browser = opened({"title": "x", "packs": [pack("p", *groups)]})
    found = []
    for i in range(4):
        browser.run(f"(document.querySelectorAll('#grid button')[{i}].click(), null)")
        assert len(set(colours(browser))) == 1  # of all tokens of an episode
        found.append(colours(browser)[0])
    plus, weak, other, nothing = found
    assert plus[:3] == weak[:3] != other[:3] and plus[3] == other[3] > weak[3] > nothing[3] == 0
    assert plus[2] > plus[0] and other[0] > other[2]  # blue above 0, orange below
    browser.run("(document.querySelectorAll('#grid button')[2].click(), null)")
    choose(browser, "measure", "change")
    first, second = colours(browser)
    assert first[:3] == plus[:3] and second[:3] == other[:3]  # changes of 0.1 and -0.1, whatever the advantage is
    choose(browser, "measure", "logp")
    first, second = colours(browser)
    assert first[:3] == second[:3] and first[3] > second[3]  # -0.5 and -0.01
    title = browser.run("document.querySelector('.token').title")
    assert all(number in title for number in ("-0.500", "60.7 %", "+0.1000", "-0.400"))
    choose(browser, "measure", "none")
    assert colours(browser) == [] and texts(browser, ".message.assistant .text") == ["a reply"]


def test_little_data_makes_a_page_too(opened):
    browser = opened({"title": "nothing yet"})
    assert texts(browser, "h1, h2") == ["nothing yet"] and browser.complaints == []
    nan = float("nan")
    data = {
        "title": "a start",
        "training": [{"step": 3, "success": [nan]}],
        "evaluations": [
            {"title": "none", "records": []},
            {"title": "one", "records": [record("base", [0.5]) | {"gap": [nan], "broken_format": nan}]},
        ],
        "packs": [pack("empty"), pack("hollow", ("r", [])), pack("p", ("r", [solve(0, advantage=nan, before=None)]))],
    }
    browser = opened(data)
    assert texts(browser, "h2") == ["Training", "Success by position: one", "Episodes"]
    assert texts(browser, ".numbers thead th") == ["", "packs", "position 0", "broken format", "truncated"]
    assert texts(browser, ".numbers tbody td") == ["100", "0.50 [0.45, 0.55]", "–", "0.0 %"]
    assert texts(browser, "#pack option") == ["p"] and where(browser) == "r, task 0"
    assert "NaN" not in browser.run("document.body.outerHTML.replace(/<script.*/s, '')")
    assert browser.complaints == []
    assert "NaN" not in page(data).split('id="data">')[1].split("</script>")[0]
