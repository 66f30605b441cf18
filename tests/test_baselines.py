"""Baseline simulators: what each says and is told, seeds, and what `arm` makes of a name."""

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from usp_lab import baselines, endpoints
from usp_lab.assistants import scripted
from usp_lab.baselines import (
    ARMS,
    PromptedUser,
    Replayed,
    RetrievalSimulator,
    RoleplayStandIn,
    UserLMSimulator,
    arm,
    from_function,
)
from usp_lab.chat import END_TOKEN, is_closing, read_profile, system_message
from usp_lab.data import Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.look_alikes import look_alike
from usp_lab.metrics import profile_copy
from usp_lab.persona import first_person, read_persona, someone_who
from usp_lab.prompted import intent_of
from usp_lab.roleplay import quotable, texts
from usp_lab.simulate import simulate
from usp_lab.simulators import TwinSimulator, UserSimulator, identity
from usp_lab.users import tables

PROFILE = (
    "You are a nurse in a hospital. You live on your own, and you keep two cats. Your concern is a tax "
    "return, above all how to file it late and what a laptop counts for.\n\nYou write short messages."
)


@pytest.fixture(scope="module")
def population():
    return load_dialogues("population", n=200)


def talk(name: str, *turns: str, profile: str | None = None) -> Dialogue:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]
    return Dialogue(id=name, messages=messages, profile=profile, user_id=name)


def said(simulator, targets, seed=0, **options):
    options = {"max_turns": 6, "progress": False} | options
    dialogues = simulate(simulator, scripted("fair"), targets, seed=seed, **options)
    return [[m["content"] for m in d.messages] for d in dialogues]


class Words:
    """Sentence embeddings for tests: hashed bags of words."""

    name = "words"

    def encode(self, texts):
        out = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % 64] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


@dataclass
class Client:
    """Answers as told and remembers what it was asked."""

    answers: list[str]
    endpoint: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(model="m", concurrency=7, url="http://secret")
    )
    usage: str = "usage"

    def __post_init__(self):
        self.asked = []

    def chat(self, messages, sampling, seed):
        self.asked.append(messages)
        return self.answers.pop(0)

    def complete(self, prompt, sampling, stop, seed, *, may_be_empty=False):
        self.asked.append(prompt)
        return self.answers.pop(0)

    def check(self, *, sampling=None, completions=False):
        self.asked.append({"completions": completions})


# --- one protocol ---------------------------------------------------------------------------------


def test_seeds_for_every_simulator_in_process(population, tmp_path):
    torch.set_num_threads(1)
    targets, train = population.test[:8], population.train
    model = UserSimulator.from_pretrained(look_alike(tmp_path, context=2048), max_new_tokens=6)
    plato = UserSimulator(model.model, model.tokenizer, model.sampling, "plato", with_profile=False)
    makers = {
        "retrieval": lambda: RetrievalSimulator(train, Words()),
        "roleplay": lambda: arm("roleplay"),
        "twin": lambda: arm("twin", targets=targets),
        "other": lambda: arm("other", targets=targets),
        "live twin": TwinSimulator,
        "usp": lambda: arm("usp", model=model),
        "usp_end": lambda: arm("usp_end", model=model),
        "shuffled": lambda: arm("shuffled", model=model, targets=targets),
        "empty": lambda: arm("empty", model=model, targets=targets),
        "plato": lambda: arm("plato", model=plato),
        "function": lambda: from_function(lambda p, m, rng: f"{rng.random()} {len(m)}", "f", "-"),
    }
    for name, make in makers.items():
        first = said(make(), targets, max_turns=3)
        assert (
            first
            == said(make(), targets, max_turns=3)
            == said(make(), targets, max_turns=3, batch_size=3)
        ), name
        assert first != said(make(), targets, 1, max_turns=3), name
        assert first != said(make(), targets, max_turns=3, replicate=1), name
        assert identity(make()) == identity(make()) and " at 0x" not in identity(make()), name
        assert len(make().given) > 8 or name == "function", name


def test_identity_tells_settings_apart(population):
    a, b = population.test[:8], population.validation[:8]
    train = population.train
    several = [
        RetrievalSimulator(train, Words()),
        RetrievalSimulator(train[1:], Words()),
        RetrievalSimulator(train, Words(), k=1),
        RetrievalSimulator(train, shortlist=0),
        RoleplayStandIn(),
        arm("other", targets=a),
        arm("other", targets=b),
        arm("other", targets=a, seed=1),
        arm("twin", targets=a),
        PromptedUser(Client([]), "roleplay"),
        PromptedUser(Client([]), "character"),
        UserLMSimulator(Client([])),
        UserLMSimulator(Client([]), {"x": "y"}),
        from_function(lambda p, m, r: "a", "f", "-"),
        from_function(lambda p, m, r: "b", "f", "-"),
        from_function(lambda p, m, r: "a", "g", "-"),
    ]
    assert len({identity(s) for s in several}) == len(several)
    assert not any("secret" in identity(s) for s in several)  # neither address nor key


