"""A number against its limits: a gate with its verdict, and the reason where it failed."""

from collections.abc import Iterable

from analysis.refusals import reason
from analysis.results import Gate, Reason

# A gate with the reason code of its failure
JudgedGate = tuple[str, Gate]


def gate_of(code: str, name: str, value: float, bounds: tuple[float | None, float | None]) -> JudgedGate:
    """A gate that passes within `bounds` (None: no limit on that side), with the code of its failure."""
    low, high = bounds
    passed = (low is None or value >= low) and (high is None or value <= high)
    return code, Gate(name, float(value), low, high, bool(passed))


def reasons_of(judged: Iterable[JudgedGate]) -> tuple[Reason, ...]:
    """Why the failed gates failed."""
    return tuple(reason(code, describe_gate(gate)) for code, gate in judged if not gate.passed)


def describe_gate(gate: Gate) -> str:
    """One sentence: what was found and what was expected."""
    bounds = [
        f">= {gate.low:.4g}" if gate.low is not None else "",
        f"<= {gate.high:.4g}" if gate.high is not None else "",
    ]
    return f"{gate.name} is {gate.value:.5g}, expected {' and '.join(b for b in bounds if b)}"
