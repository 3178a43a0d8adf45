"""Limit the paths and URLs that a list or table may name, since other people may have written it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from mimruntime.addresses import is_public
from mimruntime.collection.urls import is_url
from mimruntime.errors import OptionError
from mimruntime.image_paths import as_text

MAX_OBJECT_MB = 64
_HTTP = frozenset({"http", "https"})


class RefusedError(OSError):
    """A path or URL that is not allowed; its text follows the name and says which option allows it."""


@dataclass(frozen=True, slots=True)
class Access:
    """The URLs that lists, Parquet cells and redirects may name, and the largest object.

    Attributes:
        allowed: prefixes of URLs: `s3://bucket/photos`, `https://host`, or `https://` for every public host.
        max_bytes: largest size of a fetched object or a Parquet cell.

    """

    allowed: tuple[str, ...] = ()
    max_bytes: int = MAX_OBJECT_MB * 1_000_000

    @classmethod
    def of(cls, inputs: Iterable[str], allow: Iterable[str] = (), max_object_mb: int = MAX_OBJECT_MB) -> Access:
        """Allow the URLs in `allow`, and the bucket or host of each URL that is an input.

        Raises:
            OptionError: an entry of `allow` is not a URL.

        """
        given = tuple(allow)
        for name in given:
            if not is_url(name):
                raise OptionError(f"--allow-remote {name} is no URL; expected s3://BUCKET, https://HOST/FOLDER …")
        named = [name.removeprefix("@") for name in inputs]
        origins = (_origin(name) for name in named if is_url(name) and not name.startswith("file:"))
        return cls((*given, *dict.fromkeys(origins)), max_object_mb * 1_000_000)

    def check(self, name: str, within: str) -> None:
        """Refuse a path or URL that was found in `within`, the path or URL of a list or table.

        Raises:
            RefusedError: the path or URL is not allowed.

        """
        if is_url(name):
            self.check_url(name)
        elif is_url(within) and not within.startswith("file:"):
            path = posixpath.abspath(name)
            if not self._covers(f"file://{path}"):
                raise RefusedError(
                    f"is a path of this machine in a list or table from elsewhere; {_allow(f'file://{path}')}"
                )

    def check_url(self, url: str) -> None:
        """Refuse a URL that no allowed prefix covers; raises as `check` does."""
        if not self._covers(url):
            raise RefusedError(f"is not allowed where a list, table or redirect names it; {_allow(_origin(url))}")
        if _split(url)[0] in _HTTP and not self.names_host(url) and not _may_be_public(url):
            raise RefusedError(f"has an address that is not public; {_allow(_origin(url))}")

    def check_size(self, size: int) -> None:
        """Refuse an object of which `size` bytes were read, if that is too many; raises as `check` does."""
        if size > self.max_bytes:
            most = self.max_bytes // 1_000_000
            raise RefusedError(f"is larger than {most} MB; to read it: --max-object-mb {2 * most}")

    def names_host(self, url: str) -> bool:
        """Return whether the user named the host of an http URL; such a host may have a private address."""
        return any(_split(one)[:2] == _split(url)[:2] for one in self.allowed)

    def _covers(self, url: str) -> bool:
        return any(_begins(url, one) for one in self.allowed)


LOCAL_ONLY = Access()
"""Allow no URL from a list or table."""


def _begins(url: str, beginning: str) -> bool:
    """Return whether `url` is `beginning` or below it, by whole path parts; a URL with `..` never is."""
    scheme, authority, path = _split(url)
    wanted_scheme, wanted_authority, wanted_path = _split(beginning)
    if scheme != wanted_scheme or (wanted_authority and authority != wanted_authority):
        return False
    if not wanted_authority and not wanted_path:  # a scheme alone
        return True
    if authority != wanted_authority or ".." in unquote(path).split("/"):
        return False
    return not wanted_path or path == wanted_path or path.startswith(f"{wanted_path}/")


def _split(url: str) -> tuple[str, str, str]:
    """Return the scheme, authority and path; the path has no slash at its ends."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    return scheme.lower(), authority.lower(), path.strip("/")


def _origin(url: str) -> str:
    """Return the prefix that would allow `url` and its neighbours."""
    scheme, authority, path = _split(url)
    return f"{scheme}://{authority or '/' + posixpath.dirname(path)}"


def _allow(place: str) -> str:
    return f"to read it: --allow-remote {as_text(place)}"


def _may_be_public(url: str) -> bool:
    """Return whether the host of an http URL is a name or a public address."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return is_public(host)
    except ValueError:
        return bool(host)


def refusal(error: BaseException | None) -> RefusedError | None:
    """Return the RefusedError that caused a library's error, if there is one."""
    while error is not None and not isinstance(error, RefusedError):
        error = error.__cause__ or error.__context__
    return error
