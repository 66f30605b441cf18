"""The command line: `usp-lab run` executes notebooks, `list` shows them, `simulate` makes dialogues, `profiles` profiles.

examples:
  usp-lab run all                           every notebook, at preset tiny, that is not up to date
  usp-lab run 03 --preset smoke             one notebook, and what it needs
  usp-lab run all --data chats.jsonl.gz     on real dialogues, into runs/tiny+chats
  usp-lab run 03 -p seed=1 --name second    another seed, into runs/tiny+second
  usp-lab list                              notebooks, parameters, presets, what is up to date
  usp-lab simulate --help                   dialogues of a simulator with an assistant
  usp-lab profiles chats.jsonl.gz --out DIR    a profile for every dialogue of a file
"""

import argparse
import errno
import os
import re
import sys
from pathlib import Path

from usp_lab import profiles_cli, simulate_cli
from usp_lab.errors import UspError
from usp_lab.files import HUB, POPULATION, find_root
from usp_lab.notebooks import Notebook, read_notebooks, unknown
from usp_lab.plan import Request, make_plan
from usp_lab.presets import read_presets
from usp_lab.workflow import cpu_count, run_plan

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UspError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 good, 1 a notebook failed, 2 bad input, 130 stopped."""
    try:
        args = make_parser().parse_args(argv)
        return args.command(args)
    except UspError as error:
        print(f"usp-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"usp-lab: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = f" for {error.filename}" if error.filename else ""
        print(f"usp-lab: {error.strerror}{place}; see to that and run it again", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    about, _, examples = __doc__.partition("\n\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="usp-lab", description=about, epilog=examples, formatter_class=style)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    run = commands.add_parser(
        "run", help="execute notebooks", epilog=examples, formatter_class=style, allow_abbrev=False
    )
    run.add_argument(
        "notebooks",
        nargs="*",
        default=["all"],
        metavar="NOTEBOOK",
        help="03, 03_conditional_sft, its path, or all (default)",
    )
    run.add_argument("--preset", default="tiny", help="smoke, tiny (default), gpu or paper")
    run.add_argument(
        "--data",
        metavar="FILE",
        help=f'.jsonl, .jsonl.gz or .parquet; "{POPULATION}" or "{HUB}NAME"',
    )
    run.add_argument(
        "--name",
        help="folder of a variant: runs/<preset>+<name>; derived from --data and -p if not given",
    )
    run.add_argument(
        "-p",
        dest="passed",
        action="append",
        default=[],
        metavar="name=value",
        help="set a parameter, by its default's type, wherever a notebook that is run has it; 06.name=value: in that one alone",
    )
    run.add_argument(
        "--on-bad", choices=("raise", "skip"), help="what to do with a bad row of a data file"
    )
    run.add_argument(
        "--cores",
        type=int,
        metavar="N",
        help="notebooks at a time; they share the CPUs (default 1; 2 at preset smoke, whose time is mostly imports)",
    )
    run.add_argument(
        "--force", action="store_true", help="execute the named notebooks even if up to date"
    )
    run.set_defaults(command=run_command)
    listing = commands.add_parser(
        "list", help="show notebooks, their parameters, presets and what is up to date"
    )
    listing.add_argument("--preset", default="tiny", help="whose values and state to show")
    listing.set_defaults(command=list_command)
    simulate_cli.add_parser(commands)
    profiles_cli.add_parser(commands)
    return parser


def make_request(args: argparse.Namespace, notebooks: dict[str, Notebook]) -> Request:
    """Check what was typed, as far as it goes without the presets."""
    names: list[str] = []
    for given in args.notebooks:
        if given != "all":
            names.append(find_notebook(given, notebooks))
    if "all" in args.notebooks:
        names = []
    passed = {}
    for text in args.passed:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UspError(f"-p {text} is not name=value; write for example -p seed=1")
        where, dot, own = name.strip().rpartition(".")
        passed[f"{find_notebook(where, notebooks)}.{own}" if dot else own] = value
    if args.name is not None and not re.fullmatch(NAME, args.name):
        raise UspError(
            f"--name {args.name!r} cannot be a folder's name; use letters, digits, dots, - and _"
        )
    data = args.data
    if data is not None and data != POPULATION and not data.startswith(HUB):
        data = str(Path(data).expanduser().absolute())
    return Request(
        tuple(dict.fromkeys(names)), args.preset, data, args.name, args.on_bad, passed, args.force
    )


def cores_of(args: argparse.Namespace) -> int:
    """Return how many notebooks run at a time."""
    cpus = cpu_count()
    if args.cores is None:
        return min(2, cpus) if args.preset == "smoke" else 1
    if not 1 <= args.cores <= cpus:
        raise UspError(
            f"--cores {args.cores} must be between 1 and {cpus}, the CPUs of this machine"
        )
    return args.cores


def find_notebook(given: str, notebooks: dict[str, Notebook]) -> str:
    """Return the full name of a notebook given as 03, 03_conditional_sft, or a path to it."""
    if given in notebooks:
        return given
    path = Path(given)
    if path.suffix == ".ipynb":
        if path.stem in notebooks and path.resolve() == notebooks[path.stem].path.resolve():
            return path.stem
        raise UspError(
            f"{given} is not a notebook of this checkout, notebooks/NN_name.ipynb; move it there"
        )
    begun = [name for name in notebooks if name.split("_")[0] == given]
    if len(begun) != 1:
        raise UspError(unknown("notebook", given, notebooks))
    return begun[0]


def run_command(args: argparse.Namespace) -> int:
    """`usp-lab run`."""
    root = find_root()
    request, cores = make_request(args, read_notebooks(root)), cores_of(args)
    return run_plan(make_plan(request, root=root), cores)


def list_command(args: argparse.Namespace) -> int:
    """`usp-lab list`."""
    root = find_root()
    notebooks = read_notebooks(root)
    plan = make_plan(Request(preset=args.preset), root=root)
    stale = plan.stale()
    for name, nb in notebooks.items():
        state = "to do" if name in stale else "up to date"
        print(f"{name}  {nb.title}  [{state}]")
        for line in filter(None, (nb.question, nb.line("Cost"))):
            print(f"    {line}")
        for parameter, default in nb.defaults.items():
            value = plan.entries[name].parameters[parameter]
            changed = f" (tiny: {default!r})" if value != default else ""
            comment = f"  # {nb.help[parameter]}" if nb.help[parameter] else ""
            print(f"    {parameter} = {value!r}{changed}{comment}")
    presets = ", ".join(read_presets(root, notebooks))
    print(f"presets: {presets}; shown: {args.preset}, {plan.folder.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
