"""A document to publish about a private run, and its verification.

A :class:`Certificate`, or a :class:`TuningCertificate` of a choice among runs, holds public numbers only, enough of them to compute its own
epsilon again. :func:`verify` does that from the JSON alone, line by line.
"""

from dp._reports import Finding
from dp.certificate._document import Certificate, compose
from dp.certificate._run import CertifiedRun
from dp.certificate._scores import Scores
from dp.certificate._tuning import TuningCertificate
from dp.certificate._verification import Verification, verify


__all__ = (
    "Certificate",
    "CertifiedRun",
    "Finding",
    "Scores",
    "TuningCertificate",
    "Verification",
    "compose",
    "verify",
)
