"""Profiles for dialogues, in two stages: extract attributes, then polish them into text.

    corpus = load_dialogues("chats.jsonl.gz")
    built = build_profiles(corpus, out="profiled")      # rules and a template: offline
    built.corpus, built.failures, built.usage

An extractor has ``extract(dialogues) -> [Extracted]``, a polisher ``polish(profile) -> text``. Either may have:

- ``remote = True`` and ``concurrency``: it waits for a server, so it is called from that many threads,
  with one dialogue each;
- ``check()``, called before anything is spent, raises `UspError` when it cannot work;
- ``usage``, what it has asked of an endpoint;
- ``batch``: dialogues that it likes to be given at once.
"""

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from usp_lab.data import SPLITS, Corpus, Dialogue, write_dataset
from usp_lab.errors import UspError
from usp_lab.extract_rules import Extracted, RuleExtractor
from usp_lab.files import atomic
from usp_lab.polish import NotPolished, Polisher, TemplatePolisher
from usp_lab.profile_store import ProfileStore, Record, read_records

RECORDS = "profiles.jsonl"  # in a finished data set: profiles with their evidence
_DELAY = 3  # seconds until the bar shows
_NO_PROFILE = "no profile could be made"


@dataclass(frozen=True)
class Built:
    """What `build_profiles` made.

    Attributes:
        corpus: the dialogues that have a profile now, in the splits they were in; what failed is
            counted in ``skipped``.
        records: by dialogue: profile with evidence, or why there is none.
        usage: what was asked of endpoints, by "extractor" and "polisher".
        folder: the data set that was written, if any.
    """

    corpus: Corpus
    records: dict[str, Record]
    usage: dict[str, object]
    folder: Path | None = None

    @property
    def failures(self) -> dict[str, str]:
        """Why dialogues have no profile, by id."""
        return {k: r.error for k, r in self.records.items() if r.profile is None}

    @property
    def cut(self) -> dict[str, int]:
        """User turns that were left out of dialogues that did not fit, by id."""
        return {k: r.cut for k, r in self.records.items() if r.cut}


def build_profiles(
    dialogues: Corpus | Sequence[Dialogue],
    *,
    extractor=None,
    polisher: Polisher | None = None,
    out: str | Path | None = None,
    name: str = "profiled dialogues",
    licence: str = "other",
    progress: bool = True,
) -> Built:
    """Make a profile for every dialogue, and a data set of LMSYS-USP's form.

    Args:
        dialogues: a corpus, whose splits are kept, or dialogues, which are all "train" then. Profiles that
            they have are made anew.
        extractor: `RuleExtractor` when None; `extract_llm.LlmExtractor`, `ProfileGenerator`.
        polisher: `TemplatePolisher` when None; not asked where an extractor gives text itself.
        out: a new folder for the data set: a file a split, a data card, and ``profiles.jsonl`` with the
            evidence. Until it is complete, records gather in <out>.profiles.jsonl beside it; a run that
            was cut off goes on from there, and tries again what failed.
        name, licence: for the data card.
        progress: show a bar.

    Raises:
        UspError: no dialogue, two of one id, a folder that holds something else, records of another
            run, an endpoint that is down or refuses the key.
    """
    corpus = dialogues if isinstance(dialogues, Corpus) else Corpus("dialogues", {"train": list(dialogues)})  # fmt: skip
    extractor, polisher = extractor or RuleExtractor(), polisher or TemplatePolisher()
    sources = _sources(corpus.all)
    run = _digest(f"{extractor!r} {polisher!r}", 12)
    folder = None if out is None else Path(out).resolve()
    lines = None if folder is None else folder.with_name(f"{folder.name}.{RECORDS}")
    store = None if folder is None else _finished(folder, lines, run, sources)
    written = store is not None
    if not written:
        store = ProfileStore(lines, run, sources)
        todo = [d for d in corpus.all if d.id not in store.done]
        if todo:
            for side in (extractor, polisher):
                if check := getattr(side, "check", None):
                    check()
        with store:
            _fill(store, todo, extractor, polisher, run, sources, progress)
    kept = _with_records(corpus, store.records)
    asked = {"extractor": extractor, "polisher": polisher}
    usage = {k: s.usage for k, s in asked.items() if getattr(s, "usage", None) is not None}
    built = Built(kept, {i: store.records[i] for i in sources}, usage, folder)
    if folder is not None and not written and len(kept):
        _write(built, folder, store.path, name, licence)
    return built


def with_profiles(corpus: Corpus, folder: str | Path) -> Corpus:
    """Return a corpus with the profiles that were built for it.

    Args:
        corpus: returned as it is where every dialogue has a profile.
        folder: of `build_profiles`, or a run that has it as ``profiled``.

    Raises:
        UspError: no profiles there, or none of these dialogues.
    """
    if corpus.has_profiles:
        return corpus
    places = [Path(folder) / RECORDS, Path(folder) / "profiled" / RECORDS]
    path = next((p for p in places if p.exists()), None)
    if path is None:
        raise UspError(
            f"no {RECORDS} in {folder}: profiles were not built, or none could be made (its executed notebook "
            "says why); build them first: usp-lab run 02_profiles"
        )
    records = read_records(path)
    if not records.keys() & {d.id for d in corpus.all}:
        raise UspError(
            f"{path} has profiles of other dialogues than {corpus.name}; build them again"
        )
    return _with_records(corpus, records)