# --- retrieval ------------------------------------------------------------------------------------

TRAIN = [
    talk("1", "how do I store sourdough", "In a jar, in the fridge.", "which jar", "Any.",
         profile="You bake bread."),
    talk("2", "fix a bike puncture", "Use a patch.", "where do I get one", "Anywhere.", "cheers bye", "Bye!",
         profile="You ride a bike."),
    talk("3", "what is a fair rent", "It depends on the town.", "that tells me nothing", "Sorry.",
         profile="You are looking for a flat."),
]  # fmt: skip


@pytest.mark.parametrize("shortlist", [0, 1, 6])
def test_retrieval_says_what_followed_the_nearest_context(shortlist):
    near = RetrievalSimulator(TRAIN, Words(), k=1, shortlist=shortlist)
    start = [system_message("You like to ride your bike to work.")]
    (opening,) = near.generate([start], [0])
    assert opening == "fix a bike puncture" and 0 < opening.meta["similarity"] <= 1
    context = [
        *start,
        {"role": "user", "content": "my bike has a puncture"},
        {"role": "assistant", "content": "A patch will do."},
    ]
    assert near.generate([context, start], [0, 0])[0] == "where do I get one"
    for d in (TRAIN[0], TRAIN[2]):  # where that user left
        (turn,) = near.generate([d.messages], [0])
        assert turn == "" and turn.meta["left"]


def test_retrieval_repeats_no_turn_and_then_leaves():
    near = RetrievalSimulator(TRAIN, Words())
    turns = [r for t in TRAIN for r in t.user_turns]
    messages = [system_message("x")]
    for t in turns:
        messages += [{"role": "user", "content": t.upper()}, {"role": "assistant", "content": "ok"}]
    left = near.generate([messages], [0])[0]
    assert left == "" and left.meta["left"]
    nothing = RetrievalSimulator([talk("o", "hi")], Words())
    assert nothing.generate([messages], [0])[0].meta["left"]


def test_retrieval_chooses_among_k():
    found = {
        str(RetrievalSimulator(TRAIN, Words(), k=k).generate([[system_message("You")]], [s])[0])
        for k in (3,)
        for s in range(60)
    }
    assert found == {t.opening for t in TRAIN}


def test_retrieval_without_profile_starts_from_the_true_first_turn():
    near = RetrievalSimulator(TRAIN, Words())
    assert near.start(talk("t", "hello", "hi")) == [{"role": "user", "content": "hello"}]
    assert near.start(talk("t", "hello", profile="p")) == [system_message("p")]
    with pytest.raises(UspError, match="t has neither a profile nor a first turn"):
        near.start(talk("t"))


def test_retrieval_of_nothing():
    for train in ([], [talk("e")]):
        with pytest.raises(UspError, match="no training dialogue"):
            RetrievalSimulator(train)
    for bad in ({"k": 0}, {"k": 4, "shortlist": 3}, {"shortlist": -1}):
        with pytest.raises(UspError, match="give k of at least 1"):
            RetrievalSimulator(TRAIN, Words(), **bad)


