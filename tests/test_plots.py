"""Figures: the same bytes twice, provenance inside the files, every plot on plain and on awkward tables; bubbles: text stays text."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

matplotlib = pytest.importorskip("matplotlib", reason="figures need the extra [workbench]")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backends.backend_agg import RendererAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402
from PIL import Image  # noqa: E402

from usp_lab import assistants, diagram, plots, speaker, synthetic, users  # noqa: E402
from usp_lab.bubbles import as_text, show_dialogue, show_trained_tokens, side_by_side  # noqa: E402
from usp_lab.chat import without_special_tokens  # noqa: E402
from usp_lab.errors import UspError  # noqa: E402
from usp_lab.from_scratch import new_tokenizer  # noqa: E402

NAN = math.nan
META = {"notebook": "10_authenticity", "code": "abc", "parameters": 'p "1" & <2>'}


def intervals(arms=("usp", "shuffled", "twin", "other"), metric="ppl", **more):
    rows = [
        {"metric": metric, "arm": a, "value": 1.5 + i, "low": 1.2 + i, "high": 1.9 + i, "n": 40 + i}
        for i, a in enumerate(arms)
    ]
    return pd.DataFrame(rows).assign(unit="user", **more)


def stops(arms=("usp", "twin")):
    rows = [
        (a, arm, t, 0.8**t, 0.7**t, 0.9**t, 30)
        for a in ("good", "bad")
        for arm in arms
        for t in (1, 2, 3)
    ]
    return pd.DataFrame(
        rows, columns=["assistant", "arm", "turn", "share_left", "low", "high", "n"]
    )


def nodes():
    rows = [
        ("kind", "kind of user", 1, 2, "latent", "", "a mixture of common and rare kinds"),
        ("z", "who they are", 0, 1, "latent", "kind", ""),
        ("task", "topic and goals", 2, 1, "latent", "kind", "two to four"),
        ("turn", "user turn", 1, 0, "observed", "z, task, reply", "one phrasing of many"),
        ("reply", "reply", 2, 0, "assistant", "turn", None),
    ]
    return pd.DataFrame(rows, columns=["node", "label", "x", "y", "kind", "parents", "note"])


def tables() -> dict[str, pd.DataFrame]:
    """A small table for every plot."""
    rng = np.random.default_rng(0)
    three = {"low": 0.4, "high": 0.6, "n": 50}
    curve = [("usp", s, 5 / (s + 1), split) for s in range(9) for split in ("train", "validation")]
    scores = [
        (a, x, m) for a in ("usp", "twin") for m in ("sem", "style") for x in rng.normal(size=30)
    ]
    return {
        "metric_intervals": intervals(better="lower", log=True, label="perplexity"),
        "learning_curve": pd.DataFrame(curve, columns=["model", "step", "loss", "split"]),
        "corpus_comparison": pd.DataFrame(
            [{"statistic": s, "corpus": c, "value": 0.5} | three for s in ("MATTR", "thanks") for c in ("hh", "population")]
        ),
        "generative_model": nodes(),
        "attribute_distribution": pd.DataFrame(
            [("age", "old", 0.3), ("age", "young", 0.7)] + [("job", f"job {i}", 0.05) for i in range(20)],
            columns=["attribute", "value", "share"],
        ),
        "stopping": stops(),
        "style_recovery": pd.DataFrame(
            [{"habit": h, "arm": a, "auc": 0.5} | three for h in ("casing", "typos") for a in ("usp", "other")]
        ),
        "density_hist": pd.DataFrame({"log_density": [*rng.normal(size=40), -math.inf], "group": ["common"] * 20 + ["rare"] * 21}),
        "similarity_distribution": pd.DataFrame(scores, columns=["arm", "score", "metric"]),
    }  # fmt: skip


def draw(name: str, table: pd.DataFrame) -> Figure:
    return getattr(diagram if name == "generative_model" else plots, name)(table)


def texts(fig: Figure) -> list[str]:
    fig.draw_without_rendering()
    return [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text().strip() and t.get_visible()]  # fmt: skip


class Recorder(RendererAgg):
    """Keeps the lines of text that are really drawn, with their boxes: matplotlib holds ticks that are not."""

    def __init__(self, *size):
        super().__init__(*size)
        self.lines = []

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        wide, high, _ = self.get_text_width_height_descent(s, prop, ismath)
        wide, high = (high, wide) if angle == 90 else (wide, high)
        left = x - wide if angle == 90 else x
        if s.strip():
            self.lines.append((s, Bbox.from_bounds(left, y - high, wide, high).padded(-1)))


def overlaps(fig: Figure) -> list[tuple[str, str]]:
    """Return pairs of lines of text that lie on one another."""
    renderer = Recorder(*fig.bbox.size, fig.dpi)
    fig.draw(renderer)
    assert renderer.lines
    return [(a, b) for (a, at), (b, other) in combinations(renderer.lines, 2) if at.overlaps(other)]


# --- saving -----------------------------------------------------------------------------------------


def test_second_save_gives_the_same_bytes_also_from_the_saved_table(tmp_path):
    table = tables()["metric_intervals"]
    first = plots.save_figure(plots.metric_intervals(table), tmp_path / "a", table, META)
    assert [p.name for p in first] == ["a.png", "a.svg", "a.parquet"]
    saved = [p.read_bytes() for p in first]
    fig = plots.metric_intervals(pd.read_parquet(tmp_path / "a.parquet"))
    for meta in (META, dict(reversed(META.items()))):  # twice the same figure, too
        plots.save_figure(fig, tmp_path / "a", table, meta)
        assert [p.read_bytes() for p in first] == saved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "a.png", "a.svg"]


def test_a_figure_of_ones_own_is_saved_the_same_twice(tmp_path):
    fig = Figure(layout="constrained")
    fig.subplots(2, 2)[0, 1].set_ylabel("y")
    saved = [[p.read_bytes() for p in plots.save_figure(fig, tmp_path / "v1.2")] for _ in range(2)]
    assert saved[0] == saved[1] and (tmp_path / "v1.2.png").exists()


def test_metadata_are_inside_and_no_date_or_version(tmp_path):
    png, svg = plots.save_figure(plots.stopping(stops()), tmp_path / "s", meta=META)
    assert {k: v for k, v in Image.open(png).info.items() if isinstance(v, str)} == META
    assert 150 < Image.open(png).info["dpi"][0] < 170
    text = svg.read_text()
    found = re.search(r"<dc:description>(.*?)</dc:description>", text, re.S).group(1)
    assert json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) == META
    assert "dc:date" not in text and "Matplotlib v" not in text


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    plots.save_figure(Figure(), tmp_path / "f")
    before = (tmp_path / "f.png").read_bytes()
    broken = Figure()
    broken.text(0.5, 0.5, "$x$", parse_math=True).set_text(r"$\nonsense{$")
    with pytest.raises(ValueError):
        plots.save_figure(broken, tmp_path / "f")
    assert (tmp_path / "f.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


# --- plots ------------------------------------------------------------------------------------------


def test_overlaps_are_seen():
    fig = Figure()
    for x in (0.5, 0.51, 0.8):
        fig.text(x, 0.5, f"at {x}")
    assert overlaps(fig) == [("at 0.5", "at 0.51")]


@pytest.mark.parametrize("name", tables())
def test_every_plot_draws_and_leaves_no_state(name):
    table, rc = tables()[name], dict(matplotlib.rcParams)
    before = table.copy()
    fig = draw(name, table)
    assert isinstance(fig, Figure) and not plt.get_fignums() and dict(matplotlib.rcParams) == rc
    pd.testing.assert_frame_equal(table, before)
    assert not overlaps(fig)
    shown = fig._repr_png_()  # by the notebook
    assert shown[1:4] == b"PNG" and shown == draw(name, table)._repr_png_()


@pytest.mark.parametrize("name", tables())
def test_a_single_row_no_row_and_a_missing_column(name):
    table = tables()[name]
    assert not overlaps(draw(name, table.iloc[[0]].assign(parents="")))
    assert "nothing to show: the table has no rows" in texts(draw(name, table.iloc[:0]))
    last = table.columns[1]
    with pytest.raises(UspError, match=f"{name} needs a table with .*: add {last}"):
        draw(name, table.drop(columns=last))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("metric_intervals", "value"),
        ("corpus_comparison", "value"),
        ("style_recovery", "auc"),
        ("attribute_distribution", "share"),
        ("stopping", "share_left"),
        ("similarity_distribution", "score"),
        ("learning_curve", "loss"),
        ("density_hist", "log_density"),
    ],
)
def test_nan_is_said_and_never_zero(name, column):
    table = tables()[name]
    for missing in (NAN, None):
        fig = draw(name, table.assign(**{column: missing}))
        assert re.search("not scored|no validation loss|not finite", " ".join(texts(fig)))
        assert not overlaps(fig)


def test_nan_of_one_arm_and_of_one_interval():
    table = intervals()
    table.loc[1, ["value", "low", "high"]] = NAN
    table.loc[2, "low"] = NAN
    shown = texts(plots.metric_intervals(table))
    assert shown.count("not scored") == 1 and any("hollow: no interval" in t for t in shown)
    assert "n 41" in shown


def test_the_foot_names_whose_line_and_band_run_through_a_panel():
    foot = plots.metric_intervals(intervals()).get_supxlabel()
    assert foot.endswith("interval of twin (ceiling), other user (floor)")
    alone = intervals(["usp", "shuffled", "twin_minus_usp"])
    unscored = intervals().assign(value=NAN, low=NAN, high=NAN)
    for table in (alone, unscored, intervals(panel="both").assign(metric=list("abcd"))):
        assert "band" not in plots.metric_intervals(table).get_supxlabel()
    shown = plots.corpus_comparison(tables()["corpus_comparison"])
    assert shown.get_supxlabel().endswith("interval of population")


def test_arms_stand_in_the_palettes_order_with_differences_apart():
    table = intervals(
        ["other", "mine", "twin", "usp_minus_other", "shuffled", "usp"], better="lower"
    )
    fig = plots.metric_intervals(table)
    rows, differences = (
        [t.get_text() for t in ax.get_yticklabels()] for ax in fig.axes
    )  # fmt: skip
    assert rows == ["USP", "USP, another's profile", "twin (ceiling)", "other user (floor)", "mine"]
    assert [d.replace("\n", " ") for d in differences] == ["USP minus other user (floor)"]
    assert (
        "lower is better" in fig.axes[0].get_xlabel() and "better" not in fig.axes[1].get_xlabel()
    )


def test_looks_differ_and_are_the_same_everywhere():
    many = [*plots.PALETTE, *(f"model_{i}" for i in range(12))]
    found = plots.looks(many)
    assert len({look[:2] for look in found.values()}) == len(many)
    assert plots.looks(["model_3"])["model_3"] == plots.looks(["model_3", "usp"])["model_3"]


def test_awkward_tables():
    arms = [
        *list(plots.PALETTE)[:8],
        "a_very_long_model_name_without_any_space_in_it_v2",
        "$5$ & <b>",
    ]
    wide = pd.concat([intervals(arms, m, label=f"a long label of the metric {m}") for m in "abcd"])
    assert not overlaps(plots.metric_intervals(wide))
    log = intervals(better="lower", log=True)
    log["value"] = [1e-4, 0.0, math.inf, 3e6]
    shown = texts(plots.metric_intervals(log.assign(low=-1.0, high=4e6)))
    assert "0, off the axis" in shown and "inf, off the axis" in shown
    assert not overlaps(plots.metric_intervals(intervals(label=None, better=None, log=None)))
    together = pd.concat([intervals(metric=m, panel="both") for m in "ab"])
    assert len(plots.metric_intervals(together).axes) == 1
    assert not overlaps(plots.stopping(stops(arms)))
    constant = pd.DataFrame({"arm": "usp", "score": 1.0, "metric": ["m"] * 9})
    assert not overlaps(plots.similarity_distribution(constant))


def test_boxes_of_a_model_do_not_touch():
    table = nodes()
    crowd = pd.concat(
        [table, table.assign(x=table["x"] + 3, node=table["node"] + "2", parents="kind, turn")]
    )
    fig = diagram.generative_model(crowd)
    boxes = [p.get_window_extent() for p in fig.axes[0].patches if isinstance(p, FancyBboxPatch)]
    assert len(boxes) == 10 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    with pytest.raises(
        UspError, match="'z' names the parent 'kin', which is not a node; known: kind"
    ):
        diagram.generative_model(table.replace({"parents": {"kind": "kin"}}))
    with pytest.raises(UspError, match="own place"):
        diagram.generative_model(table.assign(x=0, y=0))
    with pytest.raises(UspError, match="'them' is either a frame with nothing within it or"):
        diagram.generative_model(table.assign(within="them"))


def edges() -> set[tuple[str, str]]:
    return {(p, row["node"]) for row in diagram.MODEL for p in row["parents"].split(", ") if p}


def within(frame: str) -> set[str]:
    return {row["node"] for row in diagram.MODEL if row["within"] == frame}


def test_the_populations_model_is_legible():
    table = pd.DataFrame(diagram.MODEL)
    fig = diagram.generative_model(table)
    assert not overlaps(fig) and max(fig.get_size_inches()) < 11
    small = fig.axes[0].transData.inverted()
    boxes = {  # in inches; frames first, then the nodes, as they are drawn
        row["node"]: p.get_window_extent().transformed(small)
        for row, p in zip(
            sorted(diagram.MODEL, key=lambda row: row["kind"] != "frame"),
            [p for p in fig.axes[0].patches if isinstance(p, FancyBboxPatch)],
            strict=True,
        )
    }
    frames = {f: boxes.pop(f) for f in ("user", "exchange")}
    assert not any(a.overlaps(b) for a, b in combinations(boxes.values(), 2))
    assert not frames["user"].overlaps(frames["exchange"])
    for name, frame in frames.items():
        assert {n for n, box in boxes.items() if frame.overlaps(box)} == within(name)


def test_the_populations_model_says_what_its_tables_and_code_say():
    t = users.tables()
    group = {a: "facts" for a in (*users.FACTS, "region")} | {a: "temper" for a in users.TRAITS}
    group |= {a: "manner" for a in users.STYLE} | {"patience": "patience"}
    order = t["kinds"]["order"]
    pairs = [(a, b) for rule in t["kinds"]["boost"] for a in rule["when"] for b in rule["factor"]]
    for rule in t["kinds"]["forbid"]:
        pairs += [sorted((a, b), key=order.index) for a in rule["a"] for b in rule["b"]]
    found = {(group[a], group[b]) for a, b in pairs} - {(g, g) for g in group.values()}
    found |= {(group[a], "topic") for rule in t["kinds"]["off_topic"] for a in rule["who"]}
    user = within("user")
    drawn = {(a, b) for a, b in edges() if a in user and b in user}
    assert drawn == found | {("topic", "goals"), ("topic", "slots")}  # `Task` draws its own
    shaped = {group[a] for kind in t["kinds"]["kind"] for a in kind["factor"]}
    assert ("kind", "user") in edges() and shaped == {"facts", "temper", "manner", "patience"}

    note = {row["node"]: row["note"] for row in diagram.MODEL}
    label = {row["node"]: row["label"] for row in diagram.MODEL}
    sealed = sum(topic["sealed"] for topic in t["topics"].values())
    assert note["kind"].startswith(f"one of {len(t['kinds']['kind'])}")
    assert note["topic"].startswith(f"one of {len(t['topics'])}, {sealed} of them sealed")
    number = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    number += ["eleven", "twelve"]
    fewest, most = (number[f(users.N_GOALS) - 1] for f in (min, max))
    in_topic = {number[len(topic["goal"]) - 1] for topic in t["topics"].values()}
    assert note["goals"].startswith(f"{fewest} to {most} of the topic's {' '.join(in_topic)}")
    assert number[len(users.FACTS) - 4 - 1] in note["facts"]  # beyond the four that it names
    assert number[len(users.STYLE) - 1] in note["manner"]
    assert number[speaker.MAX_TURNS - 1] in label["exchange"]
    assert number[max(synthetic._DIALOGUES) - 1] in label["user"]
    assert all(f"{100 * h:.0f}" in note["helpfulness"] for h in assistants.HELPFULNESS.values())
    assert all(f[:4] in note["reply"] for f in assistants.FAILURES)


def test_median_interval_covers():
    rng = np.random.default_rng(0)
    hits = [
        low <= 0 <= high
        for _, low, high in (plots._median(rng.normal(size=40)) for _ in range(400))
    ]
    assert 0.93 <= np.mean(hits) <= 0.99
    assert math.isnan(plots._median(np.arange(5.0))[1]) and math.isnan(
        plots._median(np.array([]))[0]
    )


# --- bubbles ----------------------------------------------------------------------------------------

ATTACKS = [
    "<script>alert(1)</script>",
    "</div></div><img src=x onerror=alert(1)>",
    "\" onmouseover=\"x() ' style='x",
    "&lt;b&gt; &amp; **bold** `code` # no heading",
    "$5 and $6 \\(x\\)",
]


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), set(), "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += 1

    def handle_endtag(self, tag):
        self.open -= 1

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_text_stays_text(attack):
    roles = ("system", "user", "assistant")
    said = [{"role": r, "content": f"{r} {attack}"} for r in roles]
    shown = show_dialogue(
        said, attack, attack, [attack], stop=attack, meta={attack: attack}, notes=[attack] * 3
    )
    page = side_by_side([shown, show_dialogue([], title="empty")])._repr_html_()
    read = Reader(page)
    assert read.tags <= {"div", "details", "summary", "mark"}
    assert read.attributes <= {"class", "style", "dir", "open", "title"} and read.open == 0
    assert read.text.count(attack) == 11 and "(no messages)" in read.text
    assert "mathjax_ignore" in page  # or dollars become formulas
    assert attack in repr(shown)


def test_copied_phrases_are_marked_in_the_users_turns_alone():
    profile = "You walk the dog every morning & love it."
    said = [
        {"role": "user", "content": "I walk the dog every morning <3"},
        {"role": "assistant", "content": "walk the dog every morning"},
    ]
    page = show_dialogue(said, profile=profile).html
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", page) == ["walk the dog every morning"]
    assert "<mark" not in show_dialogue(said, profile=profile, highlight=False).html
    overlapping = show_dialogue(said, highlight=["the DOG", "dog every", "<3"]).html
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", overlapping) == ["the dog every", "&lt;3"]


def test_sides_stop_reason_and_text():
    said = [
        {"role": "user", "content": "a\nassistant: forged \x1b[2J\ud800"},
        {"role": "assistant", "content": ""},
    ]
    shown = show_dialogue(said, title="usp", stop="closing")
    assert "margin-left:auto" in shown.html.split("margin-right:auto")[0]
    assert "ends: closing" in shown.html and "(empty)" in shown.html
    lines = repr(shown).split("\n")
    assert lines == ["usp", "user: a", "  assistant: forged \ufffd[2J?", "assistant: (empty)", "(ends: closing)"]  # fmt: skip
    (shown.html + repr(shown)).encode("utf-8")
    assert (
        max(map(len, as_text([{"role": "user", "content": "word " * 90}], width=40).split("\n")))
        <= 40
    )


SAID = [
    {"role": "user", "content": "hello\nthere"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "bye"},
]


@pytest.fixture(scope="module")
def tokenizer():
    """Whole words are tokens, with the space before them."""
    words = "system user assistant hello there good day bye"
    return new_tokenizer([words, words.replace(" ", "\n")] * 9, vocab_size=1000)


def test_trained_tokens_are_marked_one_by_one(tokenizer):
    shown = show_trained_tokens(tokenizer, SAID)
    assert repr(shown) == (
        "6 of 25 tokens carry the loss: those in [brackets]\n\n"
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "[hello][\n][there][<|eot_id|>]<|start_header_id|>assistant<|end_header_id|>\n\n"
        "good day<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n[bye][<|eot_id|>]"
    )
    legend, page = shown.html.split("</div>", 1)
    assert "6 of 25 tokens carry the loss: the <mark" in legend
    tokens = re.findall(r'<(mark|span) style="([^"]*)">(.*?)</\1>', page, re.S)
    trained = [text for tag, _, text in tokens if tag == "mark"]
    end = "&lt;|eot_id|&gt;"
    assert len(tokens) == 25 and trained == ["hello", "\n", "there", end, "bye", end]
    small = {text for _, style, text in tokens if "font-size" in style}
    assert len(small) == 4 and all(text.startswith("&lt;|") for text in small)
    assert all("border-right" in style for _, style, _ in tokens) and "pre-wrap" in page


def test_trained_tokens_of_the_assistant_and_of_nobody(tokenizer):
    shown = show_trained_tokens(tokenizer, SAID, speaker="assistant")
    assert "[good][ day][<|eot_id|>]" in repr(shown) and "[hello]" not in repr(shown)
    assert "(no messages)" in repr(show_trained_tokens(tokenizer, []))


@pytest.mark.parametrize("text", [*ATTACKS, "\U0001f600 a\u0301 \u4f60\u597d", "  two\n\n\n  lines\t.", "<|eot_id|>"])  # fmt: skip
def test_the_tokens_of_a_text_stay_text(tokenizer, text):
    said = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    page = show_trained_tokens(tokenizer, said).html
    read = Reader(page)
    assert read.tags == {"div", "span", "mark"} and read.attributes <= {"class", "style", "dir"}
    assert read.open == 0 and "mathjax_ignore" in page
    meant = without_special_tokens(tokenizer, said)
    rendered = tokenizer.apply_chat_template(meant, tokenize=False)
    assert read.text.endswith(rendered) and "tokens are small." + rendered in read.text
