"""An adapter around ``requests.Response``: one answer differs, the rest is forwarded."""

from requests import Response

from forwarding import Forwarded, Wrapper


class Lenient(Wrapper[Response], forward=Response):
    """A response that counts "304 Not Modified" as an error, for a cache that has none."""

    __enter__ = Forwarded(returns="wrapper")

    @property
    def ok(self) -> bool:
        """Whether there is a body to read."""
        return self.__wrapped__.ok and self.__wrapped__.status_code != 304  # noqa: PLR2004
