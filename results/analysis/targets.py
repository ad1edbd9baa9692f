"""The targets that practitioners set for a deployed student: rules of thumb, and whether a run meets them."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.bench.record import Outcome

SCORE_SHARE, PARAMETER_SHARE, LATENCY_MS = 0.9, 0.1, 50.0
"""The least share of the teacher's score, the largest share of its parameters, and milliseconds for one sample."""


@dataclass(frozen=True)
class Target:
    """A rule of thumb, and whether a run meets it."""

    name: str
    rule: str
    value: float | None
    """None if it was not measured."""
    met: bool | None


def targets(outcome: Outcome) -> list[Target]:
    """Practitioners' targets for the last epoch on the last part scored; those of a teacher only if there is one."""
    cost, found = outcome.cost, []
    score = _score_target(outcome)
    if score:
        found.append(score)
    if "teacher_parameters" in cost:
        share = cost["parameters"] / cost["teacher_parameters"]
        found.append(Target("parameters", "at most 10 % of its parameters", share, share <= PARAMETER_SHARE))
    latency = cost.get("latency_ms")
    met = None if latency is None else latency < LATENCY_MS
    found.append(Target("latency", f"under {LATENCY_MS:.0f} ms a sample", latency, met))
    return found


def _score_target(outcome: Outcome) -> Target | None:
    """The student's score over the teacher's; where lower is better it may be larger by as much."""
    metric, part = outcome.metric, outcome.scores["last"].parts[-1]
    student, teacher = outcome.headline("last", part), outcome.teacher.get(part, {}).get(metric.name)
    if student is None or not teacher:
        return None
    share = student / teacher
    if metric.higher_is_better:
        rule, met = f"at least {100 * SCORE_SHARE:.0f} %", share >= SCORE_SHARE
    else:
        rule, met = f"at most {100 / SCORE_SHARE:.0f} %", share <= 1 / SCORE_SHARE
    return Target(metric.name, f"{rule} of the teacher's {metric.name}", share, met)
