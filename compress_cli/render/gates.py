"""The gates of a check as Markdown for a pull-request comment, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from compress_cli.render.words import expected, found, verdict

if TYPE_CHECKING:
    from compress_cli.checking import Checked
    from compress_cli.report import Gate


def markdown(checked: Checked) -> str:
    """A comment for a pull request: failing gates first."""
    head = "passed" if checked.ok else "FAILED"
    lines = [f"### compress check {head}: `{checked.target}`", ""]
    if checked.baseline:
        lines += [f"Baseline: `{checked.baseline}`", ""]
    lines += ["| gate | expected | found | result |", "| --- | ---: | ---: | --- |"]
    for gate in checked.gates:
        lines.append(f"| {gate.name} | {expected(gate)} | {found(gate)} | {_bold(gate)} |")
    lines += [f"\n> {gate.name}: {gate.message}" for gate in checked.gates if gate.message and gate.passed is not True]
    return "\n".join(lines) + "\n"


def _bold(gate: Gate) -> str:
    text = verdict(gate)
    return text if gate.passed is True else f"**{text}**"


def junit(checked: Checked) -> str:
    """One test case per gate, which CI services show beside the tests."""
    cases: Sequence[Gate] = checked.gates
    failures = sum(gate.level == "error" and gate.passed is not True for gate in cases)
    skipped = sum(gate.level == "off" for gate in cases)
    suite = ElementTree.Element(
        "testsuite", name="compress check", tests=str(len(cases)), failures=str(failures), skipped=str(skipped)
    )
    for gate in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=checked.target, name=gate.name)
        text = f"{found(gate)}, expected {expected(gate)}" + (f". {gate.message}" if gate.message else "")
        if gate.level == "off":
            ElementTree.SubElement(case, "skipped")
        elif gate.level == "error" and gate.passed is not True:
            ElementTree.SubElement(case, "failure", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = f"{verdict(gate)}: {text}"
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
