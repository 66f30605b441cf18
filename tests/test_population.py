"""The known-truth population: p(z), dialogues, profiles, twins, sealed sets, what reads it back."""

import math
import os
import re
import subprocess
import sys
import time
from random import Random

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from usp_lab import speaker, synthetic, users, wording
from usp_lab.assistants import FAILURES, ScriptedAssistant, scripted
from usp_lab.chat import is_closing
from usp_lab.errors import UspError
from usp_lab.goals import Intent, fill, goal_finder, read_slots
from usp_lab.surface import HABITS, measure_style, render, spell_out
from usp_lab.users import FACTS, STYLE, TRAITS, contradictions, draw_user, log_density, tables

GOODBYES = {"done", "give_up", "partly"}
REGISTERS = ("blunt", "plain", "roundabout", "later", "push")
MANNER = (*STYLE, "patience")


@pytest.fixture(scope="module")
def train():
    start = time.perf_counter()
    drawn = synthetic.draw("train", 1200, 0)
    print(f"{len(drawn) / (time.perf_counter() - start):.0f} dialogues a second")
    return drawn


@pytest.fixture(scope="module")
def sealed():
    return {
        "phrasings": synthetic.draw("test_new_phrasings", 500, 0, sealed_phrasings=True),
        "topics": synthetic.draw("test_new_topics", 500, 0, sealed_topics=True),
    }


@pytest.fixture(scope="module")
def people():
    rng = Random(0)
    return [draw_user(rng)[1] for _ in range(9000)]


def truth_turns(dialogues):
    """Yield (text, what the turn did, its number, dialogue)."""
    for d in dialogues:
        for i, (text, turn) in enumerate(zip(d.user_turns, d.truth["turns"], strict=True)):
            yield text, turn, i, d


# --- p(z) ---------------------------------------------------------------------------------------


def with_region(z):
    """Return z as the chain of conditionals knows it."""
    return {k: v for k, v in z.items() if k != "place"} | {"region": users._region_of()[z["place"]]}


def test_conditionals_sum_to_one(people):
    order, kinds = tables()["kinds"]["order"], list(users._kinds().values())
    for z, kind in zip(map(with_region, people), kinds, strict=False):
        for i, attribute in enumerate(order):
            p = users._conditional(attribute, {a: z[a] for a in order[:i]}, kind)
            assert sum(p.values()) == pytest.approx(1)
            assert min(p.values()) > 0


def test_density_of_a_single_kind_is_the_product_of_its_conditionals(people, monkeypatch):
    name, kind = next(iter(users._kinds().items()))
    monkeypatch.setattr(users, "_kinds", lambda: {name: kind})
    order = tables()["kinds"]["order"]
    for z in people[:20]:
        full = with_region(z)
        p = 1 / len(users._places()[full["region"]])
        for i, a in enumerate(order):
            p *= users._conditional(a, {b: full[b] for b in order[:i]}, kind)[full[a]]
        assert math.exp(log_density(z)) == pytest.approx(p)


@pytest.mark.parametrize("attribute", ["casing", "politeness", "patience", "length"])
def test_density_agrees_with_the_sampler(people, attribute):
    """The density's p(value | all else) is calibrated: its mean is the frequency among drawn users."""
    values, errors = list(tables()["manner"]["style"][attribute]), []
    for z in people[:150]:
        p = np.exp([log_density(z | {attribute: v}) for v in values])
        errors.append([z[attribute] == v for v in values] - p / p.sum())
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0) / math.sqrt(len(errors))
    assert (abs(mean) <= 4 * spread + 1e-12).all()


def test_density_of_topic_and_goals_sums_to_that_of_the_user(people):
    z = next(z for z in people if not users._off_topics(z))
    open_topics = [k for k, t in tables()["topics"].items() if not t["sealed"]]
    total = sum(math.exp(log_density(z, t)) for t in open_topics)
    assert math.log(total) == pytest.approx(log_density(z))
    keys = [g["key"] for g in tables()["topics"]["chess"]["goal"]]
    pairs = [math.exp(log_density(z, "chess", (a, b))) for a in keys for b in keys if a != b]
    assert math.log(sum(pairs) / users.N_GOALS[2]) == pytest.approx(log_density(z, "chess"))


