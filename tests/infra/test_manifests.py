"""The deployment files are valid against their schemas, and their commands name verbs and files that exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.submit import VERBS

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
SCHEMAS = Path(__file__).parent / "schemas"
CHECKSUMS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / name).read_text())


def mistakes(tree: dict[str, Any], schema: str) -> list[str]:
    # the compose schema names a later draft than the KubeRay schemas
    rules = json.loads((SCHEMAS / schema).read_text())
    validator = jsonschema.validators.validator_for(rules, jsonschema.Draft7Validator)(rules)
    return [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(tree)]


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("kuberay/raycluster.yaml", "raycluster-ray-v1.json"),
        ("kuberay/rayjob.yaml", "rayjob-ray-v1.json"),
        ("compose.yaml", "compose-spec.json"),
        ("compose.postgres.yaml", "compose-spec.json"),
    ],
)
def test_valid_against_its_schema(name: str, schema: str) -> None:
    assert mistakes(document(name), schema) == []


def test_the_schema_catches_a_misspelt_field() -> None:
    tree = document("kuberay/raycluster.yaml")
    tree["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagge"] = "x"
    assert len(mistakes(tree, "raycluster-ray-v1.json")) == 1


def test_ray_up_accepts_the_cluster_file() -> None:
    tree = document("cluster.yaml")
    tree["file_mounts"] = {}  # the token's file exists only on the machine that calls `ray up`
    validate_config(prepare_config(tree))


def test_the_job_runs_the_cluster_of_the_cluster_file() -> None:
    assert document("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"] == document("kuberay/raycluster.yaml")["spec"]


def test_every_command_names_a_verb_and_a_configuration_that_exist() -> None:
    words = shlex.split(document("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    assert words[:2] == ["python", "-m"]
    assert words[2].removeprefix("jobs.") in VERBS
    assert (REPOSITORY / words[3]).is_file()
    named = [word for name in ("README.md", "cluster.yaml") for word in re.findall(r"jobs\.(\w+)", (INFRA / name).read_text())]
    assert set(named) - {"submit"} <= set(VERBS)


def test_every_node_has_shared_memory_and_checksums_that_keep_uploads_whole() -> None:
    spec = document("kuberay/raycluster.yaml")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert {"medium": "Memory"}.items() <= pod["volumes"][0]["emptyDir"].items()
        variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
        assert CHECKSUMS.items() <= variables.items()
    for name in ("head", "worker"):
        service = document("compose.yaml")["services"][name]
        assert service["shm_size"]
        assert CHECKSUMS.items() <= service["environment"].items()


def test_no_secret_is_written_down() -> None:
    for path in [*INFRA.rglob("*.yaml"), INFRA / "Dockerfile"]:
        for line in path.read_text().splitlines():
            if match := re.search(r"(?:SECRET_ACCESS_KEY|PASSWORD|RAY_AUTH_TOKEN)\s*[:=]\s*(\S+)", line.partition("#")[0]):
                assert match[1].startswith("${"), f"{path.name}: {line}"


def test_the_image_copies_what_exists_and_pins_what_it_installs() -> None:
    text = (INFRA / "Dockerfile").read_text()
    for line in re.findall(r"^COPY --chown=ray (.+) \S+$", text, re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in line.split() if name != "README.md")
    assert "-c constraints.txt" in text