def test_retrieval_loads_no_encoder_before_it_needs_one(monkeypatch):
    def no(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("usp_lab.models.sentence_encoder", no)
    RetrievalSimulator(TRAIN, shortlist=0).generate([[system_message("You")]], [0])
    with pytest.raises(AssertionError, match="loaded"):
        RetrievalSimulator(TRAIN).generate([[system_message("You")]], [0])


def test_retrieved_turns_are_real_ones(population):
    known = {t for d in population.train for t in d.user_turns}
    simulator = RetrievalSimulator(population.train, Words())
    dialogues = simulate(simulator, scripted("good"), population.test[:8], progress=False)
    assert all(t in known for d in dialogues for t in d.user_turns)
    for d in dialogues:
        assert len({t.lower() for t in d.user_turns}) == d.n_turns


# --- role-play ------------------------------------------------------------------------------------


def test_stand_in_says_that_it_is_one():
    assert "scripted stand-in" in RoleplayStandIn.name and "scripted" in RoleplayStandIn.given


def test_stand_in_recites_praises_and_never_stops(population):
    targets = population.test
    by = {a: simulate(RoleplayStandIn(), scripted(a), targets, max_turns=9, progress=False)
          for a in ("good", "bad")}  # fmt: skip
    for dialogues in by.values():
        assert {d.stop for d in dialogues} == {"max turns"}
        assert not any(is_closing(t) for d in dialogues for t in d.user_turns)
        metas = [m["meta"] for d in dialogues for m in d.messages if m["role"] == "user"]
        assert all(m["praises"] for m in metas if m["act"] != "open")
        for d in dialogues:
            for m in d.messages[::2]:
                spans = m["meta"]["recites"] + m["meta"]["praises"]
                assert all(s in m["content"] for s in spans)
                assert "{" not in m["content"] and "  " not in m["content"]
    copied = [profile_copy(d.profile, d.user_turns) for d in by["good"]]
    real = [profile_copy(t.profile, t.user_turns) for t in targets]
    # people name what they ask for by its title, too
    assert np.nanmean(copied) > 2.5 * np.nanmean(real)
    openings = {d.opening for d in by["good"]}
    assert len(openings) == len(targets)


def test_stand_in_asks_for_what_the_profile_wants(population):
    asked = [set(t.truth["asked"]) for t in population.test]
    dialogues = simulate(RoleplayStandIn(), scripted("good"), population.test, progress=False)
    met = [{g for m in d.messages for g in m.get("meta", {}).get("met", [])} for d in dialogues]
    hits = sum(len(a & m) for a, m in zip(asked, met, strict=True))
    assert hits / sum(map(len, asked)) > 0.85


def test_stand_in_needs_a_profile():
    with pytest.raises(UspError, match="d has no profile, which the role-play"):
        RoleplayStandIn().start(talk("d", "hi"))
    (turn,) = RoleplayStandIn().generate([RoleplayStandIn().start("")], [0])
    assert turn.endswith("?") and turn.meta == {"act": "open", "recites": [], "praises": []}


def test_texts_of_the_stand_in_fit_together():
    known = {"who", "noun", "clause", "title", "topic", "quote"}
    for key, frames in texts()["roleplay"].items():
        assert len(frames) == len(set(frames)) >= 5, key
        for frame in frames:
            assert set(part.split("}")[0] for part in frame.split("{")[1:]) <= known, frame
    assert all(len(t.split()) > 20 for t in texts()["roleplay"]["thank"])


@pytest.mark.parametrize(
    "said_of_you, of_me, who",
    [
        ("You live on your own", "I live on my own", "lives on their own"),
        ("You rarely worry", "I rarely worry", "rarely worries"),
        ("You do not greet", "I do not greet", "does not greet"),
        ("You were once cheated", "I was once cheated", "was once cheated"),
        ("You left school as soon as you could", "I left school as soon as I could", "left school as soon as they could"),
        ("You have friends you have never met", "I have friends I have never met", "has friends they have never met"),
        ("Your physio sees you twice a week", "My physio sees me twice a week", ""),
        ("You came up the hard way and are proud of it", "I came up the hard way and am proud of it", None),
        ("Your passport says male, and so do you", "My passport says male, and so do I", ""),
        ("You share a home, just the two of you", "I share a home, just the two of us", None),
        ("You say you know a lot", 'I say "you know" a lot', 'says "you know" a lot'),
    ],
)  # fmt: skip
def test_first_and_third_person(said_of_you, of_me, who):
    assert first_person(said_of_you) == of_me
    if who is not None:
        assert someone_who(of_me) == who


def test_persona():
    persona = read_persona(PROFILE)
    assert persona.wants == ("how to file it late", "what a laptop counts for")
    assert persona.topic == "a tax return"
    assert [f.clause for f in persona.facts] == [
        "I am a nurse in a hospital",
        "I live on my own",
        "I keep two cats",
        "I write short messages",
    ]
    assert (
        persona.facts[0].noun == "a nurse in a hospital"
        and persona.facts[2].who == "keeps two cats"
    )
    other = read_persona("The user prefers tea. I don't like camping. A student who asks for help.")
    assert [f.clause for f in other.facts] == [
        "I prefer tea",
        "I don't like camping",
        "I am a student who asks for help",
    ]
    assert other.facts[1].who == "doesn't like camping"
    assert read_persona("") == read_persona("\n\n")


def test_every_fact_of_the_population_can_be_recited():
    t = tables()
    groups = [
        *t["attributes"].values(),
        *t["manner"]["trait"].values(),
        *t["manner"]["style"].values(),
    ]
    facts = [
        f for g in groups for v in g.values() for f in (v["fact"] if isinstance(v, dict) else [])
    ]
    assert len(facts) > 500
    for fact in facts:
        clauses = read_persona(f"{fact}.").facts
        assert clauses, fact
        for c in clauses:
            text = (
                c.clause.replace('"you know"', "")
                .replace('"thank you"', "")
                .replace('"u for you"', "")
            )
            assert not {"you", "your"} & set(text.lower().split()), c
            assert " they is " not in c.who and not c.who.startswith("I "), c


def test_quotable():
    assert (
        quotable("Well, if it rains then stay in. The next bus goes at nine.")
        == "The next bus goes at nine"
    )
    assert quotable("No. Yes, maybe.") is None and quotable("| a | b | c | d |") is None


# --- replayed -------------------------------------------------------------------------------------


def test_replays_in_order_and_leaves():
    mine = talk("a", "one", "x", "two", "y")
    (d,) = simulate(Replayed([mine]), scripted("good"), [mine], progress=False)
    assert d.user_turns == ["one", "two"] and d.stop == "left"


def test_replay_keeps_to_the_dialogue_it_began():
    choice = [talk(f"c{i}", *(f"{i} says {k} about nothing" if k % 2 == 0 else "ok" for k in range(8)))
              for i in range(5)]  # fmt: skip
    target, begun = talk("t", "x", profile="p"), set()
    for seed in range(20):
        (d,) = simulate(
            Replayed({"t": choice}), scripted("bad"), [target], seed=seed, progress=False
        )
        assert d.user_turns == choice[int(d.opening[0])].user_turns
        begun.add(d.opening)
    assert len(begun) == 5


def test_other_is_another_user_and_twin_the_same(population):
    targets = population.test[:12]
    other, twin = arm("other", targets=targets), arm("twin", targets=targets)
    for t in targets:
        assert all(d.user_id != t.user_id for d in other.dialogues[t.id])
        assert [d.user_id for d in twin.dialogues[t.id]] == [t.user_id] * 3
        assert all(d.truth["goals"] == t.truth["goals"] for d in twin.dialogues[t.id])
    assert (other.name, twin.name) == ("other", "twin")


def test_nothing_to_replay():
    with pytest.raises(UspError, match="no dialogue to replay; give"):
        Replayed([])
    with pytest.raises(UspError, match="target 'e' has no user turn"):
        Replayed([talk("e")])
    with pytest.raises(UspError, match="no dialogue to replay for target 'b'"):
        Replayed([talk("a", "hi")]).start(talk("b", "hi"))
    with pytest.raises(UspError, match="a is not of the population"):
        arm("twin", targets=[talk("a", "hi")])
    with pytest.raises(UspError, match="draws must be at least 1, not 0"):
        arm("other", targets=[talk("a", "hi"), talk("b", "ho")], draws=0)


# --- a function, other profiles -------------------------------------------------------------------


def test_function_sees_profile_turns_and_a_stream_of_its_own():
    seen = []

    def user(profile, messages, rng):
        seen.append((profile, [m["role"] for m in messages], rng.random()))
        return None if len(messages) > 2 else f"turn {len(messages)}"

    mine = from_function(user, "mine", "the profile")
    (d,) = simulate(mine, scripted("good"), [talk("t", "x", profile="p")], progress=False)
    assert d.user_turns == ["turn 0", "turn 2"] and d.stop == "left"
    assert [s[:2] for s in seen] == [
        ("p", []),
        ("p", ["user", "assistant"]),
        ("p", ["user", "assistant"] * 2),
    ]
    assert len({s[2] for s in seen}) == 3
    assert (mine.name, mine.given) == ("mine", "the profile")
    mine.generate([mine.start(talk("t", "x"))], [0])
    assert seen[-1][0] is None
    ended = from_function(lambda *_: END_TOKEN, "e", "-")
    assert simulate(ended, scripted("good"), ["p"], progress=False)[0].stop == "end token"
    with pytest.raises(UspError, match="simulator 'wrong' returned 7; return the turn"):
        from_function(lambda *_: 7, "wrong", "-").generate([[]], [0])


def test_shuffled_and_empty_are_told_other_profiles(tmp_path):
    targets = [talk(n, "hi", profile=f"profile of {n}") for n in "abc"]
    model = UserSimulator.from_pretrained(look_alike(tmp_path))
    shuffled = arm("shuffled", model=model, targets=targets)
    told = [read_profile(shuffled.start(t)[0]["content"]) for t in targets]
    assert sorted(told) == [t.profile for t in targets] and not any(
        a == t.profile for a, t in zip(told, targets, strict=True)
    )
    empty = arm("empty", model=model, targets=targets)
    assert [read_profile(empty.start(t)[0]["content"]) for t in targets] == [""] * 3
    assert (shuffled.name, empty.name) == ("shuffled", "empty") and "another" in shuffled.given
    assert len({identity(s) for s in (model, shuffled, empty)}) == 3
    with pytest.raises(UspError, match="no profile to tell for target 'z'"):
        shuffled.start(talk("z", "hi"))


# --- at an endpoint -------------------------------------------------------------------------------


def test_prompted_user_swaps_roles():
    client = Client(
        ['"hi there"', "User: and now?", "<|endconversation|>", "bye <|endconversation|>"]
    )
    user = PromptedUser(client, "roleplay")
    assert user.remote and user.concurrency == 7 and user.usage == "usage"
    start = user.start(talk("t", "x", profile=PROFILE))
    more = [
        *start,
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "content": "Hm."},
    ]
    turns = [user.generate([m], [0])[0] for m in (start, more, more, more)]
    assert turns == ["hi there", "and now?", END_TOKEN, "bye"]
    first, second = client.asked[:2]
    assert [m["role"] for m in first] == ["system", "user"] and PROFILE in first[0]["content"]
    assert [(m["role"], m["content"]) for m in second[2:]] == [
        ("assistant", "hi there"),
        ("user", "Hm."),
    ]
    with pytest.raises(UspError, match="t has no profile, which arm 'roleplay' is told"):
        user.start(talk("t", "x"))