def test_no_drawn_user_contradicts_himself(people):
    assert not any(map(contradictions, people))
    assert all(math.isfinite(log_density(z)) for z in people[:60])


def test_contradictions_have_no_density(people):
    for rule in tables()["kinds"]["forbid"]:
        pair = {a: values[0] for side in (rule["a"], rule["b"]) for a, values in side.items()}
        assert contradictions(people[0] | pair)
        assert log_density(people[0] | pair) == -math.inf


def test_each_side_of_a_forbidden_pair_is_possible_otherwise(people):
    drawn = {(a, z[a]) for z in people for a in z}
    sides = [side for rule in tables()["kinds"]["forbid"] for side in (rule["a"], rule["b"])]
    assert not {(a, v) for side in sides for a, vs in side.items() for v in vs} - drawn
    every = {(a, v) for a, values in tables()["kinds"]["base"].items() for v in values}
    assert not {(a, v) for a, v in every if a != "region"} - drawn


def test_nobody_asks_off_topic(people):
    rules = tables()["kinds"]["off_topic"]
    assert {t for r in rules for t in r["topics"]} <= set(tables()["topics"])
    z = next(z for z in people if z["occupation"] == "lorry_driver")
    assert log_density(z, "learning_to_drive") == -math.inf
    tasks = [users.draw_task("tradesperson", z, Random(i))[0] for i in range(2000)]
    assert "learning_to_drive" not in tasks and len(set(tasks)) > 40


def test_facts_of_one_and_manner_of_another_often_conflict(people):
    pairs = list(zip(people[::2], people[1::2], strict=False))[:3000]
    joined = [facts | {a: other[a] for a in MANNER} for facts, other in pairs]
    assert 0.05 <= np.mean([bool(contradictions(z)) for z in joined]) <= 0.6


# --- the tables ---------------------------------------------------------------------------------


def strings(node):
    return list(users.texts(node))


def test_every_text_of_a_topic_fills_in():
    for topic in tables()["topics"].values():
        for goal in topic["goal"]:
            for answer in goal["answer"]:
                slots = {k: v[0] for k, v in (topic["slots"] | answer["slots"]).items()}
                texts = strings(answer) + [t for r in REGISTERS for t in goal[r]] + goal["vague"]
                assert not [t for t in texts if "{" in fill(t, slots)]


# Words that would name an attribute's value where it should only show. Numbers of years may stand.
GIVEAWAYS = {
    "age": r"years old|middle-aged|elderly|senior citizen",
    "gender": r"as a (wo)?man\b|i'm a (wo)?man\b|\b(fe)?male\b",
    "student": r"students?", "nurse": r"nurs(e|es|ing)", "teacher": r"teach(er|ers|ing)?",
    "software_developer": r"developer|programmer", "shop_assistant": r"shop assistant|retail",
    "chef": r"chefs?", "lorry_driver": r"lorry|trucker", "electrician": r"electricians?",
    "carpenter": r"carpenter|joiner", "farmer": r"farm(er|ers|ing)", "accountant": r"accountan(t|cy)",
    "lawyer": r"lawyer|solicitor", "doctor": r"as a doctor|i'm a doctor|physician",
    "office_manager": r"office manager", "call_centre_agent": r"call cent(re|er)",
    "warehouse_worker": r"warehouse", "graphic_designer": r"designer", "journalist": r"journalist",
    "musician": r"musician", "researcher": r"researcher|scientist", "hairdresser": r"hairdresser",
    "cleaner": r"i'm a cleaner|as a cleaner", "police_officer": r"police|constable",
    "social_worker": r"social work(er)?", "estate_agent": r"estate agent", "librarian": r"librarian",
    "civil_engineer": r"civil engineer", "small_shop_owner": r"shopkeeper|my own shop",
    "freelancer_translator": r"translator", "cafe_owner": r"my own cafe|cafe owner",
    "retired_teacher": r"retired|teacher", "retired_engineer": r"retired|engineer",
    "retired_clerk": r"retired|clerk", "retired_judge": r"retired|judge",
    "stay_home_parent": r"stay.at.home|house(wife|husband)", "job_seeker": r"unemployed|job.?seeker",
    "school_leaver": r"school.leaver",
    "in_college": r"in college|college student", "apprenticeship": r"apprentic\w+", "degree": r"bachelor\w*",
    "postgraduate": r"postgraduate", "self_taught": r"self.taught", "unattached": r"i'm single",
    "living_alone": r"live alone|live by myself", "couple": r"childless", "newborn": r"newborn",
    "young_kids": r"(young|small|little) (kids|children)|(mother|father) of", "teens": r"teen\w*",
    "single_parent": r"(single|lone) \w+", "grown_kids": r"grown.up|adult children",
    "grandkids": r"(great-)?grand(child|son|daughter|kid|parent)\w*", "caring_parent": r"i care for",
    "flatmates": r"(flat|house|room)mates?", "club_member": r"club member|member of (a|the) club",
    "neighbours": r"my neighbours?", "old_friends": r"old friends?", "online_friends": r"online friends?",
    "close_colleagues": r"(my|close) colleagues", "new_in_town": r"new in town|new here",
    "church_group": r"church group|my church", "early_riser": r"early riser|morning person",
    "night_shift": r"night.?shifts?", "commuter": r"commut\w+", "weekend_only": r"only at weekends",
    "gym_regular": r"the gym", "works_from_home": r"work(ing)? from home|home office",
    "dog_walks": r"dogs?", "school_run": r"school run", "lived_abroad": r"abroad",
    "recovering_injury": r"injur\w+", "first_home": r"first (home|house)", "former_athlete": r"athlete",
    "tight_budget": r"(tight|on a) budget", "career_change": r"change(d)? (of )?careers?|career change",
    "food_allergy": r"allerg\w+", "burned_by_company": r"cheated|scammed", "volunteer": r"volunteer\w*",
    "limited_mobility": r"wheelchair|disabled|mobility",
}  # fmt: skip


