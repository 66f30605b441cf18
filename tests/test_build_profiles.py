"""Two stages, whole data sets, and what is left after a crash."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from usp_lab import synthetic
from usp_lab.build_profiles import RECORDS, build_profiles, with_profiles
from usp_lab.data import Corpus, Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.extract_rules import Extracted
from usp_lab.profile_store import Record
from usp_lab.profiles import Claim, Objective, Profile


def made(n: int) -> list[Dialogue]:
    things = "kettle bicycle novel garden violin passport kitchen laptop marathon sofa pension puppy".split()  # fmt: skip
    turns = [f"{'how why when'.split()[i % 3]} does a {things[i % 12]} number {i} cost my wife so much" for i in range(n)]  # fmt: skip
    return [
        Dialogue(id=f"d{i}", messages=[{"role": "user", "content": t}, {"role": "assistant", "content": "ok"}])
        for i, t in enumerate(turns)
    ]  # fmt: skip


def corpus(n: int) -> Corpus:
    all_ = made(n)
    return Corpus("made", {"train": all_[4:], "validation": all_[2:4], "test": all_[:2]})


class Counting:
    """An extractor that counts, and fails where it is told to."""

    def __init__(self, fails: tuple[str, ...] = (), batch: int = 4) -> None:
        self.fails, self.batch, self.seen = fails, batch, []

    def __repr__(self) -> str:
        return "Counting"

    def extract(self, dialogues):
        self.seen += [d.id for d in dialogues]
        return [
            Extracted(error="too odd: no")
            if d.id in self.fails
            else Extracted(Profile(objective=Objective(goals=[Claim(value=f"how to be {d.id}")])))
            for d in dialogues
        ]


def test_data_set_loads_and_has_every_profile(tmp_path):
    built = build_profiles(corpus(20), out=tmp_path / "set", progress=False)
    again = load_dialogues(tmp_path / "set")  # less those whose openings are on two sides
    profiles = {d.id: d.profile for d in built.corpus.all}
    assert len(profiles) == 20 and len(again) > 10
    assert all(d.profile == profiles[d.id] and "have a partner" in d.profile for d in again.all)
    records = [json.loads(x) for x in (tmp_path / "set" / RECORDS).read_text().splitlines()]
    assert len(records) == 20 and records[0]["profile"]["objective"]["family"][0]["evidence"]
    card = (tmp_path / "set" / "README.md").read_text()
    assert "20 made, 0 failed" in card and "split: validation" in card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_finished_set_is_not_made_again(tmp_path):
    build_profiles(corpus(8), extractor=Counting(), out=tmp_path / "set", progress=False)
    again = Counting()
    built = build_profiles(corpus(8), extractor=again, out=tmp_path / "set", progress=False)
    assert again.seen == [] and len(built.corpus) == 8


def test_failures_are_recorded_counted_and_tried_again(tmp_path):
    fails = Counting(fails=("d1", "d5"))
    built = build_profiles(corpus(8), extractor=fails, out=tmp_path / "set", progress=False)
    assert built.failures == {"d1": "too odd: no", "d5": "too odd: no"}
    assert built.corpus.skipped == {"no profile could be made": 2}
    assert "2 (too odd)" in (tmp_path / "set" / "README.md").read_text()
    assert sum(len((tmp_path / "set" / f"{s}.jsonl").read_text().splitlines()) for s in built.corpus.splits) == 6  # fmt: skip
    again = Counting()
    built = build_profiles(corpus(8), extractor=again, out=tmp_path / "set", progress=False)
    assert sorted(again.seen) == ["d1", "d5"] and not built.failures
    assert {d.id for d in built.corpus.all} == {f"d{i}" for i in range(8)}


def test_a_retry_that_was_cut_off_goes_on(tmp_path):
    some = Counting(fails=("d1", "d5"))
    build_profiles(corpus(8), extractor=some, out=tmp_path / "set", progress=False)

    class Stopped(Counting):
        def extract(self, dialogues):
            if self.seen:
                raise KeyboardInterrupt
            return super().extract(dialogues)

    with pytest.raises(KeyboardInterrupt):
        build_profiles(corpus(8), extractor=Stopped(batch=1), out=tmp_path / "set", progress=False)
    again = Counting()
    built = build_profiles(corpus(8), extractor=again, out=tmp_path / "set", progress=False)
    assert len(again.seen) == 1 and not built.failures and len(built.corpus) == 8


def test_all_failing_leaves_no_data_set_and_says_why(tmp_path):
    every = Counting(fails=tuple(f"d{i}" for i in range(8)))
    built = build_profiles(corpus(8), extractor=every, out=tmp_path / "set", progress=False)
    assert len(built.failures) == 8 and not (tmp_path / "set").exists()


def test_empty_profile_is_a_failure():
    class Silent(Counting):
        def extract(self, dialogues):
            return [Extracted(Profile()) for _ in dialogues]

    built = build_profiles(made(2), extractor=Silent(), progress=False)
    assert all("nothing is known" in e for e in built.failures.values())


SCRIPT = """
import sys, time
sys.path.insert(0, "tests")
from test_build_profiles import Counting, corpus
from usp_lab.build_profiles import build_profiles
class Slow(Counting):
    def extract(self, dialogues):
        time.sleep(0.05)
        return super().extract(dialogues)
