"""Requests made up from the server's own OpenAPI: whatever is sent, no answer is a 500, and each has its form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from alidade.server.app import create_app
from alidade.server.config import ServerConfig
from server_app import listening, make_archive

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# what the server offers is known without an archive, so that each operation becomes a test of its own
schema = schemathesis.openapi.from_dict(create_app(ServerConfig(archive=Path("none"))).openapi())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(make_archive(tmp_path_factory.mktemp("made"))) as running:
        yield running


@schema.parametrize()
@hypothesis.settings(max_examples=6, suppress_health_check=list(hypothesis.HealthCheck))
def test_made_up_requests_get_an_answer_of_the_promised_form(case: schemathesis.Case, address: str) -> None:
    case.call_and_validate(base_url=address, checks=CHECKS)
