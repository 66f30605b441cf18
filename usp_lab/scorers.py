"""Model-backed scores: perplexity of real turns, likeness of meaning, likeness of style, one author or two.

Offline, meaning is all-MiniLM-L6-v2 and style is `StyleScorer`; with a hub within reach the paper's encoders are used by name.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from usp_lab.chat import Message, trained_mask
from usp_lab.errors import UspError

_LOGITS = 40_000_000  # logits held at once: a batch has at most this many tokens x vocabulary


@torch.inference_mode()
def turn_nll(simulator, dialogues: Sequence[Sequence[Message]], progress: bool = False) -> list[list[tuple[float, int]]]:
    """Score real user turns under a simulator, each in its own context.

    Args:
        simulator: `simulate.UserSimulator`.
        dialogues: messages as the simulator reads them, its system message (or none) included.

    Returns:
        Per dialogue, per user turn: (negative log-likelihood in nats, tokens), the closing ``<|eot_id|>`` included. A dialogue longer than the
        context gives NaN for every turn.
    """
    model, tokenizer = simulator.model, simulator.tokenizer
    encoded = [trained_mask(tokenizer, d, "user") for d in dialogues]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    out: list[list[tuple[float, int]]] = [[] for _ in dialogues]
    start, bar = 0, tqdm(total=len(order), unit="dialogue", disable=not progress, mininterval=1.0, leave=False)
    while start < len(order):
        rows = order[start : start + 64]
        while len(rows) > 1 and len(rows) * len(encoded[rows[-1]][0]) * model.config.vocab_size > _LOGITS:
            rows = rows[: len(rows) // 2]
        start += len(rows)
        width = len(encoded[rows[-1]][0])
        if width > simulator.engine.context:
            for i in rows:
                out[i] = [(math.nan, 0) for m in dialogues[i] if m["role"] == "user"]
            continue
        ids = torch.tensor([encoded[i][0] + [tokenizer.pad_token_id or 0] * (width - len(encoded[i][0])) for i in rows], device=model.device)
        mask = torch.tensor([[1] * len(encoded[i][0]) + [0] * (width - len(encoded[i][0])) for i in rows], device=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        nll = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu().numpy()
        for row, i in enumerate(rows):
            out[i] = _runs(nll[row], encoded[i][1])
        bar.update(len(rows))
    return out


def _runs(nll: np.ndarray, mask: Sequence[int]) -> list[tuple[float, int]]:
    """Sum over each run of trained tokens: one run is one turn. nll[t] belongs to token t + 1."""
    turns, open_run = [], False
    for t, m in enumerate(mask):
        if m:
            if not open_run:
                turns.append([0.0, 0])
            turns[-1][0] += float(nll[t - 1])
            turns[-1][1] += 1
        open_run = bool(m)
    return [(a, b) for a, b in turns]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosine of two arrays of vectors; NaN where a row is NaN or zero."""
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norm > 0, (a * b).sum(axis=1) / np.where(norm > 0, norm, 1), np.nan)


