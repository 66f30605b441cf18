"""Attributes, latent classes, virtual profiles and the search for those least like any real one."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from usp_lab import far, load_dialogues
from usp_lab.attributes import NAMES, LatentClasses, attributes
from usp_lab.errors import UspError
from usp_lab.far import joint, least_similar, nearest, nearest_other
from usp_lab.sampling import ProfileSampler
from usp_lab.users import log_density
from usp_lab.virtual import PairRules, candidates, draw, flagged, impossible


@pytest.fixture(scope="module")
def people():
    """One dialogue a user of the population."""
    corpus = load_dialogues("population", n=2000, seed=7)
    return list({d.user_id: d for d in corpus.all}.values())


@pytest.fixture(scope="module")
def told(people):
    return [attributes(d.truth["profile_truth"]) for d in people]


@pytest.fixture(scope="module")
def sampler(people):
    texts = [d.truth["profile_truth"] for d in people[:120]]
    return ProfileSampler(reducer="pca").fit(texts)


def test_a_complete_profile_is_read_completely(people, told):
    for d, read in zip(people, told, strict=True):
        assert read == {a: d.truth["user"][a].lower() if a == "place" else d.truth["user"][a] for a in NAMES}  # fmt: skip


def test_classes_know_who_is_rare(people, told):
    true = np.array([log_density(d.truth["user"]) for d in people])
    half = len(people) // 2
    model = LatentClasses().fit(told[:half])
    new = spearmanr(model.score_samples(told[half:]), true[half:])[0]
    one = spearmanr(LatentClasses(1).fit(told[:half]).score_samples(told[half:]), true[half:])[0]
    assert model.n_classes_ > 1 and new > 0.55 and new > one + 0.1


def test_classes_sum_to_one_and_leave_out_what_is_missing():
    rows = [{"age": a, "casing": c} for a, c in ("xp", "xq", "yp", "xp") for _ in range(5)]
    model = LatentClasses(2, fits=2, iterations=20).fit(rows)
    score = {k: np.exp(model.score_samples([dict(k)]))[0] for k in [
        (("age", "x"),), (("age", "y"),), (("age", "?"),), (("age", "x"), ("casing", "p")), (("age", "x"), ("casing", "q")), (("age", "x"), ("casing", "!")),
    ]}  # fmt: skip
    one, two, never, *joints = score.values()
    assert one + two + never == pytest.approx(1) and sum(joints) == pytest.approx(one)
    assert model.score_samples([{}])[0] == pytest.approx(0)
    for bad, said in ((0, "n_classes must be"), ("x", "n_classes must be")):
        with pytest.raises(UspError, match=said):
            LatentClasses(bad).fit(rows)
    with pytest.raises(UspError, match="3 of 4 profiles state"):
        LatentClasses().fit([*rows[:3], {}])


def test_a_sampler_by_classes_survives_its_folder(tmp_path, people):
    texts = [d.truth["profile_truth"] for d in people[:60]]
    kept = ProfileSampler(reducer="pca", density="classes").fit(texts)
    kept.save(tmp_path / "kept")
    code = (
        "import sys, numpy as np\nfrom usp_lab.sampling import ProfileSampler\n"
        "s = ProfileSampler.load(sys.argv[1])\n"
        "np.savez(sys.argv[2], a=s.log_density(), b=s.log_density(s.texts_[:9]), v=s.sample(3, 'virtual'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "kept"), str(tmp_path / "out.npz")], check=True)  # fmt: skip
    out = np.load(tmp_path / "out.npz")
    assert np.array_equal(out["a"], kept.log_density()) and np.array_equal(out["b"], out["a"][:9])
    assert out["v"].tolist() == kept.sample(3, "virtual")
    with pytest.raises(UspError, match="reads attributes"):
        ProfileSampler(reducer="pca", density="classes").fit(np.eye(9))


def test_virtual_profiles_contradict_nothing(people, sampler):
    users = [d.truth["user"] for d in people[:120]]
    raw = candidates(sampler, 2000, np.random.default_rng(1))
    bad = impossible(users, raw)
    assert bad.mean() > 0.05 and (raw[:, 0] != raw[:, 1]).all()
    made = draw(sampler, 300)
    assert not impossible(users, made.pairs).any()
    assert made.counts["contradiction (rules)"] > 0 and made.counts["accepted"] == 300
    assert sum(made.counts.values()) == 2 * made.counts["drawn"]  # each has one fate
    assert len(set(made.texts)) == 300 and not set(made.texts) & set(sampler.texts_)
    for text, (i, j) in zip(made.texts, made.pairs, strict=True):
        assert text.split("\n\n")[0] == sampler.texts_[i].split("\n\n")[0]
        assert text.split("\n\n")[1] == sampler.texts_[j].split("\n\n")[1]
    assert draw(sampler, 5).texts == sampler.sample(5, "virtual") != sampler.sample(5, "virtual", 1)


def test_rules_from_data_alone_are_precise(people, told, sampler):
    learned = PairRules.learned(told)
    users, raw = [d.truth["user"] for d in people[:120]], candidates(sampler, 2000, np.random.default_rng(2))  # fmt: skip
    bad, said = impossible(users, raw), flagged(sampler.texts_, raw, learned)
    assert len(learned.pairs) > 3 and bad[said].mean() > 0.75 and said[bad].mean() > 0.2
    shuffled = [r | {k: v for k, v in told[i].items() if k in ("filler", "casing", "opening")} for r, i in zip(told, np.random.default_rng(0).permutation(len(told)), strict=True)]  # fmt: skip
    assert not {p for p in PairRules.learned(shuffled).pairs if p[1][0] in ("filler", "casing", "opening")}  # fmt: skip


def test_entailment_is_asked_about_what_rules_let_pass(sampler):
    asked = []

    def against_capitals(pairs):
        asked.extend(pairs)
        return ["capital" in manner for _, manner in pairs]

    made = draw(sampler, 20, entails=against_capitals)
    assert asked and not any("capital" in t for t in made.texts)
    assert made.counts["contradiction (entailment)"] > 0
    with pytest.raises(UspError, match="0 of .* virtual profiles were accepted"):
        draw(sampler, 1, entails=lambda pairs: [True] * len(pairs))


# --- the farthest ---------------------------------------------------------------------------------


def halves(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, 16))
    some = (centres[rng.integers(20, size=n)] + 0.6 * rng.standard_normal((n, 16)) for _ in "ab")
    return tuple((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in some)


def test_the_farthest_are_the_exact_ones(monkeypatch):
    first, second = halves(1500)
    training, pairs = joint(first, second), np.random.default_rng(1).integers(1500, size=(4000, 2))
    true = (joint(first[pairs[:, 0]], second[pairs[:, 1]]) @ training.T).max(1)
    assert nearest(first, second, pairs, training) == pytest.approx(true, abs=1e-5)
    monkeypatch.setattr(far, "_LOOK", (300, 700))
    monkeypatch.setattr(far, "TILE", 100)
    looked = []
    look = far._Search.look
    monkeypatch.setattr(
        far._Search, "look", lambda self, tile: (looked.append(len(self.alive)), look(self, tile))
    )
    chosen, cosine = least_similar(first, second, pairs, training, 50)
    assert set(chosen) == set(np.argsort(true)[:50]) and np.all(np.diff(cosine) >= 0)
    assert cosine == pytest.approx(np.sort(true)[:50], abs=1e-5)
    assert looked[-1] < 1000  # most were out long before the end
    assert np.array_equal(least_similar(first, second, pairs, training, 50, seed=5)[0], chosen)


def test_the_nearest_other_profile_is_found_tile_by_tile(monkeypatch):
    monkeypatch.setattr("usp_lab.far.TILE", 7)
    rng = np.random.default_rng(0)
    x = joint(*(v / np.linalg.norm(v, axis=1)[:, None] for v in rng.normal(size=(2, 30, 5))))
    plain = x @ x.T - 3 * np.eye(30)
    assert nearest_other(x) == pytest.approx(plain.max(axis=1))
    assert nearest_other(np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx([1, 1])
    with pytest.raises(UspError, match="1 profile.s. have no other one"):
        nearest_other(x[:1])


def test_bad_vectors_are_named():
    first, second = halves(10)
    training, pairs = joint(first, second), np.array([[0, 1], [2, 3]])
    for change, said in (
        ({"training": training[:, :3]}, r"objective embeddings have shape \(10, 16\)"),
        ({"objective": np.where(first > 1, 0, np.nan)}, "NaN or infinity"),
        ({"pairs": np.array([[0, 10]])}, "pairs must be rows"),
        ({"pairs": np.empty((0, 2), int)}, "pairs must be rows"),
        ({"k": 3}, "k=3 of 2 pairs"),
    ):
        given = {"objective": first, "subjective": second, "pairs": pairs, "training": training, "k": 1}  # fmt: skip
        with pytest.raises(UspError, match=said):
            least_similar(**given | change)
