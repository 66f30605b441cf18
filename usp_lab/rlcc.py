"""Reinforcement learning with cycle consistency (arXiv 2502.18968, section 4): USP's second training stage.

    python -m usp_lab.rlcc --out runs/usp_rlcc --steps 16
    torchrun --standalone --nproc_per_node 2 -m usp_lab.rlcc --out runs/usp_rlcc

A simulator talks about a target profile with an assistant; a profile generator reads a profile back from its turns
alone; how alike the two are, and how human a detector finds the turns, is the reward (`reward`). TRL optimises it:
group-relative advantages, PPO's clip, a KL term to the simulator it began with (`rlcc_trainer`). Validation users are
watched meanwhile, and what the reward may not cost ends the run (`guards`).
"""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from usp_lab.data import Dialogue, load_dialogues
from usp_lab.errors import UspError
from usp_lab.files import room_on_disk
from usp_lab.finished import FINAL, finish, finished
from usp_lab.options import add_fields, add_source, exit_on_error
from usp_lab.rlcc_settings import RlccResult, RlccSettings

if TYPE_CHECKING:
    from usp_lab.reward import CycleReward


def train_rlcc(
    targets: Sequence[Dialogue],
    validation: Sequence[Dialogue],
    assistant,
    reward: "CycleReward",
    out: str | Path,
    settings: RlccSettings | None = None,
    fingerprint: str = "",
) -> RlccResult:
    """Reinforce a simulator and save it; a run that was cut off goes on, a finished one is returned as it is.

    Args:
        targets: whose profiles are played: dialogues of training users, or `as_targets` of sampled profiles.
        validation: dialogues of other users, watched by `guards`.
        assistant: partner of the rollouts: anything with ``reply``.
        reward: generator, detector and encoder.
        out: folder of the model, of ``rollouts.jsonl`` and ``guards.jsonl``; checkpoints lie in
            ``out/checkpoints`` until the end.
        settings: see `RlccSettings`.
        fingerprint: of the data, for the model card.

    Raises:
        UspError: no target, a target without a profile or with one that leaves no room for a turn, a base that does
            not load, a batch that processes cannot share evenly, no dialogue of three steps that earned a reward,
            no disk space. Nothing in ``out`` is touched before the settings are known to fit.
    """
    s, out = settings or RlccSettings(), Path(out)
    for name, dialogues in (("target", targets), ("validation dialogue", validation)):
        if not dialogues:
            raise UspError(f"no {name}; give at least one")
        missing = next((d.id for d in dialogues if not d.profile), None)
        if missing is not None:
            raise UspError(f"{name} {missing} has no profile; build profiles first")
    if Path(s.base).resolve() == out.resolve():
        raise UspError(f"base and out are both {out}; name another folder for the trained model")
    key = _key(targets, validation, assistant, reward, s)
    if done := finished(out, key):
        return RlccResult(out, done["kept"], done["stopped"], done["counts"], done["resumed_from"])
    with room_on_disk(out):
        return _train(targets, validation, assistant, reward, out, s, key, fingerprint)