def test_asides_show_and_do_not_name():
    named, t = [], tables()
    shown = [
        (a["attr"], a["value"], s)
        for p in t["topics"].values()
        for a in p["aside"]
        for s in a["text"]
    ]
    for a in set(FACTS) - {"place"}:
        shown += [(a, v, s) for v, e in t["attributes"][a].items() for s in e["show"]]
    for a, v, text in shown:
        words = GIVEAWAYS[a if a in GIVEAWAYS else v]
        named += [(a, v, text)] if re.search(rf"\b({words})\b", text, re.IGNORECASE) else []
    assert not named
    assert {a if a in GIVEAWAYS else v for a, v, _ in shown} == set(GIVEAWAYS)


# --- dialogues ----------------------------------------------------------------------------------


def test_same_seed_same_bytes():
    code = (
        "import hashlib, json\nfrom usp_lab.synthetic import draw, twin\n"
        "rows = draw('train', 40, 3) + draw('x', 20, 3, sealed_topics=True, sealed_phrasings=True)\n"
        "rows += [twin(d) for d in rows]\n"
        "print(hashlib.sha256(json.dumps([d.model_dump() for d in rows]).encode()).hexdigest())"
    )
    hashes = set()
    for seed in "12":  # of Python's own hashing, which orders sets
        env = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        hashes.add(run.stdout)
    assert len(hashes) == 1


def test_form_and_course(train):
    assert {d.messages[-1]["role"] for d in train} == {"assistant"}
    for d in train:
        t = d.truth
        assert len(t["hazard"]) == d.n_turns + (t["stop"] == "left")  # one for each decision
        assert t["hazard"][0] == 0 and 0 <= min(t["hazard"]) and max(t["hazard"]) <= 1
        assert d.n_turns <= speaker.MAX_TURNS + 1
        said_goodbye = bool(GOODBYES & set(t["turns"][-1]["acts"]))
        assert said_goodbye == (t["stop"] == "said goodbye")
        assert set(t["met"]) <= {g["key"] for g in tables()["topics"][t["topic"]]["goal"]}


def test_goals_met_in_passing_are_not_asked(train):
    passing = 0
    for d in train:
        met = set()
        for m in synthetic.replay(d):
            if m["role"] == "assistant":
                passing += len(set(m["meta"]["met"]) - {m["meta"]["goal"]})
                met |= set(m["meta"]["met"])
            elif "follow" not in m["meta"]["acts"] and len(met) < 6:
                assert m["meta"]["goal"] not in met
    assert passing > 100


