"""A turn depends on its prompt and seed alone, and is drawn from the right distribution."""

from contextlib import closing

import pytest
import torch
from scipy.stats import chisquare, kstest

from usp_lab.decoding import Draw, Sampling, streams, uniform
from usp_lab.engines import LocalEngine
from usp_lab.errors import UspError
from usp_lab.look_alikes import look_alike
from usp_lab.models import load_causal_lm, load_tokenizer

GREEDY = Sampling(temperature=0, max_new_tokens=24)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=24)
STOPS = range(10, 40)  # a tenth of the vocabulary, so that rows end at different steps


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)  # shapes this small lose by sharing
    model = load_causal_lm(look_alike(tmp_path_factory.mktemp("engine")))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.mul_(6)  # so that a turn depends on all of its prompt
    return model


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model.name_or_path)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 40, 17, 90, 5, 41, 60, 8, 33]
    size = len(tokenizer)
    return [torch.randint(size, (n,), generator=generator).tolist() for n in lengths]


def engine_of(model, tokenizer, pad: str, batch_size: int = 4) -> LocalEngine:
    pad_id = {"own": tokenizer.pad_token_id, "eot": 4, "stop": STOPS[0]}[pad]
    return LocalEngine(model, pad_id, STOPS, batch_size)


@pytest.mark.parametrize("pad", ["own", "eot", "stop"])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_turn_does_not_depend_on_its_batch(model, tokenizer, prompts, sampling, penalty, pad):
    sampling = Sampling(sampling.temperature, sampling.top_p, penalty, 24)
    seeds = list(range(100, 100 + len(prompts)))
    alone = [
        engine_of(model, tokenizer, pad).generate([p], [s], sampling)[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    assert len({len(ids) for ids in alone}) > 3 and all(ids for ids in alone)
    order = [4, 0, 8, 3, 7, 1, 6, 2, 5]
    for batch_size in (1, 2, 5, 64):
        engine = engine_of(model, tokenizer, pad, batch_size)
        assert engine.generate(prompts, seeds, sampling) == alone
        moved = engine.generate([prompts[i] for i in order], [seeds[i] for i in order], sampling)
        assert moved == [alone[i] for i in order]
    neighbours = engine.generate([prompts[1], *[prompts[3]] * 6], [seeds[1], *range(6)], sampling)
    assert neighbours[0] == alone[1]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_is_the_library_s_own_one_by_one(model, tokenizer, prompts, penalty):
    sampling = Sampling(temperature=0, repetition_penalty=penalty, max_new_tokens=24)
    ours = engine_of(model, tokenizer, "eot", 64).generate(prompts, None, sampling)
    for prompt, turn in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            repetition_penalty=penalty,
            max_new_tokens=24,
            eos_token_id=list(STOPS),
            pad_token_id=tokenizer.pad_token_id,
        )
        assert turn == plain[0, len(prompt) :].tolist()


def test_padding_is_not_penalised(model, prompts):
    short, long = prompts[0], prompts[3]
    sampling = Sampling(temperature=0, repetition_penalty=10, max_new_tokens=8)
    alone = LocalEngine(model, 5, [4]).generate([short], None, sampling)[0]
    assert alone[0] not in short
    padded = LocalEngine(model, alone[0], [4]).generate([short, long], None, sampling)[0]
    assert padded == alone


def test_turn_ends_with_its_first_stop_token(model, tokenizer, prompts):
    turns = engine_of(model, tokenizer, "stop").generate(prompts, range(9), SAMPLED)
    for ids in turns:
        assert not set(ids[:-1]) & set(STOPS)
        assert ids[-1] in STOPS or len(ids) == SAMPLED.max_new_tokens


def test_seeds_decide_the_draw(model, tokenizer, prompts):
    engine = engine_of(model, tokenizer, "own", 64)
    same = [prompts[1]] * 20
    turns = engine.generate(same, range(20), SAMPLED)
    assert len({tuple(t) for t in turns}) >= 19
    assert engine.generate(same, [7] * 20, SAMPLED) == [turns[7]] * 20
    for seed in (-1, 2**70):
        assert engine.generate(same[:1], [seed], SAMPLED)  # any integer is a seed
    torch.manual_seed(0)
    first = engine.generate(same, None, SAMPLED)
    assert first != engine.generate(same, None, SAMPLED)
    torch.manual_seed(0)
    assert first == engine.generate(same, None, SAMPLED)


@pytest.mark.parametrize("top_p, temperature", [(1.0, 1.0), (0.7, 1.0), (1.0, 0.5)])
def test_draws_follow_the_softmax(top_p, temperature):
    logits = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0], dtype=torch.double)
    n, chance = 20_000, (logits / temperature).softmax(0)
    if top_p < 1:
        chance[chance.cumsum(0) - chance >= top_p] = 0  # descending already
        chance /= chance.sum()
    scores, slots = logits.float().repeat(n, 1), list(range(n))
    draw = Draw(Sampling(temperature, top_p), n, scores)
    draw.join(slots, slots, [[]] * n)
    for place in range(2):  # the second draw of each stream is as good as its first
        counts = torch.tensor(draw(scores, slots, [place] * n)).bincount(minlength=6).double()
        kept = chance > 0
        assert counts[~kept].sum() == 0
        assert chisquare(counts[kept], chance[kept] * n).pvalue > 0.001


