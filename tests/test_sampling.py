"""The sampler: what is common and rare, draws of each kind, keeping, bad input."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone

from usp_lab.compiled import umap_class
from usp_lab.errors import UspError
from usp_lab.profiles import Profile
from usp_lab.sampling import KINDS, ProfileSampler

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.standard_normal((24, 2)))[0]
CENTRES, WEIGHTS = np.array([[0, 0], [9, 0], [0, 12.0]]), np.array([0.7, 0.25, 0.05])


def clouds(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of three kinds of users on a plane in 24 dimensions, and their true log density."""
    rng = np.random.default_rng(seed)
    places = CENTRES[rng.choice(3, n, p=WEIGHTS)] + rng.standard_normal((n, 2))
    truth = sum(
        w * multivariate_normal(c).pdf(places) for w, c in zip(WEIGHTS, CENTRES, strict=True)
    )
    return places @ BASIS.T + 1e-4 * rng.standard_normal((n, 24)), np.log(truth)


@pytest.fixture(scope="module")
def fitted() -> tuple[ProfileSampler, np.ndarray]:
    vectors, truth = clouds(3000)
    return ProfileSampler(reducer="pca", bandwidth="cv").fit(vectors), truth


def test_the_order_of_densities_is_the_true_one(fitted):
    sampler, truth = fitted
    assert spearmanr(sampler.log_density(), truth)[0] > 0.9
    fresh, true = clouds(500, seed=2)
    assert spearmanr(sampler.log_density(fresh), true)[0] > 0.9


def test_each_kind_draws_whom_it_says(fitted):
    sampler, truth = fitted
    mean = {k: truth[sampler.sample_indices(300, k, 1)].mean() for k in KINDS if k != "virtual"}
    assert mean["minority"] < mean["uniform"] < mean["density"] < mean["majority"]
    assert mean["density"] == pytest.approx(truth.mean(), abs=0.25)
    for kind in ("majority", "minority"):
        drawn = sampler.sample_indices(300, kind, 1)
        assert len(set(drawn)) == 300 and set(drawn) == set(sampler.group(kind))
    again, other = (sampler.sample_indices(300, "density", s) for s in (1, 2))
    assert np.array_equal(again, sampler.sample_indices(300, "density", 1))
    assert not np.array_equal(again, other)


def test_uniform_is_even_over_the_map():
    vectors = np.random.default_rng(3).standard_normal((4000, 2))
    sampler = ProfileSampler(reducer="pca").fit(vectors)
    inner = np.linalg.norm(vectors, axis=1) < 2
    share = np.mean(np.linalg.norm(vectors[sampler.sample_indices(4000, "uniform")], axis=1)[:, None] < [1, 2], axis=0)  # fmt: skip
    assert inner.mean() > 0.8 and share[0] / share[1] == pytest.approx(1 / 4, abs=0.06)  # areas


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_groups_by_density_and_by_neighbours_agree(fitted, share):
    sampler, _ = fitted
    for kind in ("majority", "minority"):
        groups = [set(sampler.group(kind, share, by)) for by in ("kde", "neighbours")]
        assert len(groups[0]) == round(3000 * share)
        assert len(groups[0] & groups[1]) > (0.3 + share) * len(groups[0])


