"""Which extractor and polisher a name stands for: what the command line and `02_profiles` share."""

from usp_lab.errors import UspError
from usp_lab.extract_rules import RuleExtractor
from usp_lab.polish import TemplatePolisher

EXTRACTORS = ("rules", "llm", "distilled")
POLISHERS = ("template", "llm")


def make_extractor(
    name: str, endpoint=None, generator: str = "", truncate: bool = False, context: int = 0
):
    """Return an extractor by name.

    Args:
        name: "rules", "llm" (needs ``endpoint``) or "distilled" (needs ``generator``).
        endpoint: an `endpoints.Endpoint`.
        generator: folder or hub id of a `ProfileGenerator`.
        truncate: cut dialogues that do not fit, and record it.
        context: tokens that the endpoint's model takes; 0: unknown.

    Raises:
        UspError: an unknown name, or one without what it needs.
    """
    if name == "rules":
        return RuleExtractor()
    if name == "llm":
        if endpoint is None:
            raise UspError("extractor 'llm' asks a model at an endpoint; name its URL and model")
        from usp_lab.extract_llm import LlmExtractor

        return LlmExtractor(endpoint, truncate=truncate, context=context)
    if name == "distilled":
        if not generator:
            raise UspError("extractor 'distilled' needs a checkpoint; name its folder or hub id")
        from usp_lab.profile_generator import ProfileGenerator

        return ProfileGenerator.from_pretrained(generator, truncate=truncate)
    raise UspError(f"no extractor {name!r}; choose one of {', '.join(EXTRACTORS)}")


def make_polisher(name: str, endpoint=None):
    """Return a polisher by name: "template", or "llm" (needs ``endpoint``).

    Raises:
        UspError: an unknown name, or no endpoint.
    """
    if name == "template":
        return TemplatePolisher()
    if name != "llm":
        raise UspError(f"no polisher {name!r}; choose one of {', '.join(POLISHERS)}")
    if endpoint is None:
        raise UspError("polisher 'llm' asks a model at an endpoint; name its URL and model")
    from usp_lab.polish_llm import LlmPolisher

    return LlmPolisher(endpoint)