def meaning(encoder, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Embed users' sides of dialogues: unit mean of their turns' embeddings, so that nothing is cut off. NaN row without words."""
    flat = encoder.encode([t for turns in texts for t in turns])
    out, row = [], 0
    for turns in texts:
        block = flat[row : row + len(turns)]
        row += len(turns)
        block = block[~np.isnan(block).any(axis=1)]
        mean = block.mean(axis=0) if len(block) else np.full(flat.shape[1] if len(flat) else 1, np.nan)
        out.append(mean / np.linalg.norm(mean))
    return np.stack(out)


# --- style ------------------------------------------------------------------------------------------------------------

# Function words (closed classes) carry style, not topic: Mosteller & Wallace 1964, Stamatatos 2009.
FUNCTION_WORDS = frozenset(
    """a about above after again against all also although am an and any anyone anything are around as at away be because been before being below between both but by
    can cannot could did do does doing done down during each either else enough even ever every few for from further get go got had has have having he her here hers him his
    how however i if in indeed instead into is it its itself just least less let like may maybe me might mine more most much must my myself neither never no nobody none nor
    not nothing now of off often on once one only onto or other our ours out over own perhaps please quite rather really same shall she should since so some somebody someone
    something still such than that the their them then there these they this those though through thus to together too toward under until up upon us very was we well were what
    whatever when where whether which while who whom whose why will with within without would yes yet you your yours im ive id ill dont doesnt didnt cant wont isnt wasnt
    arent thats whats its theres hes shes were youre theyre u ur r pls plz thx ok okay k lol haha hi hey hello thanks thank cheers tbh btw gonna wanna kinda sorta honestly
    actually basically anyway anyhow""".split()
)
_TOKEN = re.compile(r"[A-Za-z']+|\d+|\s+|[^\sA-Za-z\d]")


def distort(text: str) -> str:
    """Hide what a text is about and keep how it is written (Stamatatos, EACL 2017): content words become x or X, figures #.

    >>> distort("Honestly, which tram goes to Belem?")
    'Honestly, which x x to X?'
    """
    out = []
    for token in _TOKEN.findall(text):
        plain = token.lower().replace("'", "")
        if token[0].isalpha() and plain not in FUNCTION_WORDS:
            token = "X" if token[0].isupper() else "x"
        elif token[0].isdigit():
            token = "#"
        out.append(token)
    return "".join(out)


class StyleScorer:
    """A style embedding and an author verifier that see manner and not topic.

    Features: character n-grams of topic-masked text, function words, shape of words and turns, rare spellings. Linear discriminants learned on training
    authors turn them into an embedding in which one author's texts lie together; the cosine is Style-Sim, and a threshold chosen on
    validation pairs makes it an author verifier (AVA). With real dialogues of unknown users, an author is a dialogue, split in halves.
    """

    def __init__(self, dimensions: int = 24, seed: int = 0) -> None:
        self.dimensions, self.seed = dimensions, seed

    def fit(self, texts: Sequence[Sequence[str]], authors: Sequence[Hashable]) -> "StyleScorer":
        """Learn from training users' turns.

        Args:
            texts: one list of turns a text.
            authors: who wrote it; only authors of two texts and more teach anything.

        Raises:
            UspError: fewer than three authors with two texts.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import StandardScaler

        count = Counter(authors)
        keep = [i for i, a in enumerate(authors) if count[a] > 1]
        if len({authors[i] for i in keep}) < 3:
            raise UspError(f"only {len({authors[i] for i in keep})} author(s) with two texts; style needs at least 3, give more dialogues")
        texts = [texts[i] for i in keep]
        every = Counter(w for t in texts for w in {w for turn in t for w in re.findall(r"[a-z']+", turn.lower())})
        self.common_ = frozenset(w for w, n in every.items() if n >= 3)
        self.vectorizer_ = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, max_features=350, sublinear_tf=True, use_idf=False)
        self.vectorizer_.fit(["\n".join(map(distort, t)) for t in texts])
        raw = self._features(texts)
        self.scaler_ = StandardScaler().fit(raw)
        names = [authors[i] for i in keep]
        size = min(self.dimensions, len(set(names)) - 1, raw.shape[1])
        self.discriminants_ = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1, n_components=size).fit(self.scaler_.transform(raw), names)
        return self

    def embed(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Return style embeddings, shape (len(texts), dimensions); NaN rows for texts without a character."""
        if not len(texts):
            return np.zeros((0, self.dimensions))
        out = self.discriminants_.transform(self.scaler_.transform(self._features(texts)))
        out[[not any(t.strip() for t in turns) for turns in texts]] = np.nan
        return out

    def similarity(self, a: Sequence[Sequence[str]], b: Sequence[Sequence[str]]) -> np.ndarray:
        """Style-Sim of text pairs: cosine of style embeddings, -1 to 1, higher is closer; NaN where a text is empty."""
        return cosine(self.embed(a), self.embed(b))

    def _features(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        grams = self.vectorizer_.transform(["\n".join(map(distort, t)) for t in texts]).toarray()
        return np.hstack([grams, np.array([self._shape(t) for t in texts])])

    def _shape(self, turns: Sequence[str]) -> list[float]:
        turns = [t for t in turns if t.strip()] or [""]
        text = "\n".join(turns)
        tokens = re.findall(r"[A-Za-z']+", text)
        n = max(len(tokens), 1)
        long = [w.lower() for w in tokens if len(w) >= 4]
        lengths = [len(t.split()) for t in turns]
        return [
            math.log1p(float(np.mean(lengths))),
            sum(map(len, tokens)) / n,
            sum(w.lower().replace("'", "") in FUNCTION_WORDS for w in tokens) / n,
            sum(w not in self.common_ for w in long) / max(len(long), 1),
            float(np.mean([t[0].islower() if t else 0 for t in turns])),
            float(np.mean([t[-1:] in ".?!" for t in turns])),
            float(np.mean(["!" in t for t in turns])),
            float(np.mean([".." in t for t in turns])),
            float(np.mean(["?" in t for t in turns])),
            sum(c.isupper() for c in text) / max(len(text), 1),
            text.count(",") / n,
            text.count("'") / n,
        ]


def best_threshold(scores: Sequence[float], same: Sequence[bool]) -> float:
    """Return the threshold of highest balanced accuracy on validation pairs (ties: the middle of the best ones)."""
    s, y = np.asarray(scores, float), np.asarray(same, bool)
    s, y = s[~np.isnan(s)], y[~np.isnan(s)]
    if not y.any() or y.all():
        raise UspError("a threshold needs pairs of one author and pairs of two; one of the kinds is missing")
    cuts = np.unique(s)
    accuracy = np.array([((s[y] >= c).mean() + (s[~y] < c).mean()) / 2 for c in cuts])
    return float(np.median(cuts[accuracy == accuracy.max()]))


def author_pairs(topics: Sequence[Hashable], authors: Sequence[Hashable], seed: int = 0) -> tuple[list[tuple[int, int]], list[bool]]:
    """Return pairs of texts: one author on two topics (True), two authors on one topic (False); as many of each as can be had.

    What a style scorer must tell apart although topic pulls the other way. Without known topics give the same topic for all.
    """
    rng = np.random.default_rng(seed)
    by_author: dict[Hashable, list[int]] = {}
    by_topic: dict[Hashable, list[int]] = {}
    for i, (t, a) in enumerate(zip(topics, authors, strict=True)):
        by_author.setdefault(a, []).append(i)
        by_topic.setdefault(t, []).append(i)
    one_topic = len(by_topic) == 1
    same = [(i, j) for rows in by_author.values() for k, i in enumerate(rows) for j in rows[k + 1 :] if one_topic or topics[i] != topics[j]]
    other = []
    for rows in by_topic.values():
        pairs = [(int(i), int(j)) for i, j in rng.choice(rows, size=(4 * len(rows), 2)) if authors[i] != authors[j]]
        other += pairs
    size = min(len(same), len(other))
    same = [same[i] for i in rng.permutation(len(same))[:size]]
    other = [other[i] for i in rng.permutation(len(other))[:size]]
    return same + other, [True] * size + [False] * size