def _with_records(corpus: Corpus, records: dict[str, Record]) -> Corpus:
    """Return the corpus with its records' profiles, without the dialogues that have none."""
    splits, lost = {}, Counter(corpus.skipped)
    for split, dialogues in corpus.splits.items():
        splits[split] = []
        for d in dialogues:
            r = records.get(d.id)
            if r is not None and r.profile is not None:
                d = d.model_copy(update={"profile": r.profile.to_text()})
            if d.profile and d.profile.strip():
                splits[split].append(d)
            else:
                lost[_NO_PROFILE] += 1
    return replace(corpus, splits=splits, skipped=dict(lost))


def _sources(dialogues: Sequence[Dialogue]) -> dict[str, str]:
    sources = {d.id: _digest(json.dumps([[m["role"], m["content"]] for m in d.messages]), 8) for d in dialogues}  # fmt: skip
    if not sources:
        raise UspError("no dialogue to make a profile of; give at least one")
    if len(sources) < len(dialogues):
        twice, count = Counter(d.id for d in dialogues).most_common(1)[0]
        raise UspError(f"{count} dialogues have the id {twice!r}; give each its own")
    return sources


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


# --- one stage after the other ---------------------------------------------------------------------


def _fill(store, todo, extractor, polisher, run: str, sources: dict, progress: bool) -> None:
    """Make what is to do, add it to the store as it comes."""

    def records(batch: Sequence[Dialogue]) -> list[Record]:
        made = zip(batch, extractor.extract(batch), strict=True)
        return [_record(d, e, polisher, run, sources[d.id]) for d, e in made]

    bar = tqdm(
        total=len(sources), initial=len(sources) - len(todo), desc="profiles", unit="dialogue",
        delay=_DELAY, mininterval=1.0, disable=not progress, file=sys.stderr,
    )  # fmt: skip
    failed = 0
    with bar:
        for batch in _made(records, todo, extractor, polisher):
            store.add(batch)
            failed += sum(r.profile is None for r in batch)
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update(len(batch))


def _record(d: Dialogue, e: Extracted, polisher: Polisher, run: str, source: str) -> Record:
    """Polish what was extracted; an empty profile is a failure, never a made-up one."""
    profile, error = e.profile, e.error
    if profile is not None and profile.text is None and not profile.is_empty:
        try:
            profile = profile.model_copy(update={"text": polisher.polish(profile)})
        except NotPolished as failure:
            profile, error = None, str(failure)
    if profile is not None and not (profile.text or "").strip():
        profile, error = None, "nothing is known of the user: an empty profile"
    return Record(id=d.id, run=run, source=source, profile=profile, error=error, cut=e.cut)


def _made(records, todo: Sequence[Dialogue], extractor, polisher) -> Iterator[list[Record]]:
    """Yield batches of records: in order, or (remote) each dialogue as it is answered."""
    sides = [s for s in (extractor, polisher) if getattr(s, "remote", False)]
    if not sides:
        size = getattr(extractor, "batch", 32)
        yield from (records(todo[i : i + size]) for i in range(0, len(todo), size))
        return
    threads = max(s.concurrency for s in sides)
    waiting = iter(todo)
    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(records, [d]) for d in islice(waiting, 2 * threads)}
        try:
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                yield [r for future in ended for r in future.result()]
                running |= {pool.submit(records, [d]) for d in islice(waiting, len(ended))}
        finally:
            for future in running:
                future.cancel()


# --- the data set ----------------------------------------------------------------------------------


_OURS = {"README.md", RECORDS, *(f"{s}.jsonl" for s in SPLITS)}


def _finished(folder: Path, lines: Path, run: str, sources: dict[str, str]) -> ProfileStore | None:
    """Return the records of a data set that is complete, None where it is yet to be made.

    One that lacks some, because they failed or are new, or that a crash kept from being finished, will be
    made again from its records, which are copied beside it; it stays until then.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else {""}
    if not there <= _OURS or not (RECORDS in there or lines.exists()):
        raise UspError(f"{folder} holds something else; name a new folder or remove it first")
    if RECORDS in there:
        store = ProfileStore(folder / RECORDS, run, sources)
        if sources.keys() <= store.done.keys():
            return store
        if not lines.exists():  # else an earlier retry was cut off: it holds these and more
            with atomic(lines) as part:
                shutil.copy(folder / RECORDS, part)
    return None


def _write(built: Built, folder: Path, lines: Path, name: str, licence: str) -> None:
    """Write the data set whole in the place of an older one, then move the records into it."""
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    write_dataset(built.corpus, folder, name, licence)
    card = folder / "README.md"
    failed, cut = len(built.failures), len(built.cut)
    said = [
        f"- profiles: {len(built.corpus):,} made, {failed:,} failed, {cut:,} of a dialogue that was cut"
    ]
    said += [
        f"  - failed: {n:,} ({why})"
        for why, n in Counter(map(_kind, built.failures.values())).items()
    ]
    said += [f"- `{RECORDS}`: attributes with the utterances they rest on and confidence"]
    card.write_text(card.read_text(encoding="utf-8") + "\n".join(said) + "\n", encoding="utf-8")
    lines.replace(folder / RECORDS)
    shutil.rmtree(old, ignore_errors=True)


def _kind(error: str) -> str:
    """Return an error without what differs from dialogue to dialogue."""
    return error.partition(":")[0][:80]
