"""`usp-lab profiles`: make a profile for every dialogue of a file, from the command line."""

import argparse
from collections import Counter
from pathlib import Path

from usp_lab.errors import UspError
from usp_lab.files import HUB
from usp_lab.simulate_cli import ENDPOINT, add_endpoint_options, usage_text

EXAMPLES = """examples:
  usp-lab profiles chats.jsonl.gz --out profiled                    rules and a template: offline
  usp-lab profiles chats.jsonl.gz --out profiled --extractor llm --polisher llm \\
      --endpoint http://localhost:8000/v1 --model some-chat-model --price 2.5 10
  usp-lab profiles chats.jsonl.gz --out profiled --extractor distilled --generator wangkevin02/Profile_Generator
the same command goes on where it was cut off, and tries again what failed; keys are read from the environment"""
_OF_ENDPOINT = ("endpoint", "model", "key_variable", "price", *ENDPOINT)


def add_parser(commands) -> None:
    """Register the command with those of `usp-lab`."""
    parser = commands.add_parser(
        "profiles",
        help="make profiles of dialogues",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="FILE", help=f'.jsonl, .jsonl.gz or .parquet, a folder with splits, or "{HUB}NAME"')  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="new folder of the data set")
    add("--extractor", choices=("rules", "llm", "distilled"), default="rules", help="default rules")
    add("--polisher", choices=("template", "llm"), default="template", help="default template")
    add("--generator", default="", metavar="PATH", help="folder or hub id of a distilled generator")
    add(
        "--truncate",
        action="store_true",
        help="cut dialogues that do not fit the model, and say so",
    )
    add("--context", type=int, help="tokens that the endpoint's model takes; unknown if not given")
    add("--n", type=int, help="dialogues at the most")
    add("--seed", type=int, default=0, help="of the splits of a file without (default 0)")
    add("--on-bad", choices=("raise", "skip"), default="raise", help="what to do with a bad row")
    add("--licence", default="other", help="for the data card")
    group = parser.add_argument_group("the endpoint of the llm extractor and polisher")
    add = group.add_argument
    add("--endpoint", metavar="URL", help="any server that speaks the OpenAI API")
    add("--model", metavar="NAME", help="what it serves")
    add("--key-variable", metavar="NAME", help="environment variable with its key (default OPENAI_API_KEY)")  # fmt: skip
    add("--price", nargs=2, type=float, metavar=("IN", "OUT"), help="dollars a million tokens")
    add_endpoint_options(group)
    parser.set_defaults(command=profiles_command)


def profiles_command(args: argparse.Namespace) -> int:
    """`usp-lab profiles`: 0 when every dialogue has a profile, 1 when some failed."""
    endpoint = _endpoint(args)
    if args.generator and args.extractor != "distilled":
        raise UspError("--generator has no use without --extractor distilled; leave it out")
    from usp_lab.build_profiles import build_profiles
    from usp_lab.data import load_dialogues
    from usp_lab.profile_makers import make_extractor, make_polisher

    corpus = load_dialogues(args.data, n=args.n, seed=args.seed, on_bad=args.on_bad)
    extractor = make_extractor(args.extractor, endpoint, args.generator, args.truncate, args.context or 0)  # fmt: skip
    polisher = make_polisher(args.polisher, endpoint)
    built = build_profiles(
        corpus, extractor=extractor, polisher=polisher, out=args.out, name=args.out.name, licence=args.licence
    )  # fmt: skip
    return _report(built, args.out)


def _report(built, out: Path) -> int:
    kept, failed = len(built.corpus), built.failures
    where = f" in {out}" if kept else ", so no data set is written"
    print(f"{kept:,} of {len(built.records):,} dialogues have a profile{where}")
    if built.cut:
        print(f"{len(built.cut):,} did not fit and were cut, by {sum(built.cut.values()):,} user turns in all")  # fmt: skip
    for side, usage in built.usage.items():
        print(f"{side}: {usage_text(usage)}")
    for reason, n in Counter(e.partition(":")[0] for e in failed.values()).most_common():
        first = next((i, e) for i, e in failed.items() if e.startswith(reason))
        print(f"{n:,} failed ({reason}), first {first[0]}: {first[1]}")
    if failed:
        print("run the same command again to try these once more")
    return int(bool(failed))


def _endpoint(args: argparse.Namespace):
    """Return the endpoint that was named, None where none is needed.

    Raises:
        UspError: one is needed and not named, or named and of no use.
    """
    given = {k: v for k in _OF_ENDPOINT if (v := getattr(args, k)) is not None}
    if "llm" not in (args.extractor, args.polisher):
        for name in given:
            raise UspError(f"--{name.replace('_', '-')} has no use without --extractor llm or --polisher llm; leave it out")  # fmt: skip
        return None
    for name in ("endpoint", "model"):
        if name not in given:
            raise UspError(f"--extractor llm and --polisher llm ask an endpoint; name it with --endpoint URL --model NAME (no --{name})")  # fmt: skip
    from usp_lab.endpoints import Endpoint

    price_in, price_out = given.pop("price", (0.0, 0.0))
    return Endpoint(given.pop("endpoint"), price_in=price_in, price_out=price_out, **given)