def test_nobody_repeats_himself(train):
    repeats = [len(set(d.user_turns)) < d.n_turns for d in train]
    assert np.mean(repeats) < 0.01


def test_a_bad_assistant_is_pushed_back_and_left(train):
    course = {}
    for name in ("good", "bad"):
        runs = [
            synthetic.talk(synthetic.task_of(d), scripted(name), f"{name}/{i}")[1]
            for i, d in enumerate(train[:250])
        ]
        goals = [d.truth["goals"] for d in train[:250]]
        pushes = [
            bool(set(t["acts"]) & {"push", "annoyed", "wrong", "rude_back"})
            for r in runs
            for t in r["turns"]
        ]
        unmet = [len(set(g) - set(r["met"])) / len(g) for g, r in zip(goals, runs, strict=True)]
        course[name] = np.mean(pushes), np.mean(unmet), np.mean([len(r["asked"]) for r in runs])
    (good_push, good_unmet, good_asked), (bad_push, bad_unmet, bad_asked) = course.values()
    assert good_push < 0.1 and bad_push > 0.4
    assert good_unmet < 0.15 and bad_unmet > 0.5
    assert bad_asked < good_asked


def test_annoyance_makes_leaving_likelier(train):
    task = synthetic.task_of(next(d for d in train if d.truth["user"]["patience"] == "short"))
    user = speaker.PopulationUser(task)
    hazards = [
        user.hazard(speaker._State(left=["x"], turns=2, annoyance=a, reply={"kind": "vague"}))
        for a in range(4)
    ]
    assert hazards == sorted(hazards) and hazards[3] > 0.7


def test_assistants_say_what_they_did(train):
    kinds = {k for d in train for k in d.truth["replies"]}
    assert kinds == {"answer", "follow", "welcome", *FAILURES}
    helped = [
        (d.truth["helpfulness"], k in ("answer", "follow"))
        for d in train
        for k in d.truth["replies"]
        if k != "welcome"
    ]
    for h in (0.15, 0.45, 0.75, 0.95):
        assert np.mean([ok for p, ok in helped if p == h]) == pytest.approx(h, abs=0.06)
    with pytest.raises(UspError, match="between 0 and 1"):
        ScriptedAssistant(1.5)
    with pytest.raises(UspError, match="good, fair, poor, bad"):
        scripted("great")


# --- profiles, twins, sealed sets ---------------------------------------------------------------


def facts_of(attribute, z):
    table = tables()["attributes"].get(attribute) or {
        **tables()["manner"]["trait"], **tables()["manner"]["style"]
    }[attribute]  # fmt: skip
    texts = table["fact"] if attribute == "place" else table[z[attribute]]["fact"]
    return [t.replace("{place}", z["place"]).lower() for t in texts]


def mentions(profile, attribute, z):
    facts = [re.escape(f.rstrip(".")) for f in facts_of(attribute, z)]
    return any(re.search(rf"(^|\W){f}[.,]", profile.lower()) for f in facts)


def test_three_profiles_of_each_dialogue(train):
    for d in train[:300]:
        z, expressed = d.truth["user"], set(d.truth["expressed"])
        profile, everything = d.profile, d.truth["profile_truth"]
        assert len({profile, everything, d.truth["profile_prior"]}) > 1
        for a in (*FACTS, *TRAITS, *MANNER):
            assert mentions(profile, a, z) == (a in expressed), a
            assert mentions(everything, a, z), a
        assert profile.count("\n\n") == everything.count("\n\n") == 1
        for goal in d.truth["asked"]:
            assert synthetic.fill_title(synthetic.task_of(d), goal) in profile


def test_what_is_expressed_can_be_seen(train):
    plain = {
        "filler": "none",
        "typos": "careful",
        "abbreviations": "none",
        "casing": "normal",
        "punctuation": "normal",
    }
    checked = 0
    for d in train:
        z, evidence = d.truth["user"], d.truth["evidence"]
        shown = {e["attr"] for e in evidence}
        assert shown == set(d.truth["expressed"]) & {*FACTS, *TRAITS}
        assert all(z[e["attr"]] == e["value"] for e in evidence)
        assert len(shown) == len(evidence)  # each slips out once
        if all(z[a] == v for a, v in plain.items()) and z["politeness"] != "formal":
            for e in evidence:
                assert e["text"][1:] in d.user_turns[e["turn"]]
                checked += 1
    assert checked > 20


