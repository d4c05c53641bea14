"""Data of a report as small as it may be with everything in it, and how to look at its page in a browser."""


def solve(position, outcome=1.0, advantage=0.5, text="a reply", **changes):
    tokens = [[text, -0.5, 0.1], ["<end>", -0.01, -0.1]]
    messages = [
        {"role": "system", "text": "the rules", "tokens": None},
        {"role": "user", "text": f"task {position}", "tokens": None},
        {"role": "assistant", "text": text, "tokens": tokens},
    ]
    numbers = {"return": 0.75, "baseline": 0.25, "advantage": advantage, "weighted": None}
    episode = {"kind": "solve", "position": position, "reward": outcome, "outcome": outcome, **numbers}
    return episode | {"before": "a hint", "after": None, "broken_format": False, "messages": messages} | changes


def update(position, before="a hint", after="another hint", **changes):
    return solve(position) | {"kind": "update", "reward": 0.0, "before": before, "after": after} | changes


def pack(title, *rollouts):
    return {"title": title, "rollouts": [{"title": name, "episodes": episodes} for name, episodes in rollouts]}


def packs():
    group = [
        (f"rollout {g}", [solve(0, 1, 0.5 - g), update(0), solve(1, 0, g - 0.5), update(1), solve(2)]) for g in (0, 1)
    ]
    one = pack("pack of one task", ("alone", [solve(0, before=None)]))
    return [pack("pack 7", *group, ("no hints", [solve(0), solve(1), solve(2)])), one]


def record(label, success, width=0.05, **more):
    low, high = ([x + d for x in success] for d in (-width, width))
    numbers = {"success": success, "success_low": low, "success_high": high, "gap": [0.5], "gap_low": [0.4]}
    return {"label": label, "packs": 100, **numbers, "gap_high": [0.6], "broken_format": 0.125, "truncated": 0, **more}


def everything():
    records = [
        record("before", [0.2, 0.2, 0.3], turns=[4, 3.5, 3], hint_tokens=[20, 30]),
        record("after", [0.2, 0.8, 0.9], reward=[0.1, 0.7, 0.8]),
        record("learner", [0.25, 1.0, 1.0], width=0, turns=[4, 3, 2.5], hint_tokens=[0, 0]),  # it has no tokens
    ]
    # as `statistics.combination` gives it: by position and, last, in the mean
    difference = {"difference": [0.05, 0.6, -0.6, 0.02], "difference_low": [-0.1, 0.5, -0.7, -0.2]}
    differences = [{"label": "after - before", **difference, "difference_high": [0.1, 0.7, -0.5, 0.3]}]
    steps = [
        {"step": k, "success": [0.2, 0.01 * k, 0.02 * k], "broken_format": 0.1, "broken_hint": 0} for k in range(40)
    ]
    return {
        "title": "frozenlake/tiny, seed 0",
        "settings": {"env": "frozenlake", "steps": 40, "envs": None},
        "evaluations": [{"title": "packs of 3", "records": records, "differences": differences}],
        "training": steps,
        "packs": packs(),
    }


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((node) => node.textContent)")


def choose(browser, name, value):
    node = f"document.querySelector('#{name}')"
    browser.run(f"({node}.value = {value!r}, {node}.dispatchEvent(new Event('change')), null)")
