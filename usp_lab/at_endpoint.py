"""What everything that speaks through an endpoint shares, be it a user, an assistant or an extractor."""

from usp_lab.decoding import Sampling
from usp_lab.endpoint_client import Client
from usp_lab.endpoint_requests import Endpoint, Usage


class AtEndpoint:
    """Asked from threads, one dialogue at a time.

    Args:
        client: who asks.
        sampling: of each text.
    """

    remote = True
    completions = False  # it asks ``/v1/completions``, not ``/v1/chat/completions``

    def __init__(self, client: Client, sampling: Sampling) -> None:
        self.client, self.sampling = client, sampling

    @property
    def endpoint(self) -> Endpoint:
        """Where, and which model."""
        return self.client.endpoint

    @property
    def concurrency(self) -> int:
        """Dialogues that may wait at once."""
        return self.endpoint.concurrency

    @property
    def usage(self) -> Usage:
        """What has been asked."""
        return self.client.usage

    def check(self) -> None:
        """Find out whether the endpoint is there, takes the key and serves the model.

        Raises:
            UspError: which of these it is not.
        """
        self.client.check(sampling=self.sampling, completions=self.completions)