def test_prior_profiles_do_not_look_at_the_dialogue(train):
    for d in train[:40]:
        twin = synthetic.twin(d)
        assert twin.truth["profile_prior"] == d.truth["profile_prior"]
        assert twin.truth["profile_truth"] == d.truth["profile_truth"]


def test_twins_share_user_and_goals_and_differ_in_words(train):
    differ = []
    for d in train[:150]:
        twin = synthetic.twin(d)
        for key in ("user", "topic", "goals", "slots", "helpfulness"):
            assert twin.truth[key] == d.truth[key]
        assert twin.user_id == d.user_id and twin.id != d.id
        differ.append(twin.user_turns != d.user_turns)
    assert np.mean(differ) > 0.95
    assert [m["content"] for m in synthetic.replay(train[0])] == [
        m["content"] for m in train[0].messages
    ]


def bare(text):
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))


def test_sealed_phrasings_never_occur_in_training(train, sealed):
    t, seen_sealed = tables(), 0
    for dialogues, is_train in ((train, True), (sealed["phrasings"], False)):
        for d in dialogues:
            task = synthetic.task_of(d)
            other = wording.Task(task.kind, task.z, task.topic, task.goals, task.slots, sealed=True)
            z, text = task.z, f" {' | '.join(map(bare, d.user_turns))} "
            texts = [
                p
                for g in t["topics"][task.topic]["goal"]
                for r in REGISTERS
                for p in other.phrases(g[r])
            ]
            titles = [g["title"] for g in t["topics"][task.topic]["goal"]]
            frames = [f for r in REGISTERS for f in other.phrases(t["requests"]["ask"][r], 0.2)]
            texts += [f.replace("{title}", title) for f in frames for title in titles]
            texts += [p for _, a, _ in wording.asides(task) for p in other.phrases(a, 0.2)]
            tones = [
                e[z["politeness"]]["text"] for k, e in t["reactions"].items() if k != "assistant"
            ]
            texts += [p for tone in tones for p in other.phrases(tone, 0.2)]
            texts = [bare(fill(p, task.slots | {"place": z["place"]})) for p in texts]
            found = [p for p in texts if len(p.split()) > 3 and f" {p} " in text]
            assert not (is_train and found)
            seen_sealed += len(found)
    assert seen_sealed > 300  # the check does find them where they are


def test_titles_stand_whole_in_requests_by_title(train):
    frames = [f for r in REGISTERS for f in tables()["requests"]["ask"][r]]
    assert all(f.count("{title}") == 1 for f in frames) and len(set(frames)) == len(frames)
    asked = named = 0
    for d in train[:400]:
        if (z := d.truth["user"])["typos"] != "careful" or z["abbreviations"] != "none":
            continue
        text = bare(" | ".join(d.user_turns))
        asked += len(d.truth["asked"])
        named += sum(
            bare(synthetic.fill_title(synthetic.task_of(d), g)) in text for g in d.truth["asked"]
        )
    assert 0.4 < named / asked < 0.9


def test_sealed_topics_never_occur_in_training(train, sealed):
    closed = {k for k, topic in tables()["topics"].items() if topic["sealed"]}
    assert len(closed) >= 10
    assert not {d.truth["topic"] for d in train + sealed["phrasings"]} & closed
    assert {d.truth["topic"] for d in sealed["topics"]} == closed


def test_every_topic_and_goal_comes_up(people):
    rng, drawn = Random(1), set()
    for i, z in enumerate(people[:4000]):
        kind = rng.choice(list(users._kinds()))
        topic, goals = users.draw_task(kind, z, rng, sealed=i % 4 == 0)
        drawn |= {(topic, g) for g in goals}
    assert drawn == {(k, g["key"]) for k, t in tables()["topics"].items() for g in t["goal"]}


def test_prefixes_share_no_user(train):
    test = synthetic.draw("test", 200, 0)
    assert not {d.user_id for d in train} & {d.user_id for d in test}
    zs = {tuple(sorted(d.truth["user"].items())) for d in train}
    assert not zs & {tuple(sorted(d.truth["user"].items())) for d in test}


# --- reading it back ----------------------------------------------------------------------------


