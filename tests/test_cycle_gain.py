"""Who finds that a reinforced simulator plays its profile better: judges that tell right from wrong, gains with intervals."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from usp_lab import synthetic
from usp_lab.canvas import save_figure
from usp_lab.cycle_gain import TruthChecker, by_weight, costs, gains, judged, levels
from usp_lab.data import Corpus
from usp_lab.errors import UspError
from usp_lab.guards import guard_table
from usp_lab.plots_rlcc import gain_by_weight, guards
from usp_lab.profiles import split_profile
from usp_lab.rlcc_targets import targets_of
from usp_lab.tidy import one_each

VALIDATION = synthetic.draw("validation", 200, 5)
TEST = one_each(synthetic.draw("test", 160, 5), 40)


@pytest.fixture(scope="module")
def checker() -> TruthChecker:
    return TruthChecker().fit(VALIDATION)


def test_truth_tells_a_users_own_dialogue_from_anothers(checker):
    own, others = checker(TEST, TEST), checker(TEST, [*TEST[1:], TEST[0]])
    assert own.mean() > 0.85 and others.mean() < 0.35 and (own >= others).mean() > 0.95
    silent = TEST[0].model_copy(update={"messages": []})
    assert math.isnan(checker(TEST[:1], [silent])[0])
    twice = {k: v for k, v in checker.thresholds_.items() if math.isfinite(v)}
    assert len(twice) >= 7  # habits that some have and some have not


def frame(change: float, seeds: int = 3, n: int = 30) -> pd.DataFrame:
    rng, parts = np.random.default_rng(0), []
    for seed in range(seeds):
        level = rng.normal(size=n)
        for arm, more in (("usp", 0.0), ("usp_rlcc", change)):
            scores = level + more + 0.1 * rng.normal(size=n)
            own = {"target": [f"t{i}" for i in range(n)], "truth": scores, "seed": seed, "arm": arm}
            parts.append(pd.DataFrame(own))
    return pd.concat(parts)


def test_gains_are_paired_by_seed_and_profile():
    there, profiles, seeds = gains(frame(0.2), ["truth"]).to_dict("records")
    assert there["low"] > 0.15 and there["high"] < 0.25 and there["n"] == 90
    assert there["unit"] == "seed × profile" and there["arm"] == "truth"
    none, *_ = gains(frame(0.0), ["truth"]).to_dict("records")
    assert profiles["arm"] == "truth_over_profiles" and profiles["n"] == 30
    assert seeds["arm"] == "truth_over_seeds" and seeds["n"] == 3 and seeds["unit"] == "seed"
    for e in (profiles, seeds):
        assert e["value"] == pytest.approx(there["value"]) and e["low"] < 0.2 < e["high"]
    assert none["low"] < 0 < none["high"]
    # What would have been seen is about what it takes: noise of .1 sqrt(2) over 90 pairs.
    assert none["detectable"] == pytest.approx(2.8 * 0.1 * math.sqrt(2 / 90), rel=0.35)
    one_short, one_twice = frame(0.2).iloc[:-1], pd.concat([frame(0.2), frame(0.2).iloc[:1]])
    for bad in (frame(0.2).query("arm == 'usp'"), one_short, one_twice):
        with pytest.raises(UspError, match="one dialogue of usp and one of usp_rlcc"):
            gains(bad, ["truth"])


def test_what_another_seed_would_do_is_seen_by_the_interval_over_seeds():
    shifted = frame(0.2).reset_index(drop=True)
    shifted.loc[shifted["arm"] == "usp_rlcc", "truth"] += 0.3 * (shifted["seed"] - 1)
    cells, _, seeds = gains(shifted, ["truth"]).to_dict("records")
    assert cells["low"] > 0 and seeds["low"] < 0  # seeds that differ by more than the gain
    alone = gains(frame(0.2).query("seed == 0"), ["truth"])
    assert alone["arm"].tolist() == ["truth"]


def test_gains_by_weight_and_levels_keep_groups_apart():
    table = pd.concat([frame(0.1).assign(lam=0.5), frame(0.3).assign(lam=1.0)])
    tested = {"all users": [SimpleNamespace(id=f"t{i}") for i in range(30)], "few": [SimpleNamespace(id="t3")]}  # fmt: skip
    out = by_weight(table, tested, ["truth"]).set_index(["lam", "metric"])
    assert out.loc[(0.5, "all users"), "value"] < out.loc[(1.0, "all users"), "value"]
    assert out.loc[(0.5, "few"), "n"] == 3
    mean = levels(frame(0.4), ["truth"]).set_index("arm")["value"]
    assert mean["usp_rlcc"] - mean["usp"] == pytest.approx(0.4, abs=0.05)
    assert set(levels(frame(0.4), ["truth"])["metric"]) == {"r_cc_truth"}


def test_judged_names_every_judge():
    judges = {"long": lambda targets, said: np.array([float(d.n_turns) for d in said])}
    table = judged(judges, TEST[:3], TEST[:3], arm="usp", seed=7)
    assert table["long"].tolist() == [d.n_turns for d in TEST[:3]] and set(table["seed"]) == {7}


def test_costs_see_reciting_and_sameness():
    recite = [
        d.model_copy(update={"messages": [{"role": "user", "content": d.profile}]}) for d in TEST
    ]
    alike = [
        d.model_copy(update={"messages": [{"role": "user", "content": "hello there"}]})
        for d in TEST
    ]
    out = costs({(0, "usp"): TEST, (0, "usp_rlcc"): recite}, TEST).set_index(["metric", "arm"])
    assert out.loc[("profile_copy", "usp_rlcc"), "value"] == 1 > 0.3 > out.loc[("profile_copy", "usp"), "value"]  # fmt: skip
    out = costs({(0, "usp"): TEST, (0, "usp_rlcc"): alike}, TEST).set_index(["metric", "arm"])
    assert out.loc[("first_turn_diversity", "usp_rlcc_over_usp"), "high"] < 0.5


def test_targets_are_training_users_or_far_from_them():
    corpus = Corpus("population", {"train": synthetic.draw("train", 120, 5)})
    some = targets_of(corpus, 10)
    assert len({d.id for d in some}) == 10 and all(d in corpus.train for d in some)
    assert targets_of(corpus, 10, seed=1) != some and len(targets_of(corpus)) == 120
    far = targets_of(corpus, 5, virtual=60, reducer="pca")
    real = {d.profile for d in corpus.train}
    halves = [{split_profile(p)[k] for p in real} for k in (0, 1)]
    assert len(far) == 5
    for t in far:
        parts = split_profile(t.profile)
        assert t.profile not in real and parts[0] in halves[0] and parts[1] in halves[1]
    with pytest.raises(UspError, match="n=5000 targets of .* virtual profiles"):
        targets_of(corpus, 5000, virtual=60, reducer="pca")
    bare = Corpus("x", {"train": [d.model_copy(update={"profile": None}) for d in corpus.train]})
    with pytest.raises(UspError, match="no training dialogue has a profile"):
        targets_of(bare, 3)


def test_figures_of_guards_and_of_weights(tmp_path):
    looks = [
        '{"step": 0, "reward": 1.0, "ppl": 2.0, "turns": 4.0, "n": 8, "broken": []}',
        '{"step": 4, "reward": 1.2, "ppl": 2.1, "turns": 4.5, "n": 8, "broken": ["ppl"]}',
    ]
    (tmp_path / "guards.jsonl").write_text("\n".join(looks))
    table = guard_table({"seed 0": SimpleNamespace(path=tmp_path)})
    ppl = table[table["metric"] == "ppl"]
    assert ppl["value"].tolist() == [2.0, 2.1] and ppl["most"].tolist() == [2.06, 2.06]
    assert table[table["metric"] == "reward"]["most"].isna().all()
    save_figure(guards(table), tmp_path / "guards", table)
    tested = {"all users": [SimpleNamespace(id=f"t{i}") for i in range(30)]}
    weights = by_weight(pd.concat([frame(0.1).assign(lam=w) for w in (0.5, 0.8)]), tested, ["truth"])  # fmt: skip
    save_figure(gain_by_weight(weights), tmp_path / "weights", weights)
