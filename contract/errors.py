"""The one error tree. Every message says what, where, what it got, what is allowed, and what to do.

KirError
├── InputError            a flag, a file or an argument that a person can mend
│   ├── SpecError         a feature spec that does not hold together
│   ├── EventError        an event row or file outside the schema
│   ├── PageError         a page that can't be decoded or contradicts itself
│   ├── ManifestError     a published-model manifest or pointer that can't be trusted
│   ├── CheckpointError   a checkpoint directory that is incomplete or of another kind
│   └── MissingExtra      an optional part of the install is absent
├── VersionMismatch       two parts that do not belong together met
├── ModelStoreError       the model on the device
│   ├── DownloadError     the CDN did not deliver
│   ├── IntegrityError    a file is not the one that was published
│   │   └── TrustError    signed metadata are expired, older than those seen, or not signed by the right keys
│   └── NoModelError      there is no usable model (yet)
├── PoolExhausted         nothing is left to show until the next page arrives
├── ServerError           the page server refused or failed
│   └── ServerUnavailable no answer in time, or no connection
├── Interrupted           a person or the system asked a long job to stop, and its state was saved
└── ConversionError       the converter could not make an artifact
    └── VerificationFailed an artifact was made and is not good enough to publish
"""

from __future__ import annotations


class KirError(Exception):
    """Base of all errors raised on purpose. `str()` gives one line fit for a terminal."""

    def __init__(self, what: str, *, where: object = "", got: object = None, allowed: object = None, fix: str = ""):
        self.what = what
        self.where = str(where)
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        what = _short(self.what, 400)
        parts = [f"{_short(self.where, 400)}: {what}" if self.where else what]
        if self.got is not None:
            parts.append(f"got {_short(self.got)}")
        if self.allowed is not None:
            parts.append(f"allowed: {_short(self.allowed)}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(parts)


def _short(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class InputError(KirError):
    """A flag, a file or an argument that a person can mend."""


class SpecError(InputError):
    """A feature spec that does not hold together."""


class EventError(InputError):
    """An event row or file outside the schema."""


class PageError(InputError):
    """A page that can't be decoded or contradicts itself."""


class ManifestError(InputError):
    """A published-model manifest or pointer that can't be trusted."""


class CheckpointError(InputError):
    """A checkpoint directory that is incomplete or of another kind."""


class MissingExtra(InputError):
    """An optional part of the install is absent."""

    def __init__(self, module: str, extra: str):
        super().__init__(
            f"this command needs the package '{module}'",
            fix=f"install it with: pip install 'kir-edge[{extra}]'",
        )


class VersionMismatch(KirError):
    """Two parts that do not belong together met."""


class ModelStoreError(KirError):
    """The model on the device."""


class DownloadError(ModelStoreError):
    """The CDN did not deliver."""


class IntegrityError(ModelStoreError):
    """A file is not the one that was published."""


class TrustError(IntegrityError):
    """Signed metadata of a CDN that can't be trusted: expired, older than those seen before, or by another key."""


class NoModelError(ModelStoreError):
    """There is no usable model (yet)."""


class PoolExhausted(KirError):
    """Nothing is left to show until the next page arrives."""


class ServerError(KirError):
    """The page server refused or failed."""


class ServerUnavailable(ServerError):
    """No answer in time, or no connection."""


class Interrupted(KirError):
    """A person or the system asked a long job to stop, and its state was saved."""


class ConversionError(KirError):
    """The converter could not make an artifact."""


class VerificationFailed(ConversionError):
    """An artifact was made and is not good enough to publish."""