def accuracy(dialogues):
    """Return the share of asking turns whose goal is found, openings (topic unknown) and later turns."""
    asks = [row for row in truth_turns(dialogues) if row[1]["goal"]]
    known = [d.truth["topic"] if i else None for _, _, i, d in asks]
    found = goal_finder().find([text for text, *_ in asks], known)
    right = [
        f is not None and (f.topic, f.goal) == (d.truth["topic"], turn["goal"])
        for f, (_, turn, _, d) in zip(found, asks, strict=True)
    ]
    first = np.array([i == 0 for _, _, i, _ in asks])
    return np.mean(np.array(right)[first]), np.mean(np.array(right)[~first])


def test_the_finder_finds_the_goal(train, sealed):
    for dialogues in (train[:250], sealed["phrasings"][:250], sealed["topics"][:250]):
        openings, later = accuracy(dialogues)
        print(f"goal found: openings {openings:.3f}, later turns {later:.3f}")
        assert openings >= 0.96 and later >= 0.98


def test_assistants_cope_with_any_text():
    batch = [[{"role": "user", "content": text}] for text in ("ok", "?", "xyzzy " * 30, "hi there")]
    replies = scripted("good").reply(batch, [0, 1, 2, 3])
    assert [r.meta["kind"] for r in replies] == ["vague"] * 4
    assert replies == scripted("good").reply(batch, [0, 1, 2, 3])


def test_slots_are_read_back_through_slips():
    named = read_slots(["wat shld i pack for lisobn in early apirl"], "city_break", Random(0))
    assert (named["city"], named["month"]) == ("Lisbon", "early April")


@pytest.mark.parametrize("part", ["train", "phrasings", "topics"])
def test_closings_are_told_from_requests(train, sealed, part):
    turns = [row for row in truth_turns(train if part == "train" else sealed[part]) if row[2]]
    truth = np.array([bool(GOODBYES & set(turn["acts"])) for _, turn, _, _ in turns])
    told = np.array([is_closing(text) for text, *_ in turns])
    both = (truth & told).sum()
    print(f"closings: precision {both / told.sum():.3f}, recall {both / truth.sum():.3f}")
    assert both / told.sum() >= 0.97 and both / truth.sum() >= 0.97


def test_habits_show_in_the_text(train):
    styles = [measure_style(d.user_turns) for d in train]
    for habit, (attribute, value, feature, sign) in HABITS.items():
        has = [d.truth["user"][attribute] == value for d in train]
        auc = roc_auc_score(has, [sign * s[feature] for s in styles])
        print(f"{habit}: AUC {auc:.3f} ({sum(has)} dialogues)")
        assert auc >= 0.9, habit


@pytest.mark.parametrize(
    ("casual", "formal"),
    [
        ("I'd been hoping it'd work, wouldn't it?", "I had been hoping it would work, would it not?"),
        ("Won't it taste stale?", "Will it not taste stale?"),
        ("It's been raining and I can't tell what's left.", "It has been raining and I cannot tell what is left."),
        ("Mum's fine, she's moved in.", "Mum's fine, she has moved in."),
    ],
)  # fmt: skip
def test_the_formal_spell_out(casual, formal):
    assert spell_out(casual) == formal


def test_lower_first_spares_names():
    assert speaker.lower_first("What now?") == "what now?"
    for text in ("I'm late.", "Mum rang.", "Lisbon in May?", "USB or not?", "September it is."):
        assert speaker.lower_first(text) == text


def test_rendering_is_plain_for_the_plain(train):
    z = {"casing": "normal", "punctuation": "normal", "typos": "careful", "abbreviations": "none"}
    text = "Well, I'd like one. Or two?"
    assert render([text], z | {"politeness": "curt"}, Random(0)) == text
    assert render([text], z | {"politeness": "curt", "casing": "lower"}, Random(0)) == text.lower()


def test_a_follow_up_takes_no_details_from_another_topics_goal_of_the_same_name():
    before = {"topic": "coffee_brewing", "goal": "water", "answer": 2, "slots": {"drop": "93", "warm": "5"}}  # fmt: skip
    there = ScriptedAssistant(1.0, "helper")
    said = there.respond(Intent("baking_bread", "water", 2), {}, before, Random(0))
    assert said.meta["kind"] == "follow" and {"gap", "wet_pct"} <= said.meta["slots"].keys()
