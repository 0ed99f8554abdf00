"""The routes that this vLLM has are those that the tests of the gateway know of."""

from tests.conftest import VLLM_IMAGE
from tests.support.compose import docker
from tests.support.processes import REPOSITORY

READ_ROUTES = """
import ast, importlib.util, pathlib
VERBS = {"get", "post", "put", "patch", "delete", "head", "route", "api_route", "websocket", "add_api_route"}
package = pathlib.Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
for path in sorted((package / "entrypoints").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in VERBS:
            continue
        if node.args and isinstance(node.args[0], ast.Constant) and str(node.args[0].value).startswith("/"):
            print(node.args[0].value)
"""
"""Read from its source: those of its development mode, and those it keeps out of its own document, are there too."""


def test_every_route_in_the_source_of_this_vllm_is_known() -> None:
    known = {
        line.split()[1]
        for line in (REPOSITORY / "tests/data/vllm_routes.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    found = docker("run", "--rm", "--network", "none", "--entrypoint", "python3", VLLM_IMAGE, "-c", READ_ROUTES)
    assert "/v1/chat/completions" in found.split()
    assert set(found.split()) - known == set()
