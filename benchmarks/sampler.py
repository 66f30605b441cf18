"""A million draws, and the 5,000 of a million virtual profiles that are least like any real one.

    python benchmarks/sampler.py                                    # embeddings of the population's profiles
    python benchmarks/sampler.py --data ../shared/data/hh_helpful_dev.jsonl.gz --sizes 10000 100000

Real texts are embedded; beyond them, further profiles are made by moving each a little towards a random neighbour in
meaning, since embedding 88,000 long paragraphs takes an hour on two cores and moving takes a second.
"""

import argparse
import resource
import sys
import time

import numpy as np

from usp_lab import ProfileSampler, load_dialogues
from usp_lab.far import joint, least_similar, nearest
from usp_lab.models import sentence_encoder


def embedded(source: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit embeddings of two halves of n profiles: a dialogue's opening and its other user turns."""
    dialogues = [d for d in load_dialogues(source, n=3000, on_bad="skip") if d.n_turns > 1][:1500]
    encoder = sentence_encoder("minilm")
    halves = [encoder.encode([d.opening for d in dialogues]), encoder.encode([" ".join(d.user_turns[1:]) for d in dialogues])]  # fmt: skip
    rng = np.random.default_rng(seed)
    return tuple(_more(h, n, rng) for h in halves)


def _more(vectors: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    like = np.argpartition(-(vectors @ vectors.T), 20, axis=1)[:, :20]
    base = rng.integers(len(vectors), size=n)
    other = like[base, rng.integers(20, size=n)]
    share = rng.uniform(0, 0.5, size=(n, 1)).astype(np.float32)
    moved = (1 - share) * vectors[base] + share * vectors[other]
    moved += 0.02 * rng.standard_normal(moved.shape).astype(np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def timed(call):
    """Return (result, seconds)."""
    start = time.perf_counter()
    out = call()
    return out, time.perf_counter() - start


def peak_gib() -> float:
    """Return the most memory that this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def by_hand(first, second, pairs, training) -> np.ndarray:
    """Return each pair's highest cosine by the plain product, in blocks: another way to the same figure."""
    out = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), 2000):
        some = pairs[start : start + 2000]
        out[start : start + 2000] = (joint(first[some[:, 0]], second[some[:, 1]]) @ training.T).max(1)  # fmt: skip
    return out


def main() -> None:
    """Print the figures, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", default="population", help="where texts come from")
    parser.add_argument("--profiles", type=int, default=88_000, help="real profiles")
    parser.add_argument("--virtual", type=int, default=1_000_000, help="virtual profiles")
    parser.add_argument("--k", type=int, default=5000, help="least similar ones wanted")
    parser.add_argument("--checked", type=int, default=100_000, help="virtual profiles searched by hand, too")  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="profiles fitted on, for the table of scale")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    rng = np.random.default_rng(a.seed)
    first, second = embedded(a.data, max([a.profiles, *(s for s in a.sizes if s <= 100_000)]), a.seed)  # fmt: skip
    print(f"embedded {a.data}; peak {peak_gib():.1f} GiB", flush=True)

    real = [v[: a.profiles] for v in (first, second)]
    training = joint(*real)
    pairs = rng.integers(a.profiles, size=(a.virtual, 2))
    nearest(*(v[:64] for v in real), pairs[:8] % 64, training[:64])  # compiled before it is timed
    (chosen, cosine), seconds = timed(lambda: least_similar(*real, pairs, training, a.k))
    print(f"far virtual={a.virtual} real={a.profiles} k={a.k} {seconds:.0f} s, farthest {cosine[0]:.3f}, last {cosine[-1]:.3f}, peak {peak_gib():.1f} GiB", flush=True)  # fmt: skip
    some, k = pairs[: a.checked], max(1, round(a.k * a.checked / a.virtual))
    (found, _), fast = timed(lambda: least_similar(*real, some, training, k))
    exact, slow = timed(lambda: by_hand(*real, some, training))
    same = len(set(found.tolist()) & set(np.argsort(exact, kind="stable")[:k].tolist())) / k
    print(f"exact virtual={a.checked} k={k} overlap {same:.4f} ratio {slow / fast:.1f} ({slow:.0f} s by plain products)")  # fmt: skip

    for n in a.sizes:
        rows = np.resize(np.arange(len(first)), n)
        vectors = np.hstack([first[rows], second[rows]])
        for shard in np.array_split(vectors, max(1, n // 50_000)):  # no duplicates
            shard += 0.01 * rng.standard_normal(shard.shape, dtype=np.float32)
        sampler, fit = timed(lambda v=vectors: ProfileSampler(reducer="pca", n_components=2).fit(v))
        draws, draw = timed(lambda s=sampler: s.sample_indices(1_000_000))
        _, rare = timed(lambda s=sampler, k=n // 10: s.sample_indices(k, "minority"))
        print(f"sampler fitted={n} fit {fit:.1f} s, 1,000,000 draws {draw:.1f} s, minority {rare:.1f} s, peak {peak_gib():.1f} GiB", flush=True)  # fmt: skip
        del vectors, sampler, draws  # before the next size is made


if __name__ == "__main__":
    sys.exit(main())
