"""`usp-lab simulate`: let a simulator talk to an assistant, from the command line."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from usp_lab.errors import UspError
from usp_lab.files import HUB, POPULATION

EXAMPLES = """examples:
  usp-lab simulate --simulator twin --assistant scripted:good --targets population --out d.jsonl
  usp-lab simulate --simulator wangkevin02/USP --assistant models/assistant \\
      --targets profiles.jsonl --replicates 3 --out d.jsonl
  usp-lab simulate --simulator http://localhost:8000/v1 --simulator-model USP \\
      --assistant https://api.example.com/v1 --assistant-model big --assistant-price 2.5 10 \\
      --targets chats.jsonl.gz --out d.jsonl --dry-run
keys are read from the environment: OPENAI_API_KEY, or the variable that is named"""
TWIN, SCRIPTED = "twin", "scripted:"
_POPULATION_TARGETS = 100
ENDPOINT = ("concurrency", "timeout", "dialogue_timeout", "retries")
_OF_ENDPOINTS = ("model", "key_variable", "price")
_SAMPLING = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")


def add_parser(commands) -> None:
    """Register the command with those of `usp-lab`."""
    parser = commands.add_parser(
        "simulate",
        help="simulate dialogues",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--simulator",
        required=True,
        metavar="PATH|URL",
        help=f'folder, hub id, embedded name (usp-tiny) or endpoint that speaks as the user, or "{TWIN}", the population\'s own',
    )
    add(
        "--assistant",
        required=True,
        metavar="PATH|URL",
        help=f'folder, hub id or endpoint, or "{SCRIPTED}NAME" (good, fair, poor or bad)',
    )
    add(
        "--targets",
        required=True,
        metavar="FILE",
        help=f'dialogues or profiles: .jsonl, .jsonl.gz or .parquet; "{POPULATION}" or "{HUB}NAME"',
    )
    add("--n", type=int, help=f"targets at the most (of the population {_POPULATION_TARGETS})")
    add("--max-turns", type=int, default=10, help="user turns at the most (default 10)")
    add("--seed", type=int, default=0, help="two seeds give different dialogues (default 0)")
    add("--replicates", type=int, default=1, help="dialogues a target (default 1)")
    add("--out", type=Path, metavar="FILE.jsonl", help="goes on from what is there")
    add(
        "--dry-run",
        action="store_true",
        help="print expected calls, tokens and cost; simulate none",
    )
    add("--batch-size", type=int, default=64, help="dialogues under way at once (default 64)")
    add("--on-bad", choices=("raise", "skip"), default="raise", help="what to do with a bad row")
    add("--no-profile", action="store_true", help="a simulator trained without profiles")
    add("--end-token", action="store_true", help="one at an endpoint, trained with an end token")
    add("--assistant-system", metavar="TEXT", help="system prompt of an assistant at an endpoint")
    for side in ("simulator", "assistant"):
        group = parser.add_argument_group(f"the {side}")
        add = group.add_argument
        add(f"--{side}-model", metavar="NAME", help="what the endpoint serves")
        add(f"--{side}-key-variable", metavar="NAME", help="environment variable with its key")
        add(
            f"--{side}-price",
            nargs=2,
            type=float,
            metavar=("IN", "OUT"),
            help="dollars a million tokens",
        )
        for name in _SAMPLING:
            kind = int if name == "max_new_tokens" else float
            add(f"--{side}-{name.replace('_', '-')}", type=kind)
    add_endpoint_options(parser.add_argument_group("endpoints"))
    parser.set_defaults(command=simulate_command)


def add_endpoint_options(group) -> None:
    """Add `ENDPOINT`'s options, fields of `endpoints.Endpoint`, to a group of a parser's arguments."""
    for name in ENDPOINT:
        kind = int if name in ("concurrency", "retries") else float
        group.add_argument(f"--{name.replace('_', '-')}", type=kind)


def simulate_command(args: argparse.Namespace) -> int:
    """`usp-lab simulate`: 0 when every dialogue ended, 1 when some failed."""
    if args.out is None and not args.dry_run:
        raise UspError("no --out; name the .jsonl file that the dialogues go to, or add --dry-run")
    if not (_is_url(args.simulator) or _is_url(args.assistant)):
        for name in _given(args, ENDPOINT):
            raise UspError(
                f"--{name.replace('_', '-')} has no use without an endpoint; leave it out"
            )
    from usp_lab.simulate import already_done, simulate

    targets = read_targets(args.targets, args.n, args.on_bad)
    simulator, assistant = make_simulator(args, targets), make_assistant(args)
    settings = {k: getattr(args, k) for k in ("max_turns", "seed", "replicates")}
    if args.dry_run:
        done = (
            already_done(simulator, assistant, targets, out=args.out, **settings)
            if args.out
            else []
        )
        return _dry_run(simulator, assistant, targets, args, done)
    dialogues = simulate(
        simulator, assistant, targets, out=args.out, batch_size=args.batch_size, **settings
    )
    stops = Counter(d.stop for d in dialogues)
    print(f"{len(dialogues)} dialogues in {args.out}: " + _listed(stops))
    for name, side in (("simulator", simulator), ("assistant", assistant)):
        if usage := getattr(side, "usage", None):
            print(f"{name}: {usage_text(usage)}")
    if failed := stops["failed"]:
        reason = next(d.error for d in dialogues if d.stop == "failed")
        print(f"{failed} failed, first: {reason}; run the same command again to retry them")
    return int(failed > 0)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items(), key=lambda x: -x[1]))


def usage_text(usage) -> str:
    """Say what was asked of an endpoint, in a line."""
    return (
        f"{usage.requests:,} requests ({usage.retries:,} tried again, {usage.failures:,} failed), "
        f"{usage.prompt_tokens:,} tokens in, {usage.completion_tokens:,} out, ${usage.cost:,.2f}"
        + (f"; {usage.unmetered:,} answers did not say how many" if usage.unmetered else "")
    )


def _dry_run(simulator, assistant, targets, args: argparse.Namespace, done) -> int:
    """Print what the rest of a run is expected to take."""
    from usp_lab.estimate import estimate

    table = estimate(simulator, assistant, targets, args.max_turns, done, args.replicates)
    total = len(targets) * args.replicates
    print(f"{total - len(done):,} of {total:,} dialogues to simulate; nothing was spent yet")
    free = (table["quantity"] == "dollars") & (table["high"] == 0) & (table["side"] != "both")
    for row in table[~free].itertuples():
        unit = "${:,.2f}" if row.quantity == "dollars" else "{:,.0f}"
        value, low, high = (unit.format(x) for x in (row.value, row.low, row.high))
        shown = f"{low} to {high}" if math.isnan(row.value) else f"{value} (95 %: {low} to {high})"
        print(f"{row.side:<10} {row.quantity.replace('_', ' '):<11} {shown}")
    n = "" if table["value"].isna().all() else f", n={table['n'].iloc[0]:,} dialogues"
    print(f"from {table['basis'].iloc[0]}{n}; calls that are tried again come on top")
    return 0


# --- targets --------------------------------------------------------------------------------------


def read_targets(source: str, n: int | None = None, on_bad: str = "raise") -> list:
    """Return targets: new users of the population, a data set's test split, or all rows of a file.

    A row of a file may be a dialogue or a ``profile`` alone.

    Raises:
        UspError: unknown source, a bad row under "raise", nothing there.
    """
    from usp_lab.data import Dialogue, load_dialogues
    from usp_lab.rows import file_rows, valid_rows

    if n is not None and n < 1:
        raise UspError(f"--n must be at least 1, not {n}")
    if source == POPULATION:
        from usp_lab.synthetic import draw

        return draw("test", n or _POPULATION_TARGETS, 0)
    if source.startswith(HUB) or Path(source).is_dir():
        corpus = load_dialogues(source, on_bad=on_bad)
        _say_skipped(corpus.skipped)
        return corpus.test[:n]
    path, skipped = Path(source), Counter()
    rows = valid_rows(file_rows(path), path.name, on_bad, skipped, set(), profile_alone=True)
    targets = [Dialogue(**fields) for fields in islice(rows, n)]
    _say_skipped(skipped)
    return targets


def _say_skipped(counts: Mapping[str, int]) -> None:
    for reason, n in counts.items():
        print(f"skipped {n} rows: {reason}", file=sys.stderr)


# --- sides ----------------------------------------------------------------------------------------


def make_simulator(args: argparse.Namespace, targets):
    """Return the simulator that was asked for.

    Raises:
        UspError: it cannot be loaded, or an option that it has no use for.
    """
    given, drawn = args.simulator, _drawn(args, "simulator")
    if given == TWIN:
        _refuse(args, "simulator", given, [*_SAMPLING, *_OF_ENDPOINTS])
        if not all(t.truth for t in targets):
            raise UspError(f"{given} speaks for the population alone; use --targets {POPULATION}")
        from usp_lab.simulators import TwinSimulator

        return TwinSimulator()
    if _is_url(given):
        from usp_lab.decoding import Sampling
        from usp_lab.endpoints import EndpointSimulator

        return EndpointSimulator(
            _endpoint(args, "simulator"),
            with_profile=not args.no_profile,
            sampling=Sampling(**drawn),
            end_token=args.end_token,
        )
    _refuse(args, "simulator", given, _OF_ENDPOINTS)
    from usp_lab.simulators import UserSimulator

    return UserSimulator.from_pretrained(given, with_profile=not args.no_profile, **drawn)


def make_assistant(args: argparse.Namespace):
    """Return the assistant that was asked for.

    Raises:
        UspError: it cannot be loaded, or an option that it has no use for.
    """
    given, drawn = args.assistant, _drawn(args, "assistant")
    if given.startswith(SCRIPTED):
        _refuse(args, "assistant", given, [*_SAMPLING, *_OF_ENDPOINTS])
        from usp_lab.assistants import scripted

        return scripted(given.removeprefix(SCRIPTED))
    if _is_url(given):
        from usp_lab.endpoints import EndpointAssistant

        plain = EndpointAssistant(_endpoint(args, "assistant"), system=args.assistant_system)
        sampling = replace(plain.sampling, **drawn)
        return EndpointAssistant(plain.endpoint, system=plain.system, sampling=sampling)
    _refuse(args, "assistant", given, _OF_ENDPOINTS)
    from usp_lab.simulators import ModelAssistant

    return ModelAssistant.from_pretrained(given, **drawn)


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _given(args: argparse.Namespace, names, prefix: str = "") -> dict:
    found = {name: getattr(args, prefix + name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _drawn(args: argparse.Namespace, side: str) -> dict:
    return _given(args, _SAMPLING, f"{side}_")


def _refuse(args: argparse.Namespace, side: str, given: str, names) -> None:
    """Raise where an option was given that changes nothing."""
    for name in _given(args, names, f"{side}_"):
        option = f"--{side}-{name.replace('_', '-')}"
        raise UspError(f"{option} has no use with --{side} {given}; leave it out")


def _endpoint(args: argparse.Namespace, side: str):
    from usp_lab.endpoints import Endpoint

    given = _given(args, _OF_ENDPOINTS, f"{side}_")
    if "model" not in given:
        raise UspError(f"--{side} is an endpoint; name what it serves with --{side}-model")
    price_in, price_out = given.pop("price", (0.0, 0.0))
    return Endpoint(
        getattr(args, side),
        **given,
        price_in=price_in,
        price_out=price_out,
        **_given(args, ENDPOINT),
    )
