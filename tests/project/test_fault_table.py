"""The fault table in docs against the sentences that the doctor says, and each sentence against its form."""

import ast
from pathlib import Path

import pytest

from inference.doctor.faults import FAULTS, to_table
from inference.doctor.findings import Severity

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_table_is_the_one_of_the_program() -> None:
    text = (ROOT / "docs/doctor.md").read_text()
    assert text.partition("<!-- faults -->\n")[2].partition("\n<!-- /faults -->")[0] == to_table()


def test_every_row_is_found_by_some_check_and_every_check_finds_a_row() -> None:
    said = set()
    for path in (ROOT / "inference/doctor").glob("*.py"):
        if path.name != "faults.py":
            constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
            said |= {node.value for node in constants if isinstance(node.value, str) and node.value in FAULTS}
    by_name = {f"{check}.broken" for check in ("flash-attn", "apex", "kernels")}  # put together in examine.py
    assert set(FAULTS) - said - by_name == set()


@pytest.mark.parametrize("key", FAULTS)
def test_a_row_is_one_sentence_and_names_one_action_if_there_is_something_to_do(key: str) -> None:
    fault = FAULTS[key]
    assert fault.sentence.endswith(".")
    assert ". " not in fault.sentence
    assert "|" not in fault.sentence + fault.action
    assert bool(fault.action) == (fault.severity is not Severity.OK)
    assert not fault.action or fault.action.endswith((".", ")."))