def test_streams_are_uniform_and_independent():
    keys = streams(range(400), torch.device("cpu"))
    numbers = torch.stack([uniform(keys, place) for place in range(1000)], dim=1)
    assert numbers.shape == (400, 1000) and numbers.min() >= 0 and numbers.max() < 1
    assert kstest(numbers.ravel()[::7].numpy(), "uniform").pvalue > 0.001
    assert kstest(numbers[:, 0].numpy(), "uniform").pvalue > 0.001  # neighbouring seeds
    pairs = [(numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])]
    pairs += [(numbers[:, :500], numbers[:, 500:]), (numbers[:200], numbers[200:])]
    for x, y in pairs:
        together = torch.stack([x.ravel(), y.ravel()])
        assert abs(torch.corrcoef(together)[0, 1]) < 4 / len(x.ravel()) ** 0.5
    assert len(numbers.unique()) == numbers.numel()
    small = numbers.ravel().sort().values[:40] * numbers.numel()
    assert kstest(small.diff().numpy(), "expon").pvalue > 0.001  # what rare tokens depend on


def test_draws_follow_the_model(model, tokenizer, prompts):
    n, prompt = 3000, prompts[2]
    engine = LocalEngine(model, 5, [4], 500)
    sampling = Sampling(temperature=0.3, max_new_tokens=1)
    drawn = torch.tensor(engine.generate([prompt] * n, range(n), sampling)).ravel()
    with torch.inference_mode():
        chance = (model(torch.tensor([prompt])).logits[0, -1].double() / 0.3).softmax(0)
    expected, counts = chance * n, drawn.bincount(minlength=len(chance)).double()
    common = expected > 8
    assert common.sum() > 5
    rest = torch.stack([expected[~common].sum(), counts[~common].sum()])
    expected, counts = (
        torch.cat([x[common], r[None]]) for x, r in zip((expected, counts), rest, strict=True)
    )
    assert chisquare(counts, expected).pvalue > 0.001


def count_tokens(engine: LocalEngine) -> list[tuple[int, int]]:
    """Return a list that will have each forward pass: tokens but for padding, and columns."""
    computed, forward = [], engine.forward

    def counting(rows, ids, places):
        computed.append((int((places >= 0).sum()), places.shape[1]))
        return forward(rows, ids, places)

    engine.forward = counting
    return computed


def total(computed: list[tuple[int, int]]) -> int:
    return sum(tokens for tokens, _ in computed)


def talked(prompts, turns, rng) -> list[list[int]]:
    """Go on with each dialogue: what was said, and a reply of its own length."""
    size = [int(torch.randint(1, 30, (1,), generator=rng)) for _ in prompts]
    said = [torch.randint(40, 250, (n,), generator=rng).tolist() for n in size]
    return [p + t + s for p, t, s in zip(prompts, turns, said, strict=True)]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_what_is_kept_between_turns_changes_nothing(model, tokenizer, prompts, sampling, penalty):
    sampling = Sampling(sampling.temperature, sampling.top_p, penalty, 24)
    rng, engine = torch.Generator().manual_seed(1), engine_of(model, tokenizer, "own", 6)
    computed = count_tokens(engine)
    active, tokens = prompts[:6], 0
    for turn in range(6):
        seeds = [100 * turn + i for i in range(len(active))]
        turns = engine.generate(active, seeds, sampling)
        anew = engine_of(model, tokenizer, "own", 6).generate(active, seeds, sampling)
        assert turns == anew
        tokens += sum(map(len, active))
        active = talked(active, turns, rng)
        if turn == 2:  # one dialogue ends, another begins, the order changes
            active = [active[i] for i in (5, 0, 3, 1, 2)] + [prompts[8]]
        if turn == 4:  # some end for good; one is told otherwise than it was written
            active = [active[4], [*active[1][:30], 7, *active[1][31:]], active[2]]
    assert total(computed) < tokens / 2  # and much less is computed


