"""What `11_consistency` measures with, chosen by its parameters: who reads facts, who judges entailment, who manner."""

from collections.abc import Sequence
from pathlib import Path

from usp_lab.data import Corpus, Dialogue
from usp_lab.entailment import Entailment
from usp_lab.errors import UspError
from usp_lab.evidence import calibration
from usp_lab.facts import RuleFacts
from usp_lab.facts_llm import LLMFacts
from usp_lab.judges import Judge
from usp_lab.manner import MannerReader

OFFLINE = "offline"


def left_out(corpus: Corpus, judged: bool = False) -> str:
    """Say which parts `11_consistency` computes of a corpus, and which it leaves out.

    Args:
        corpus: of the run.
        judged: whether a language model judges the subjective half.
    """
    if corpus.is_population:
        return "The population: everything is computed, and checked against its truth."
    manner = (
        "" if judged else " Without truth and without a judge, Val.Score and SC.Score are left out."
    )
    return (
        f"{corpus.name} has profiles but no truth: `twin` is left out, and the entailment scorer is calibrated "
        f"and checked on the population's users, not on these.{manner}"
    )


def make_readers(
    endpoint: str = "", model: str = "", key_variable: str = "OPENAI_API_KEY"
) -> tuple[RuleFacts | LLMFacts, Judge | None]:
    """Return who splits texts into facts, and who judges the subjective half: (rules, nobody) without an endpoint.

    Args:
        endpoint: URL of an OpenAI-compatible server, or "".
        model: its name there.
        key_variable: the environment variable with the key.

    Raises:
        UspError: no model named, or the server is down, refuses the key or serves another model.
    """
    if not endpoint:
        return RuleFacts(), None
    if not model:
        raise UspError(f"endpoint={endpoint} but no model is named; give the one it serves")
    from usp_lab.endpoints import Client, Endpoint

    client = Client(Endpoint(endpoint, model, key_variable=key_variable))
    client.check()
    return LLMFacts(client), Judge(client)


def make_entailment(
    name: str,
    encoder: str,
    learned: Sequence[Dialogue],
    seed: int = 0,
    file: Path | None = None,
) -> Entailment:
    """Return who judges entailment.

    Args:
        name: "offline", or an NLI cross-encoder: a folder or hub id.
        encoder: of the offline scorer.
        learned: the population's validation dialogues, which the offline scorer is calibrated on.
        seed: of the calibration's pairs.
        file: where an NLI model's answers outlive an interruption; the offline scorer's cost nothing.
    """
    if name != OFFLINE:
        from usp_lab.nli import NLI

        return Entailment(NLI(name), file)
    from usp_lab.likeness import OfflineScorer
    from usp_lab.models import sentence_encoder

    scorer = OfflineScorer(sentence_encoder(encoder), encoder)
    return Entailment(scorer.fit(calibration(learned, seed)))


def make_manner(train: Sequence[Dialogue]) -> MannerReader:
    """Return who names manner offline, learned on the population's training users."""
    return MannerReader().fit(train)