def test_prompted_user_without_profile_is_told_none():
    client = Client(["ok"])
    user = PromptedUser(client, "no_profile")
    start = user.start(talk("t", "true first turn", profile=PROFILE))
    user.generate([[*start, {"role": "assistant", "content": "Hm."}]], [0])
    assert start[0]["content"] == "true first turn" and "nurse" not in str(client.asked)
    with pytest.raises(UspError, match="give dialogues, not profiles"):
        user.start("a profile")


def test_userlm_is_told_the_intent_and_knows_the_end():
    client = Client(["how late can I file", "", "<|endconversation|>"])
    user = UserLMSimulator(client)
    start = user.start(talk("t", "x", profile=PROFILE))
    assert start == [{"role": "system", "content": intent_of(PROFILE)}]
    assert "how to file it late" in start[0]["content"] and "nurse" not in start[0]["content"]
    turns = [user.generate([start], [0])[0] for _ in range(3)]
    assert turns == ["how late can I file", END_TOKEN, END_TOKEN]
    assert client.asked[0].startswith("<|begin_of_text|><|start_header_id|>system")
    assert client.asked[0].endswith("<|start_header_id|>user<|end_header_id|>\n\n")
    user.check()
    assert client.asked[-1]["completions"]
    told = UserLMSimulator(client, {"t": "You are a user who wants tea."})
    assert "tea" in told.start(talk("t", "x"))[0]["content"]
    with pytest.raises(UspError, match="no intent for target 'u'"):
        told.start(talk("u", "x"))
    with pytest.raises(UspError, match="u says no request"):
        user.start(talk("u", "x", profile="You live alone."))


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no_profile", "character", "userlm"])
def test_refused_without_an_endpoint(name):
    with pytest.raises(UspError, match=f"arm '{name}' is a language model at an endpoint") as error:
        arm(name)
    assert "\n" not in str(error.value)


def test_arms_by_name(population):
    assert isinstance(arm("roleplay"), RoleplayStandIn)
    assert isinstance(arm("roleplay", client=Client([])), PromptedUser)
    assert isinstance(arm("userlm", client=Client([])), UserLMSimulator)
    assert arm("retrieval", train=TRAIN).name == "retrieval"
    with pytest.raises(UspError, match="no arm 'rolplay'; known: usp, "):
        arm("rolplay")
    for name, needs in ARMS.items():
        if "client" not in needs:
            with pytest.raises(UspError, match=f"arm '{name}' needs {needs}; no "):
                arm(name)
    with pytest.raises(UspError, match="no prompted user 'x'"):
        PromptedUser(Client([]), "x")
    assert set(baselines.__all__) <= set(dir(baselines))


@pytest.mark.parametrize("method", ["chat", "complete", "check"])
def test_the_test_client_is_called_as_the_real_one(method):
    real = set(inspect.signature(getattr(endpoints.Client, method)).parameters)
    mine = set(inspect.signature(getattr(Client, method)).parameters)
    assert mine <= real