def test_saved_in_one_process_and_loaded_in_another(tmp_path, fitted):
    fitted[0].save(tmp_path / "kept")
    code = (
        "import sys, numpy as np\nfrom usp_lab.sampling import ProfileSampler\n"
        "s = ProfileSampler.load(sys.argv[1])\n"
        "np.savez(sys.argv[2], d=s.log_density(), i=s.sample_indices(99), m=s.transform(np.load(sys.argv[3])))"
    )
    new = clouds(5, seed=4)[0]
    np.save(tmp_path / "new.npy", new)
    files = [str(tmp_path / f) for f in ("kept", "out.npz", "new.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    out = np.load(tmp_path / "out.npz")
    assert np.array_equal(out["d"], fitted[0].log_density())
    assert np.array_equal(out["i"], fitted[0].sample_indices(99))
    assert out["m"] == pytest.approx(fitted[0].transform(new))


def test_umap_is_unpickled_on_trust_alone(tmp_path):
    """Its pickle runs code, and nothing but new places needs it."""
    vectors, _ = clouds(100)
    sampler = ProfileSampler(neighbors=10).fit(vectors)
    sampler.save(tmp_path / "kept")
    careful = ProfileSampler.load(tmp_path / "kept")
    assert np.array_equal(careful.log_density(), sampler.log_density())
    assert np.array_equal(careful.sample_indices(9), sampler.sample_indices(9))
    with pytest.raises(UspError, match="trusted=True"):
        careful.transform(vectors)
    trusted = ProfileSampler.load(tmp_path / "kept", trusted=True)
    assert trusted.transform(vectors).shape == (100, 2)


def test_damage_and_other_encoders_are_named(tmp_path, fitted):
    fitted[0].save(tmp_path / "kept")
    with pytest.raises(UspError, match="fitted with encoder 'minilm', not 'other'"):
        ProfileSampler.load(tmp_path / "kept", encoder="other")
    with pytest.raises(UspError, match="exists; name a new folder"):
        fitted[0].save(tmp_path / "kept")
    with pytest.raises(UspError, match="holds no sampler"):
        ProfileSampler.load(tmp_path)
    (tmp_path / "kept" / "arrays.npz").write_bytes(b"x")
    with pytest.raises(UspError, match="arrays.npz is not what was saved"):
        ProfileSampler.load(tmp_path / "kept")


def test_profiles_in_words():
    jobs, places = ["nurse", "welder", "judge", "farmer"], ["Oslo", "Lima", "Cork", "Bern", "Pune"]
    texts = [
        f"You work as a {j} in {p}.\n\nYou write in {how}."
        for j in jobs for p in places for how in ("lower case", "long polite sentences")
    ]  # fmt: skip
    sampler = ProfileSampler(reducer="pca").fit(texts)
    again = ProfileSampler(reducer="pca").fit([Profile.from_text(t) for t in texts])
    assert np.array_equal(again.coordinates_, sampler.coordinates_)
    assert len(sampler.coordinates_) == 40 and set(sampler.sample(20)) <= set(texts)
    objective = ProfileSampler(part="subjective", reducer="pca").fit
    with pytest.raises(UspError, match="38 of 40 profiles are duplicates"):
        objective(texts)
    bare = "You work as a nurse in Oslo.\n\n"
    with pytest.raises(UspError, match="1 of 41 profiles have no subjective half"):
        objective([*texts, bare])
    place = sampler.transform(
        [bare, texts[0], texts[1]]
    )  # it lies between those that differ in the other half
    assert np.isfinite(place).all()
    apart = np.linalg.norm(place[1:] - place[0], axis=1)
    assert (apart < np.linalg.norm(place[1] - place[2])).all()
    assert len(ProfileSampler(reducer="pca").fit([*texts, bare]).coordinates_) == 41


def test_bad_input_is_named(fitted):
    vectors, _ = clouds(60)
    for change, said in (
        ({"part": "all"}, "part='all'; choose"),
        ({"reducer": "tsne"}, "reducer='tsne'; choose"),
        ({"bandwidth": 0}, "bandwidth=0"),
        ({"reducer": "umap", "neighbors": 60}, "60 profiles for neighbors=60"),
    ):
        with pytest.raises(UspError, match=said):
            ProfileSampler(**{"reducer": "pca"} | change).fit(vectors)
    for bad, said in (
        (np.where(np.arange(60)[:, None] == 3, np.nan, vectors), "1 of 60 embeddings are NaN"),
        (np.ones((60, 4)), "all 60 embeddings are the same"),
        (np.repeat(vectors[:20], 3, axis=0), "40 of 60 profiles are duplicates"),
    ):
        with pytest.raises(UspError, match=said):
            ProfileSampler(reducer="pca").fit(bad)
    sampler = fitted[0]
    for call, said in (
        (lambda: sampler.sample_indices(301, "minority"), "n=301, but the minority at share=0.1 has 300"),
        (lambda: sampler.sample_indices(3, "odd"), "kind='odd'"),
        (lambda: sampler.sample_indices(0), "n must be at least 1"),
        (lambda: sampler.sample(3), "use sample_indices"),
        (lambda: sampler.transform(np.ones((2, 5))), "embeddings of 5 dimensions, but fitted was on 24"),
        (lambda: sampler.group("minority", 0), "share must lie above 0"),
        (lambda: sampler.group("minority", neighbours=3000, by="neighbours"), "3000 profiles have no 3000"),
    ):  # fmt: skip
        with pytest.raises(UspError, match=said):
            call()


def test_densmap_fits_and_says_that_it_cannot_place():
    sampler = ProfileSampler(reducer="densmap", neighbors=10).fit(clouds(120)[0])
    assert len(sampler.sample_indices(9)) == 9
    with pytest.raises(UspError, match="densMAP can place no new profiles"):
        sampler.log_density(clouds(5)[0])
    assert clone(sampler).get_params() == sampler.get_params()


def test_a_map_learned_from_a_part_places_the_rest():
    vectors, truth = clouds(3000)
    sampler = ProfileSampler(reducer="pca", learn_from=400).fit(vectors)
    assert sampler.coordinates_.shape == (3000, 2)
    assert spearmanr(sampler.log_density(), truth)[0] > 0.9
    assert sampler.coordinates_ == pytest.approx(sampler.transform(vectors))
    with pytest.raises(UspError, match="learn_from=3; "):
        ProfileSampler(reducer="pca", learn_from=3).fit(vectors)


def test_what_umap_compiles_is_kept_between_processes():
    from umap import umap_

    umap_class()
    assert umap_.smooth_knn_dist.stats.cache_path  # which the library itself caches nowhere
