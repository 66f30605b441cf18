"""Breaking on purpose: what is replaced at which dose, and what each metric and each verdict make of it."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import HashingVectorizer

from usp_lab import collapse, synthetic, verdicts
from usp_lab.data import Dialogue
from usp_lab.diversity import Cloud
from usp_lab.errors import UspError
from usp_lab.verdicts import DOSES, curves, judge, respond

NAN = math.nan
USERS = [f"u{i}" for i in range(30) for _ in range(4)]
RNG = np.random.default_rng(0)
REAL = Cloud(RNG.standard_normal((120, 4)), USERS)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(["metric", "dose"])["value"].mean().unstack("dose")


def responses(**metrics) -> pd.DataFrame:
    """Rows of metrics whose value is a function of dose and replicate."""
    rows = [
        {"break": "b", "replicate": r, "dose": d, "metric": m, "value": f(d, r)}
        for m, f in metrics.items()
        for r in range(12)
        for d in DOSES
    ]
    return pd.DataFrame(rows)


# --- doses -----------------------------------------------------------------------------------------


def test_a_larger_dose_replaces_what_a_smaller_one_does_in_the_speaking_half_alone():
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def score(said, gone):
        seen.append((said.copy(), gone.copy()))
        return {"n": float(gone.sum())}

    rows = respond(score, USERS, replicates=3, seed=1)
    assert list(rows.columns) == ["replicate", "dose", "metric", "value"]
    assert rows["value"].tolist() == [round(60 * d) for d in DOSES] * 3
    for i in range(0, len(seen), len(DOSES)):
        half = seen[i : i + len(DOSES)]
        assert all((said == half[0][0]).all() and not (gone & ~said).any() for said, gone in half)
        assert all((b[1] | ~a[1]).all() for a, b in zip(half, half[1:], strict=False))
        assert (half[-1][0] == half[-1][1]).all()
        by_user = pd.Series(half[0][0]).groupby(USERS).nunique()
        assert (by_user == 1).all()  # users are not torn apart
    assert (seen[0][0] != seen[len(DOSES)][0]).any()


def test_bad_doses_and_a_single_user_are_refused():
    with pytest.raises(UspError, match="dose 1.5; give shares of 0 to 1"):
        respond(lambda said, gone: {}, USERS, doses=[0, 1.5])
    with pytest.raises(UspError, match="1 user; a half to break"):
        respond(lambda said, gone: {}, ["u"] * 5)


# --- scores ----------------------------------------------------------------------------------------


def test_collapse_of_turns_lowers_recall_coverage_and_mauve_but_not_precision():
    one = Cloud(np.tile(REAL.x[:2], (60, 1)), USERS)
    found = means(respond(collapse.turns_score(REAL, one, seeds=range(2)), USERS, replicates=6))
    for metric in ("mauve", "recall", "coverage"):
        assert found.loc[metric, 1.0] < 0.5 * found.loc[metric, 0.0], metric
        assert found.loc[metric, 0.9] < found.loc[metric, 0.0], metric
    assert found.loc["precision", 1.0] > 0.8 * found.loc["precision", 0.0]


def test_turns_from_nowhere_lower_precision_and_density():
    away = Cloud(REAL.x + 40, USERS)
    found = means(respond(collapse.turns_score(REAL, away, seeds=range(2)), USERS, replicates=6))
    for metric in ("precision", "density"):
        expected = found.loc[metric, 0.0] * (1 - np.array(DOSES))
        np.testing.assert_allclose(found.loc[metric], expected, atol=0.06)


def test_what_comes_in_a_users_place_is_that_users_own():
    """Else a turn of the half that is compared with would come back as the arm's."""
    own = np.repeat(np.arange(30), 4)[:, None] * 100.0
    real, others = Cloud(REAL.x + own, USERS), Cloud(REAL.x + own + 0.01, USERS)
    rows = respond(collapse.turns_score(real, others, k=3, seeds=[0]), USERS, replicates=4)
    assert (rows.query("metric == 'precision'")["value"] == 0).all()
    some = Cloud(others.x[:8], USERS[:8])  # most users have nothing there: they keep what they said
    kept = means(respond(collapse.turns_score(REAL, some, seeds=[0]), USERS, replicates=4))
    assert kept.loc["recall", 1.0] > 0.7


def test_vendi_traits_openings_and_distances_collapse():
    x = np.random.default_rng(1).standard_normal((60, 30))
    pairs = [f"u{i // 2}" for i in range(60)]
    vendi = means(respond(collapse.vendi_score(x, np.tile(x[:1], (60, 1))), pairs)).loc[
        "vendi_ratio"
    ]
    assert vendi[0.0] == pytest.approx(1, abs=0.05) and vendi[1.0] < 0.1
    assert vendi.is_monotonic_decreasing
    kinds = np.repeat(np.arange(30.0), 2)[:, None]
    other = np.random.default_rng(2).standard_normal((60, 1))
    traits = means(respond(collapse.traits_score(kinds, other, pairs), pairs)).loc["between_share"]
    assert traits[0.0] == 1 and abs(traits[1.0]) < 0.15
    openings = [[f"w{i} a{j} b{j}" for j in range(4)] for i in range(20)]
    owners = [i for i in range(20) for _ in range(4)]
    first = means(respond(collapse.openings_score(openings), owners)).loc["first_turn_diversity"]
    assert first[0.0] == pytest.approx(0.8) and first[1.0] == 0 and first.is_monotonic_decreasing
    gaps = means(respond(collapse.adv_score(np.ones(60), np.full(60, 3.0)), pairs)).loc["adv"]
    np.testing.assert_allclose(gaps, 1 + 2 * np.array(DOSES), atol=0.04)


