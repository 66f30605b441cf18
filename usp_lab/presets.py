"""Parameters of notebooks: what presets.yml and -p say, checked against each notebook's own defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from usp_lab.errors import UspError
from usp_lab.notebooks import SET_BY_RUNNER, Notebook, check_value, parse_value, unknown

if TYPE_CHECKING:
    from usp_lab.plan import Request


def read_presets(root: Path, notebooks: Mapping[str, Notebook]) -> dict[str, dict[str, dict]]:
    """Read notebooks/presets.yml: preset -> "all" or a notebook -> parameter -> value.

    Raises:
        UspError: unknown notebook or parameter, or a wrong type.
    """
    path = root / "notebooks" / "presets.yml"
    try:
        presets = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UspError(
            f"notebooks/presets.yml cannot be read ({' '.join(str(error).split())}); correct it"
        ) from None
    tables = [presets, *presets.values()] if isinstance(presets, dict) else [presets]
    tables += [v for table in tables[1:] if isinstance(table, dict) for v in table.values()]
    if not all(isinstance(table, dict | None) for table in tables):
        raise UspError(
            "notebooks/presets.yml is not preset: {notebook: {parameter: value}}; correct it"
        )
    presets = {"tiny": {}, **presets}
    for preset, sections in presets.items():
        presets[preset] = sections = {k: v or {} for k, v in (sections or {}).items()}
        for section, values in sections.items():
            where = f"notebooks/presets.yml, {preset}, {section}"
            if section != "all" and section not in notebooks:
                raise UspError(
                    f"notebooks/presets.yml, {preset}: {unknown('notebook', section, notebooks)}"
                )
            readers = notebooks.values() if section == "all" else [notebooks[section]]
            for name, value in values.items():
                if name == "preset" or (name == "data" and section != "all"):
                    raise UspError(f"{where}: {name} is set by the runner; remove it")
                known = {p: nb.defaults[p] for nb in readers for p in nb.defaults}
                if name not in known:
                    raise UspError(f"{where}: {unknown('parameter', name, known)}")
                for nb in readers:
                    if name in nb.defaults:
                        try:
                            check_value(name, value, nb.defaults[name])
                        except UspError as error:
                            raise UspError(f"{where}: {error}") from None
    return presets


def check_passed(texts: Mapping[str, str], targets: list[Notebook], planned: list[Notebook]) -> None:  # fmt: skip
    """Check the names given with -p: each must be a parameter of a notebook asked for, NOTEBOOK.name one of that notebook's.

    Raises:
        UspError: unknown, of a notebook that is not run, or set by an option of its own.
    """
    for given, text in texts.items():
        where, _, name = given.rpartition(".")
        if name in SET_BY_RUNNER:
            option = name.replace("_", "-")
            raise UspError(
                f"-p {given}={text} is set by an option of its own; use --{option} {text}"
            )
        among = [nb for nb in planned if nb.name == where] if where else targets
        if not among:
            raise UspError(f"-p {given}={text} is for {where}, which is not run; leave it out")
        if not any(name in nb.defaults for nb in among):
            known = {p for nb in among for p in nb.defaults} - set(SET_BY_RUNNER)
            raise UspError(unknown("parameter", name, known))


def passed_to(texts: Mapping[str, str], nb: Notebook) -> dict[str, object]:
    """Return the values given with -p that concern a notebook; NOTEBOOK.name comes before name."""
    own = {k.removeprefix(f"{nb.name}."): v for k, v in texts.items() if k.startswith(f"{nb.name}.")}  # fmt: skip
    return {k: parse_value(k, v, nb.defaults[k]) for k, v in (texts | own).items() if k in nb.defaults}  # fmt: skip


def resolve(
    nb: Notebook, request: "Request", preset: Mapping[str, dict], data: str
) -> dict[str, object]:
    """Return a notebook's parameters: its defaults, then the preset's, then the runner's."""
    common = {k: v for k, v in preset.get("all", {}).items() if k in nb.defaults}
    chosen = {**common, **preset.get(nb.name, {})}
    parameters = {
        **nb.defaults,
        **{k: check_value(k, v, nb.defaults[k]) for k, v in chosen.items()},
    }
    parameters |= {"preset": request.preset, "data": data}
    if request.on_bad:
        parameters["on_bad"] = request.on_bad
    return parameters
