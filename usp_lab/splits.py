"""Splits that never put one user, or one group of near-duplicate openings, on two sides."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from usp_lab.errors import UspError

if TYPE_CHECKING:
    from usp_lab.data import Dialogue

OPENING_CHARS, NGRAM, SIMILAR = 100, 5, 0.8
SHARES = {"test": 0.1, "validation": 0.1}


def _plain(text: str) -> str:
    return (re.sub(r"[\W_]+", " ", text.lower()).strip() or text.strip())[:OPENING_CHARS]


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + NGRAM] for i in range(max(len(text) - NGRAM + 1, 1)))


def near_duplicates(texts: Sequence[str], threshold: float = SIMILAR) -> np.ndarray:
    """Return a group number per text: texts of one group are linked by near-duplicate openings.

    Two openings are near-duplicates when the character 5-grams of their first 100 characters (lower
    case, everything but letters and digits a blank) have Jaccard similarity >= threshold. Exact, by
    prefix filtering: sets that similar share one of their rarest n-grams (Chaudhuri et al., ICDE
    2006), so no pair is missed.
    """
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import CountVectorizer

    if not len(texts):
        return np.zeros(0, dtype=int)
    distinct, back = np.unique([_plain(t) for t in texts], return_inverse=True)
    counter = CountVectorizer(analyzer=_grams, binary=True, dtype=np.int32)
    full = counter.fit_transform(distinct).tocsr()
    frequency = np.asarray(full.sum(axis=0)).ravel()
    order = np.argsort(np.argsort(frequency, kind="stable"))  # rank of an n-gram, rarest first
    size = np.diff(full.indptr)
    rows, cols = [], []
    for i in range(full.shape[0]):
        grams = full.indices[full.indptr[i] : full.indptr[i + 1]]
        keep = size[i] - int(np.ceil(threshold * size[i] - 1e-9)) + 1
        chosen = grams[np.argsort(order[grams])[:keep]]
        rows.append(np.full(len(chosen), i))
        cols.append(chosen)
    r, c = np.concatenate(rows), np.concatenate(cols)
    prefix = csr_array((np.ones(len(r), dtype=np.int32), (r, c)), shape=full.shape)
    pairs = (prefix @ prefix.T).tocoo()
    a, b = pairs.row[pairs.row < pairs.col], pairs.col[pairs.row < pairs.col]
    linked = np.zeros(len(a), dtype=bool)
    for s in range(0, len(a), 200_000):
        part = slice(s, s + 200_000)
        shared = np.asarray(full[a[part]].multiply(full[b[part]]).sum(axis=1)).ravel()
        linked[part] = shared >= threshold * (size[a[part]] + size[b[part]] - shared) - 1e-9
    links = (np.ones(linked.sum()), (a[linked], b[linked]))
    graph = coo_array(links, shape=(len(distinct), len(distinct)))
    return connected_components(graph, directed=False)[1][back]


def _user(dialogue: "Dialogue") -> tuple[str, str] | None:
    """Return who the user is, as far as known: without an id, one profile is one user."""
    if dialogue.user_id is not None:
        return "id", dialogue.user_id
    return None if dialogue.profile is None else ("profile", dialogue.profile)


def groups(dialogues: Sequence["Dialogue"]) -> np.ndarray:
    """Return a group number per dialogue: linked by user or by near-duplicate opening.

    Without user ids the same profile counts as the same user.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    label = near_duplicates([d.opening for d in dialogues])
    n, users = label.max(initial=-1) + 1, {}
    links = [
        (g, n + users.setdefault(u, len(users)))
        for g, u in zip(label, map(_user, dialogues), strict=True)
        if u is not None
    ]
    ends = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), tuple(ends)), shape=(n + len(users), n + len(users)))
    return connected_components(graph, directed=False)[1][label]


def split_groups(
    dialogues: Sequence["Dialogue"], seed: int = 0, shares: Mapping[str, float] = SHARES
) -> dict[str, list["Dialogue"]]:
    """Split into training and smaller sides by whole groups, none of them empty.

    Groups too large for a small side go to training.

    Args:
        dialogues: in any order; each side keeps it.
        seed: of the draw.
        shares: fraction of the dialogues per small side; training has the rest.

    Raises:
        UspError: fewer groups than sides.
    """
    members: dict[int, list[int]] = {}
    for i, g in enumerate(groups(dialogues)):
        members.setdefault(int(g), []).append(i)
    if len(members) <= len(shares):
        raise UspError(
            f"{len(dialogues)} dialogues form {len(members)} group(s) of users and near-duplicate "
            f"openings, too few for {len(shares) + 1} splits; give more users "
            "(without user_id, one profile counts as one user)"
        )
    order = sorted(members)
    Random(seed).shuffle(order)
    large = max(1, 0.02 * len(dialogues))
    order.sort(key=lambda g: len(members[g]) > large)  # large groups last: they stay in training
    out: dict[str, list[int]] = {}
    for waiting, (side, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        out[side] = members[order.pop(0)]
        while len(order) > waiting and len(out[side]) < round(share * len(dialogues)):
            out[side] = out[side] + members[order.pop(0)]
    out["train"] = [i for g in order for i in members[g]]
    return {side: [dialogues[i] for i in sorted(out[side])] for side in reversed(out)}


def without_leaks(
    splits: Mapping[str, Sequence["Dialogue"]],
) -> tuple[dict[str, list["Dialogue"]], Counter[str]]:
    """Take out dialogues until no user and no group of near-duplicate openings is on two sides.

    Test splits come first, in their order, then validation; the others give way to them.

    Returns:
        (splits, how many dialogues each lost).
    """
    order = sorted(splits, key=lambda side: (not side.startswith("test"), side != "validation"))
    labels = iter(near_duplicates([d.opening for side in order for d in splits[side]]).tolist())
    kept, lost, taken, users = {}, Counter(), set(), set()
    for side in order:
        marked = zip(splits[side], islice(labels, len(splits[side])), strict=True)
        stay = [(d, g) for d, g in marked if g not in taken and _user(d) not in users]
        kept[side], lost[side] = [d for d, _ in stay], len(splits[side]) - len(stay)
        taken |= {g for _, g in stay}
        users |= {_user(d) for d, _ in stay} - {None}
    return {side: kept[side] for side in splits}, +lost