def _train(targets, validation, assistant, reward, out: Path, s: RlccSettings, key, fingerprint):
    import torch
    from datasets import Dataset

    from usp_lab.decoding import Sampling
    from usp_lab.finished import last_checkpoint, prepare_folder
    from usp_lab.guards import Guards
    from usp_lab.models import Device, load_causal_lm, load_tokenizer, quiet_bars
    from usp_lab.rlcc_looks import GUARDS, ROLLOUTS, Looks, counted, cut_lines, kept, stopped
    from usp_lab.rlcc_targets import dealt, order
    from usp_lab.rlcc_trainer import CycleTrainer
    from usp_lab.rollouts import Policy
    from usp_lab.simulate import check_room
    from usp_lab.trainer import Bar, quiet

    folder, every = out / "checkpoints", max(1, s.steps // s.evals)
    every = -(-every // s.iterations) * s.iterations  # never between steps on the same dialogues
    args = arguments(s, folder, every)
    tokenizer = load_tokenizer(s.base, "user")
    model = load_causal_lm(s.base, device=Device("cpu", torch.float32, "the trainer moves it"))
    if s.max_length > model.config.max_position_embeddings:
        context = model.config.max_position_embeddings
        raise UspError(
            f"max_length={s.max_length} but {s.base} has a context of {context}; lower it"
        )
    policy = Policy(model, tokenizer, Sampling(max_new_tokens=s.max_new_tokens), "policy")
    check_room(policy, [*targets, *validation])
    out.mkdir(parents=True, exist_ok=True)
    with args.main_process_first(local=False):
        if args.process_index == 0:
            prepare_folder(folder, key)
            if last_checkpoint(folder)[0] is None:  # what an earlier run left is of other settings
                for log in (ROLLOUTS, GUARDS):
                    (out / log).unlink(missing_ok=True)
            (out / FINAL).unlink(missing_ok=True)
    last, state = last_checkpoint(folder)
    rounds = -(-s.steps // s.iterations)
    played = order(len(targets), rounds * s.profiles, s.seed)
    steps = [played[i : i + s.profiles] for i in range(0, len(played), s.profiles)]
    prompts = [str(i) for step in steps for i in dealt(step, [len(t.profile) for t in targets])]
    looks = Looks(every, folder / "best")
    trainer = CycleTrainer(
        settings=s,
        targets=targets,
        assistant=assistant,
        reward=reward,
        guards=Guards(validation, assistant, reward, s.lam, s.max_turns, s.seed),
        out=out,
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    looks.trainer = trainer
    quiet(trainer, looks, Bar(out.name))
    with quiet_bars():
        looks.history = cut_lines(out / GUARDS, state.get("global_step", 0), writes=False)
        if not (s.stop_rule and stopped(looks.history)):  # else killed between that and its end
            trainer.train(resume_from_checkpoint=last and str(last))
        trainer.accelerator.wait_for_everyone()
        step = kept(looks.history) if s.stop_rule else looks.history[-1]["step"]
        why = stopped(looks.history) if s.stop_rule else ""
        counts = counted(out / ROLLOUTS)  # of all processes, and of what was done before a kill
        result = RlccResult(out, step, why, counts, state.get("global_step", 0))
        _save(
            trainer,
            tokenizer,
            folder / "best" if s.stop_rule else None,
            result,
            s,
            key,
            fingerprint,
        )
    trainer.accelerator.wait_for_everyone()
    return result


def arguments(s: RlccSettings, folder: Path, every: int):
    """Return TRL's configuration: one generation a step, shared evenly by the processes."""
    import torch
    from trl import GRPOConfig

    from usp_lab.models import computes_bf16
    from usp_lab.trainer import batch_share

    world, cuda = int(os.environ.get("WORLD_SIZE", 1)), torch.cuda.is_available()
    named = f"profiles x generations = {s.batch} dialogues"
    micro = batch_share(s.batch, s.micro_batch, named)
    parts = s.batch // (micro * world)
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=s.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=parts,
        steps_per_generation=parts,
        num_generations=s.generations,
        scale_rewards=s.scale_rewards,
        num_iterations=s.iterations,
        max_completion_length=s.max_length,
        temperature=s.temperature,
        beta=s.beta,
        epsilon=s.clip,
        learning_rate=s.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(0.1 * s.steps) if s.steps >= 20 else 0,
        weight_decay=0.0,
        adam_beta2=0.95,
        bf16=s.bf16 and computes_bf16(),
        activation_checkpointing=cuda,
        ddp_find_unused_parameters=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        shuffle_dataset=False,  # `order` has shuffled
        seed=s.seed,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
    )


def _key(targets, validation, assistant, reward: "CycleReward", s: RlccSettings) -> str:
    """Return 16 hex digits over everything that decides the weights."""
    from usp_lab.models import weights_digest
    from usp_lab.simulators import identity

    digest = hashlib.sha256(json.dumps([asdict(s), reward.identity, identity(assistant)]).encode())
    digest.update(weights_digest(s.base))
    for dialogues in (targets, validation):
        for d in dialogues:
            told = [d.id, d.profile] if dialogues is targets else [d.id, d.profile, d.messages]
            digest.update(json.dumps(told).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _save(trainer, tokenizer, best: Path | None, result: RlccResult, s: RlccSettings, key: str, fingerprint: str):  # fmt: skip
    """Save weights, template and model card; then mark the run finished."""
    from usp_lab.model_card import rlcc_card
    from usp_lab.models import load_causal_lm

    accelerator = trainer.accelerator
    weights = None if best else accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    if best:
        load_causal_lm(best).save_pretrained(result.path)
    else:
        accelerator.unwrap_model(trainer.model).save_pretrained(result.path, state_dict=weights)
    tokenizer.save_pretrained(result.path)
    card = rlcc_card(s, result, fingerprint)
    (result.path / "README.md").write_text(card, encoding="utf-8")
    record = {
        "key": key,
        "settings": asdict(s),
        "data": fingerprint,
        "counts": result.counts,
        "kept": result.kept,
        "stopped": result.stopped,
        "resumed_from": result.resumed_from,
    }
    finish(result.path, record)


def main() -> None:
    """Command line: every field of `RlccSettings` is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m usp_lab.rlcc",
        description="Reinforce a user simulator with cycle consistency.",
    )
    add_source(parser, "folder of the model")
    parser.add_argument("--n-validation", type=int, default=32, help="validation users watched")
    parser.add_argument(
        "--assistant", default="scripted:good", help="scripted:NAME, or a checkpoint that answers"
    )
    parser.add_argument(
        "--generator",
        default="generator-tiny",
        help="profile generator: folder, embedded name or hub id",
    )
    parser.add_argument("--detector", default="", help="AI detector, likewise; none: r = r_cc")
    parser.add_argument("--encoder", default="minilm", help="sentence encoder of the cosines")
    add_fields(parser, RlccSettings)
    args = vars(parser.parse_args())
    own = {k: args.pop(k) for k in ("data", "out", "n", "n_validation", "assistant", "generator", "detector", "encoder", "on_bad")}  # fmt: skip
    with exit_on_error():
        result = _from_command_line(own, RlccSettings(**args))
    if int(os.environ.get("RANK", 0)) == 0:
        counts = ", ".join(f"{k} {v:,}" for k, v in result.counts.items())
        print(f"saved {result.path}; weights of step {result.kept}; {counts}")
        if result.stopped:
            print(f"stopped early: {result.stopped}")


def _from_command_line(own: dict, s: RlccSettings) -> RlccResult:
    from usp_lab.assistants import scripted
    from usp_lab.reward import CycleReward
    from usp_lab.simulate import ModelAssistant
    from usp_lab.tidy import one_each

    kind, _, name = own["assistant"].partition(":")
    assistant = (
        scripted(name) if kind == "scripted" else ModelAssistant.from_pretrained(own["assistant"])
    )
    reward = CycleReward.from_pretrained(own["generator"], own["detector"], own["encoder"])
    corpus = load_dialogues(own["data"], n=own["n"], seed=s.seed, on_bad=own["on_bad"])
    watched = one_each(corpus.validation, own["n_validation"])
    return train_rlcc(corpus.train, watched, assistant, reward, own["out"], s, corpus.fingerprint)


if __name__ == "__main__":
    main()
