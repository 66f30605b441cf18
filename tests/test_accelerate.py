"""docs/accelerate: configurations that accelerate's own loader and launcher accept, each for what it says."""

from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "accelerate"
FILES = {path.stem: path for path in FOLDER.glob("*.yaml")}


def launched(path: Path):
    """What `accelerate launch` makes of a file: its arguments, checked."""
    args = launch_command_parser().parse_args(["--config_file", str(path), "-m", "usp_lab.sft"])
    args, _, mixed_precision_from_config = _validate_launch_command(args)
    assert mixed_precision_from_config
    return args


def test_there_is_one_for_each_way_to_train():
    assert FILES.keys() == {"one_gpu", "fsdp", "zero3"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_loads_and_holds_no_key_that_is_not_known(name):
    config = load_config_from_file(str(FILES[name]))  # raises for unknown keys
    assert config.mixed_precision == "bf16" and not config.use_cpu
    args = launched(FILES[name])
    for part in (config.fsdp_config, config.deepspeed_config):
        unknown = [k for k in part if k not in vars(args)]
        assert not unknown, f"accelerate launch has no {unknown}"
        assert all(getattr(args, k) == v for k, v in part.items())
    command = FILES[name].read_text().split("accelerate launch ")[1].splitlines()[0]
    assert f"--config_file docs/accelerate/{name}.yaml -m usp_lab.sft" in command


def test_one_gpu_is_one_process():
    args = launched(FILES["one_gpu"])
    assert args.num_processes == 1 and not args.use_fsdp and not args.use_deepspeed
    assert prepare_simple_launcher_cmd_env(args)[1]["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_fsdp_shards_and_saves_whole_weights(monkeypatch):
    args = launched(FILES["fsdp"])
    assert args.use_fsdp and args.num_processes > 1
    env = prepare_multi_gpu_env(args)
    for key, value in env.items():
        if key.startswith(("FSDP", "ACCELERATE")):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading


def test_zero3_gathers_whole_weights_to_save():
    args = launched(FILES["zero3"])
    assert args.use_deepspeed and args.num_processes > 1
    given = yaml.safe_load(FILES["zero3"].read_text())["deepspeed_config"]
    assert given["zero_stage"] == 3 and given["zero3_save_16bit_model"] is True


def test_a_misspelt_key_is_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(FILES["fsdp"].read_text().replace("num_processes", "processes"))
    with pytest.raises(ValueError, match="processes"):
        load_config_from_file(str(path))
