"""What a certificate says of the losses, and whether that can be true."""

from collections.abc import Iterator
from datetime import date

from dp._reports import Finding
from dp.certificate._run import CertifiedRun
from dp.evidence import num_due
from dp.evidence._schedule import EVERY, FIRST


__all__ = ("evidence_finding", "evidence_lines", "evidence_sentences")


def evidence_lines(run: CertifiedRun) -> list[str]:
    """Return what was seen of the losses of a run, as lines of a certificate."""
    first, *others = evidence_sentences(run)
    return [f"    losses                {first}"] + [
        f"                          {sentence}" for sentence in others
    ]


def evidence_sentences(run: CertifiedRun) -> list[str]:
    """Return what was seen of the losses of a run, for people to read."""
    seen = run.evidence.values()
    evaluated, looks = (sum(e.evaluated for e in seen), sum(e.looks for e in seen))
    finished = run.steps - evaluated
    days = {e.checked for e in seen if e.evaluated < e.steps}
    sentences = []
    if evaluated:
        sentences.append(
            f"at {evaluated} steps by a function, which was evaluated again at {looks} of"
            f" them with other examples in the batch: at the first {FIRST} of each"
            f" process, and at one in {EVERY} that its id picks"
        )
        if any(e.other_sizes for e in seen):
            sentences.append(
                "at one step that of an example was also computed alone, and among fewer others"
            )
    if any(e.inconclusive for e in seen):
        sentences.append("a look could not tell whether examples were mixed")
    if finished:
        sentences.append(
            f"at {finished} steps as finished numbers, which the library did not evaluate"
        )
    if finished and None not in days:
        sentences.append(
            f"dp.check found nothing in this model on {min(map(str, days))}"
        )
    return sentences or ["at no step"]


def evidence_finding(claim: str, run: CertifiedRun) -> Finding:
    """Return whether there is evidence for every process, and none contradicts itself."""
    steps = run.steps_of_segments
    wrong = (
        list(_contradictions(run))
        if run.evidence.keys() == steps.keys()
        else ["does not state what was seen of the losses of each process that charged"]
    )
    looks = sum(e.looks for e in run.evidence.values())
    return Finding(
        claim=claim,
        holds=not wrong,
        detail="; ".join(wrong)
        or f"states {looks} looks at losses, at the steps that the ids select",
    )


def _contradictions(run: CertifiedRun) -> Iterator[str]:
    for key, number in run.steps_of_segments.items():
        seen = run.evidence[key]
        if seen.steps != number:
            yield f"states losses of {seen.steps} steps, and {number} were charged"
            continue
        due = num_due(key, number)
        # Which steps had finished losses is not stated, so only a bound is known then.
        least = (
            due if seen.evaluated == number else max(0, due - number + seen.evaluated)
        )
        if not least <= seen.looks <= min(due, seen.evaluated):
            yield f"states {seen.looks} looks, and its id picks {due} steps of {number}"
        if seen.other_sizes and not seen.looks:
            yield "states a comparison of sizes, and no look"
        if seen.checked is not None and not _is_day(seen.checked):
            yield f"states a check on {seen.checked!r}, which is no day"


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