# --- turns that join while others are written ----------------------------------------------------


class Dialogues:
    """Dialogues of different length, whose other side says words of its own."""

    def __init__(self, prompts, turns) -> None:
        self.texts, self.left = [list(p) for p in prompts], list(turns)
        self.said: list[list[list[int]]] = [[] for _ in prompts]

    def seed(self, i: int) -> int:
        return 1000 * i + len(self.said[i])

    def hear(self, i: int, turn: list[int]) -> bool:
        """Take in a turn and reply; tell whether the dialogue goes on."""
        self.said[i].append(turn)
        self.left[i] -= 1
        if not self.left[i]:
            return False
        rng = torch.Generator().manual_seed(self.seed(i))
        n = int(torch.randint(1, 30, (1,), generator=rng))
        self.texts[i] += turn + torch.randint(40, 250, (n,), generator=rng).tolist()
        return True

    def tokens(self) -> int:
        """How many there are but the last of each dialogue, with which nothing is computed."""
        return sum(len(t) + len(s[-1]) - 1 for t, s in zip(self.texts, self.said, strict=True))


def one_by_one(model, tokenizer, prompts, turns, sampling) -> Dialogues:
    d = Dialogues(prompts, turns)
    for i in range(len(prompts)):
        on = True
        while on:
            engine = engine_of(model, tokenizer, "own")
            on = d.hear(i, engine.generate([d.texts[i]], [d.seed(i)], sampling)[0])
    return d


def streamed(engine, prompts, turns, sampling, at_once: bool = False) -> Dialogues:
    """Have a stream of the engine write dialogues; one that ends is replaced by a waiting one."""
    d, waiting, active = Dialogues(prompts, turns), list(range(len(prompts))), 0
    ready: list[int] = []
    with closing(engine.stream(sampling)) as stream:
        while waiting or active:
            while waiting and active < engine.batch_size:
                ready.append(waiting.pop(0))
                active += 1
            stream.add(ready, [d.texts[i] for i in ready], [d.seed(i) for i in ready])
            ready = []
            for i, turn in stream.go_on((lambda n: n > 0) if at_once else None):
                if d.hear(i, turn):
                    ready.append(i)
                else:
                    stream.leave(i)
                    active -= 1
    return d


TURNS = [1, 4, 2, 5, 3, 1, 2, 4, 3]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_turns_that_join_change_nothing(model, tokenizer, prompts, sampling, penalty):
    sampling = Sampling(sampling.temperature, sampling.top_p, penalty, 24)
    alone = one_by_one(model, tokenizer, prompts, TURNS, sampling)
    assert len({len(turn) for said in alone.said for turn in said}) > 5
    for batch_size, at_once in ((1, False), (3, False), (3, True), (64, False), (64, True)):
        engine = engine_of(model, tokenizer, "own", batch_size)
        computed = count_tokens(engine)
        together = streamed(engine, prompts, TURNS, sampling, at_once)
        assert together.said == alone.said
        assert alone.tokens() - len(prompts) <= total(computed) <= alone.tokens()  # each once


def test_batches_stay_full(model, tokenizer, prompts):
    engine = engine_of(model, tokenizer, "own", 4)
    computed = count_tokens(engine)
    d = streamed(engine, prompts * 3, [3] * 27, SAMPLED)
    steps = [rows for rows, columns in computed if columns == 1]
    turns = [[len(turn) for turn in said] for said in d.said]
    lockstep = sum(max(n) for i in range(0, 27, 4) for n in zip(*turns[i : i + 4], strict=True))
    assert sum(steps) == sum(map(sum, turns)) - 3 * 27  # first tokens come with what was read
    assert sum(steps[:-30]) > 3.3 * len(steps[:-30])  # at the end none are left to join
    assert len(steps) < 0.8 * lockstep


