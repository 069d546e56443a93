"""The server against its own OpenAPI document: whatever schemathesis thinks of, it answers as it says it does."""

import os  # noqa: I001
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.served import Served

from ganomaly_jax.deploy import http_app

pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")
pytest.importorskip("schemathesis", reason="fuzzing needs the extra `fuzz`")

LIMITS = http_app.Limits(body=20_000, pixels=10_000, batch=8, queue=6, body_s=2)
# No schema can say which bytes are an image, so that valid ones by the schema may be refused.
LEFT_OUT = "positive_data_acceptance"


def test_answers_as_documented(trained, tmp_path):
    running = Served(http_app.application(trained[1], LIMITS), LIMITS)
    try:
        running.until_ready()
        call = [sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"]
        call += ["run", f"http://127.0.0.1:{running.port}/openapi.json", "--seed", "1", "--max-examples", "150"]
        call += ["--checks", "all", "--exclude-checks", LEFT_OUT, "--continue-on-failure", "--no-color"]
        ways = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        ran = subprocess.run(
            call, cwd=tmp_path, env=os.environ | ways, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert int(re.search(r"(\d+) generated", ran.stdout)[1]) > 300, ran.stdout
        text = running.ask("GET", "/metrics")[2].decode()
    finally:
        running.close()
    for path in ("/score", "/explain"):  # real images were among it, and bytes that are none
        given = dict(re.findall(rf'requests_total\{{path="{path}",status="(\d+)"\}} (\S+)', text))
        assert {"200", "400", "422"} <= set(given) <= {"200", "400", "408", "413", "415", "422", "429"}, given
