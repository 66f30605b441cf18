"""The canonical figures: drawn again from saved tables, by as many processes as pay; what is missing is named."""

import json
from pathlib import Path

import pandas as pd
import pytest

from usp_lab.errors import UspError
from usp_lab.gallery import rebuild, write_index

PLOT = "usp_lab.plots.metric_intervals"


def finished(folder: Path, names: list[str], function: str = PLOT, **notes: str) -> Path:
    folder.mkdir()
    figures = []
    for i, name in enumerate(names):
        row = {"metric": "m", "arm": "usp", "value": i / 9, "low": 0.0, "high": 1.0, "n": 4, "unit": "user", "better": "higher"}  # fmt: skip
        pd.DataFrame([row]).to_parquet(folder / f"{name}.parquet")
        figures.append({"name": name, "function": function, "table": f"{name}.parquet", "caption": "Look."})  # fmt: skip
    manifest = {"notebook": folder.name, "figures": figures, **notes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_figures_are_the_same_in_one_process_and_in_several(tmp_path):
    many = finished(tmp_path / "01_data", [f"f{i}" for i in range(17)], data_fingerprint="abc")
    few = finished(tmp_path / "10_more", ["f0"])
    drawn = rebuild([many, few], tmp_path / "all")  # 18: in two processes where there are two cores
    assert len(drawn) == 18 and len(list((tmp_path / "all").iterdir())) == 36
    rebuild([few], tmp_path / "one")
    for kind in ("png", "svg"):
        name = f"10_more-f0.{kind}"
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    index = write_index(drawn, tmp_path / "all").read_text()
    assert index.count("**f0.** Look.") == 2 and "data fingerprint `abc`" in index
    assert "nan" not in index  # the other notebook noted no fingerprint


@pytest.mark.parametrize("function", ["usp_lab.plots.gone", "usp_lab.gone.metric_intervals"])
def test_what_can_no_longer_be_drawn_is_named(tmp_path, function):
    source = finished(tmp_path / "01_data", ["f"], function)
    with pytest.raises(UspError, match="no longer exists; execute 01_data again"):
        rebuild([source], tmp_path / "out")
    source = finished(tmp_path / "02_more", ["f"])
    (source / "f.parquet").unlink()
    with pytest.raises(UspError, match="f.parquet, which is missing; execute 02_more again"):
        rebuild([source], tmp_path / "out")
