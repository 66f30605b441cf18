# The order of the notebooks: one rule each, whose only output is the manifest and whose inputs are
# the manifests of the notebooks it needs. `usp-lab run` calls this file with a plan; without one,
# `snakemake --cores 2 --config preset=smoke` makes its own.
import os
import shlex
import sys

from usp_lab.plan import PLAN, load_plan
from usp_lab.processes import end_with_parents

end_with_parents(own_parent=True)
plan = load_plan(os.environ.get(PLAN), config)


def manifest(notebook):
    return str((plan.entries[notebook].folder / "manifest.json").relative_to(plan.root))


def depth(notebook):
    """Return the length of the longest chain of notebooks that wait for this one: the longest first."""
    below = [n for n, e in plan.entries.items() if notebook in e.upstream]
    return 1 + max(map(depth, below), default=0)


def add_rule(entry):
    saved = str((plan.folder / ".plan.json").relative_to(plan.root))
    words = [sys.executable, "-m", "usp_lab.run", saved, entry.notebook]

    rule:
        name: f"notebook_{entry.notebook}"
        input: [manifest(name) for name in entry.upstream]
        output: manifest(entry.notebook)
        priority: depth(entry.notebook)
        params:
            key=entry.key,
            # a function, since braces in a path are no wildcards
            command=lambda wildcards: shlex.join(words),
        shell: "{params.command}"


rule all:
    input: [manifest(name) for name in plan.targets]


for entry in plan.entries.values():
    add_rule(entry)