def test_what_cannot_be_scored_is_nan():
    few = Cloud(REAL.x[:8], USERS[:8])
    rows = respond(collapse.turns_score(few, few), USERS[:8], replicates=2)
    assert rows["value"].isna().all() and set(rows["metric"]) > {"mauve", "recall"}
    mute = np.full((8, 3), NAN)
    for score in (collapse.vendi_score(mute, mute), collapse.traits_score(mute, mute, USERS[:8])):
        assert respond(score, USERS[:8], replicates=2)["value"].isna().all()
    alone = collapse.openings_score([["a"], [], ["b"]])
    assert respond(alone, [0, 2], replicates=2)["value"].isna().all()


# --- whose words -----------------------------------------------------------------------------------


def test_an_outsider_and_the_assistant_as_user():
    people = synthetic.draw("test-collapse", 40, 1)
    stand_ins = collapse.outsider(people[:20], people[20:], seed=1)
    assert len(stand_ins) == 20 and {d.user_id for d in stand_ins} == {people[0].user_id}
    d = people[0]
    (spoken,) = collapse.as_assistant([d])
    assert spoken.user_turns == [m["content"] for m in d.messages if m["role"] == "assistant"]
    alone = Dialogue(id="x", messages=[{"role": "user", "content": "hello?"}])
    assert collapse.as_assistant([alone])[0].user_turns == []


class Words:
    """Embeds a text as its words, hashed."""

    def encode(self, texts):
        return HashingVectorizer(n_features=64).transform(texts).toarray().astype(np.float32)


def test_every_metric_is_asked_and_the_known_collapse_is_seen():
    people = synthetic.draw("test-collapse", 160, 2)
    targets, rest = people[:60], people[80:]
    stand_ins = {"collapse": collapse.outsider(rest, targets), "foreign": collapse.as_assistant(targets)}  # fmt: skip
    openings = [[d.opening, e.opening] for d, e in zip(targets, rest, strict=False)]
    again = [synthetic.twin(d) for d in targets]
    rows = collapse.calibrate(Words(), targets, stand_ins, again, openings, seeds=[0])
    asked = {b: set(own["metric"]) for b, own in rows.groupby("break")}
    assert all(set(must) <= asked[b] for b, must in collapse.MEANT.items())
    assert asked["collapse"] - asked["foreign"] == {"first_turn_diversity"}
    judged = judge(rows, collapse.MEANT, collapse.LOWER_IS_BETTER).set_index(["break", "metric"])
    for metric in ("vendi_ratio", "adv", "first_turn_diversity", "between_share"):
        assert judged.loc[("collapse", metric), "verdict"] == "sees it", metric
    fall = means(rows[rows["break"] == "collapse"])
    late = ["mauve", "recall", "coverage"]
    assert (fall.loc[late, 1.0] < 0.9 * fall.loc[late, 0.0]).all()


# --- verdicts --------------------------------------------------------------------------------------


def test_a_metric_that_sees_one_that_is_blind_and_one_that_looks_the_wrong_way():
    rows = responses(
        sees=lambda d, r: -d + 0.01 * r,
        stays=lambda d, r: 0.5,
        wrong=lambda d, r: d + 0.01 * r,
        distance=lambda d, r: d + 0.01 * r,
        noisy=lambda d, r: -0.01 * d + (r * 7919 % 12),
    )
    meant = {"b": ["sees", "wrong", "distance", "noisy"]}
    found = judge(rows, meant, lower=["distance"]).set_index("metric")
    told = {"sees": "sees it", "stays": "blind to it", "wrong": "failed", "distance": "sees it", "noisy": "failed"}  # fmt: skip
    assert found["verdict"].to_dict() == told
    monotony, auc = ({m: e.value for m, e in found[c].items()} for c in ("monotony", "auc"))
    assert monotony["sees"] == monotony["distance"] == 1 and monotony["stays"] == 0
    assert monotony["wrong"] == -1 and monotony["noisy"] == 1  # it falls, within the noise
    assert auc["sees"] == 1 and auc["wrong"] == 0 and auc["stays"] == 0.5
    assert auc["noisy"] == pytest.approx(0.5, abs=0.1)
    assert found.loc["sees", "least_dose"] == 0.1 and np.isnan(found.loc["stays", "least_dose"])
    assert found["monotony"]["sees"].unit == "replicate" and found["monotony"]["sees"].n == 12


def test_what_was_never_scored_has_no_verdict_and_no_number():
    rows = responses(never=lambda d, r: NAN, once=lambda d, r: NAN if r else -d)
    found = judge(rows, {"b": ["never"]}).set_index("metric")
    assert found.loc["never", "verdict"] == "not scored"
    assert np.isnan(found.loc["never", "monotony"].value) and np.isnan(
        found.loc["never", "auc"].value
    )
    assert found.loc["once", "verdict"] == "sees it" and found.loc["once", "monotony"].n == 1
    tidy = verdicts.estimates(found.reset_index())
    assert set(tidy["metric"]) == {"b_monotony", "b_auc"} and set(tidy["arm"]) == {"never", "once"}


def test_curves_are_means_with_the_middle_of_the_replicates():
    rows = responses(m=lambda d, r: r if d else 5.0)
    found = curves(rows).set_index("dose")
    assert found.loc[0.0, ["value", "low", "high"]].tolist() == [5, 5, 5]
    assert found.loc[1.0, "value"] == 5.5 and 0 < found.loc[1.0, "low"] < 1
    assert found.loc[1.0, "high"] == pytest.approx(10.725) and (found["n"] == 12).all()