build_profiles(corpus(60), extractor=Slow(), out=sys.argv[1], progress=False)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_and_resumed_none_twice_none_lost(tmp_path):
    out, lines = tmp_path / "set", tmp_path / f"set.{RECORDS}"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)])
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 8):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [json.loads(x)["id"] for x in lines.read_bytes().split(b"\n")[:-1]]
    with lines.open("ab") as f:
        f.write(b'{"id": "d59", "run"')  # as a crash in the middle of a line leaves it
    again = Counting()
    build_profiles(corpus(60), extractor=again, out=out, progress=False)
    ids = [json.loads(x)["id"] for x in (out / RECORDS).read_text().splitlines()]
    assert 8 <= len(before) < 60 and not set(before) & set(again.seen)
    assert len(ids) == len(set(ids)) == 60


def test_records_of_others_are_refused(tmp_path):
    build_profiles(corpus(8), extractor=Counting(), out=tmp_path / "set", progress=False)
    with pytest.raises(UspError, match="another extractor or polisher"):
        build_profiles(corpus(8), out=tmp_path / "set", progress=False)
    changed = corpus(8)
    first = changed.splits["test"][0]
    changed.splits["test"][0] = first.model_copy(update={"messages": [{"role": "user", "content": "x"}]})  # fmt: skip
    with pytest.raises(UspError, match="d0.*another dialogue"):
        build_profiles(changed, extractor=Counting(), out=tmp_path / "set", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UspError, match="holds something else"):
        build_profiles(corpus(8), out=tmp_path / "mine", progress=False)


def test_bad_input_is_refused():
    with pytest.raises(UspError, match="no dialogue"):
        build_profiles([], progress=False)
    with pytest.raises(UspError, match="2 dialogues have the id 'd0'"):
        build_profiles(made(1) * 2, progress=False)


def test_later_stages_read_what_was_built(tmp_path):
    bare = corpus(8)
    built = build_profiles(bare, extractor=Counting(fails=("d6",)), out=tmp_path / "profiled", progress=False)  # fmt: skip
    joined = with_profiles(bare, tmp_path)
    assert joined.has_profiles and joined.splits == built.corpus.splits
    assert joined.skipped == {"no profile could be made": 1} and joined.source == "made"
    assert with_profiles(joined, tmp_path / "nowhere") is joined
    with pytest.raises(UspError, match="build them first"):
        with_profiles(bare, tmp_path / "nowhere")


def test_record_is_a_line():
    record = Record(id="a", run="r", source="s", error="no")
    assert record.model_dump_json().startswith('{"id":')


def test_a_thousand_take_seconds():
    dialogues = synthetic.draw("train", 100, 31)
    started = time.process_time()
    build_profiles([d.model_copy(update={"profile": None}) for d in dialogues], progress=False)
    assert time.process_time() - started < 6  # 60 s a thousand