def test_a_dialogue_that_waits_keeps_its_row(model, tokenizer, prompts):
    engine = engine_of(model, tokenizer, "own", 3)
    computed = count_tokens(engine)
    with closing(engine.stream(GREEDY)) as stream:

        def write(key, text):
            stream.add([key], [text], [0])
            while stream:
                ((_, turn),) = stream.go_on()
            return text + turn

        slow = write("slow", prompts[3])
        for i in range(6):  # others come and end, whose texts begin as the slow one's does
            write(i, prompts[3][: 20 + i])
            stream.leave(i)
        del computed[:]
        write("slow", [*slow, 50, 60])
        assert total(computed) <= 3 + GREEDY.max_new_tokens
        for i in range(3):  # there is no room for four
            write(i, prompts[i])
        del computed[:]
        write("slow", [*slow, 50, 60])
        assert total(computed) >= len(slow)


def test_weights_changed_while_turns_are_written(model, tokenizer, prompts):
    engine = engine_of(model, tokenizer, "own", 9)
    with closing(engine.stream(GREEDY)) as stream:
        stream.add(range(9), prompts, [0] * 9)
        steps = iter(range(100))
        out = dict(stream.go_on(lambda _: next(steps) == 3))
        so_far = {t.key: list(t.new) for t in stream._live.values()}
        assert len(so_far) > 3 and all(len(new) == 4 for new in so_far.values())
        with torch.no_grad():
            model.lm_head.weight[30:].mul_(-1)
        while stream:
            out |= stream.go_on()
    after, rest = engine_of(model, tokenizer, "own"), Sampling(temperature=0, max_new_tokens=20)
    for i, new in so_far.items():
        assert out[i] == new + after.generate([prompts[i] + new], None, rest)[0]
    with torch.no_grad():
        model.lm_head.weight[30:].mul_(-1)


def test_two_streams_of_an_engine(model, tokenizer, prompts):
    alone = engine_of(model, tokenizer, "own").generate(prompts, None, GREEDY)
    engine = engine_of(model, tokenizer, "own", 3)
    with closing(engine.stream(GREEDY)) as stream:
        stream.add(range(9), prompts, [0] * 9)
        out = {}
        while stream:
            out |= stream.go_on(lambda n: n > 0)
            assert engine.generate(prompts[4:7], None, GREEDY) == alone[4:7]
    assert [out[i] for i in range(9)] == alone


@pytest.mark.parametrize("after", [0, 1, 6, 12])
def test_ctrl_c_leaves_the_engine_whole(model, tokenizer, prompts, monkeypatch, after):
    engine = engine_of(model, tokenizer, "own", 6)
    alone = engine.generate(prompts[:6], None, GREEDY)
    engine.forget()
    calls, layer = iter(range(10**6)), model.model.layers[1].mlp.forward

    def interrupted(x):
        if next(calls) == after:
            raise KeyboardInterrupt
        return layer(x)

    monkeypatch.setattr(model.model.layers[1].mlp, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts[:6], None, GREEDY)
    assert engine.generate(prompts[:6], None, GREEDY) == alone
    assert not engine.rows().busy.any()


def test_weights_changed_in_place_are_noticed(model, tokenizer, prompts):
    engine = engine_of(model, tokenizer, "own")
    before = engine.generate(prompts[:3], None, GREEDY)
    with torch.no_grad():
        model.lm_head.weight[30:].mul_(-1)
        model.model.layers[0].self_attn.v_proj.weight.mul_(-1)
    changed = engine.generate(prompts[:3], None, GREEDY)
    assert changed == engine_of(model, tokenizer, "own").generate(prompts[:3], None, GREEDY)
    with torch.no_grad():
        model.lm_head.weight[30:].mul_(-1)
        model.model.layers[0].self_attn.v_proj.weight.mul_(-1)
    assert engine.generate(prompts[:3], None, GREEDY) == before != changed


def test_prompt_longer_than_the_context(model):
    engine = LocalEngine(model, 5, [4])
    assert engine.context == 512
    with pytest.raises(UspError, match="prompt 1 has 500 tokens, but a context of 512 less 24 new"):
        engine.generate([[1] * 488, [1] * 500], None, GREEDY)
    engine.generate([[1] * 488], None, GREEDY)
    assert engine.generate([], None, GREEDY) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": 0},
    ],
)
def test_sampling_that_cannot_be(wrong):
    with pytest.raises(UspError, match="cannot be; give temperature"):
        Sampling(**wrong)
