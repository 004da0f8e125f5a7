"""The files that start clusters: right by schema, asking for a token, open to nobody, without secrets."""

import copy
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config import load_config
from pipeline.run import main as run_command

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
RAY_UP = [CLUSTER / "aws.yaml", CLUSTER / "machines.yaml"]
SCHEMA = yaml.safe_load((ROOT / "tests/schemas/kuberay.yaml").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def cluster_spec(manifest: Any) -> Any:
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def pods(spec: Any) -> list[Any]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


CLUSTERS = ["kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_manifests_fit_the_schema(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


def test_the_schema_refuses_what_is_wrong() -> None:
    right = load("kubernetes/rayjob.yaml")
    changes = [
        lambda m: m.update(apiVersion="ray.io/v1alpha1"),
        lambda m: m["spec"].update(backOffLimit=3),
        lambda m: m["spec"].update(submissionMode="HttpMode"),
        lambda m: m["spec"]["rayClusterSpec"]["authOptions"].update(mode="Token"),
        lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda m: pods(cluster_spec(m))[1]["containers"][0]["resources"]["limits"].update(memory="32GB"),
        lambda m: pods(cluster_spec(m))[0]["volumes"][0].update(emptyDir={}),
    ]
    for change in changes:
        wrong = copy.deepcopy(right)
        change(wrong)
        assert not VALIDATOR.is_valid(wrong)


def unknown_fields(value: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Fields of a manifest that a Kubernetes schema does not name; Kubernetes would drop them."""
    if isinstance(value, dict) and "properties" in schema:
        for key, part in value.items():
            if key in schema["properties"]:
                yield from unknown_fields(part, schema["properties"][key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    if isinstance(value, list) and "items" in schema:
        for part in value:
            yield from unknown_fields(part, schema["items"], f"{path}[]")


@pytest.mark.parametrize("name", CLUSTERS)
def test_manifests_fit_the_operators_own_definitions(name: str) -> None:
    if "MTMSD_KUBERAY_CRDS" not in os.environ:
        pytest.skip("KubeRay's definitions are not here; set MTMSD_KUBERAY_CRDS to their folder")
    manifest = load(name)
    definition = Path(os.environ["MTMSD_KUBERAY_CRDS"]) / f"ray.io_{manifest['kind'].lower()}s.yaml"
    versions = yaml.safe_load(definition.read_text())["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    jsonschema.Draft202012Validator(schema).validate(manifest)
    assert not list(unknown_fields(manifest["spec"], schema["properties"]["spec"]))


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_on_kubernetes_ask_for_a_token_and_stay_inside(name: str) -> None:
    spec = cluster_spec(load(name))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == pinned("ray")
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not any("env" in container for container in pod["containers"])
        claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
        assert claims == {"mtmsd-data"}
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_come_and_go(name: str) -> None:
    spec = cluster_spec(load(name))
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} <= {"gpu", "cpu"}
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"]
        assert resources["limits"].get("nvidia.com/gpu", 0) == (group["groupName"] == "gpu")


def test_the_job_resumes_and_its_command_is_right() -> None:
    spec = load("kubernetes/rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    words = shlex.split(spec["entrypoint"])
    wait, run = words[: words.index("--")], words[words.index("--") + 1 :]
    gpus = int(wait[wait.index("--gpus") + 1])
    assert gpus <= spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    for script in (wait[1], run[1]):
        assert (ROOT / Path(script).relative_to("/opt/mtmsd")).is_file()
    context = run_command.make_context("run", run[2:])
    # The run folder outlives the cluster: it lies on the volume.
    assert all(context.params[name].startswith("/data/") for name in ("scene", "out"))
    assert load_config(None, context.params["overrides"]).cluster.train_workers == gpus


def test_the_network_policy_lets_nobody_in_from_outside() -> None:
    policy = load("kubernetes/networkpolicy.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    for rule in policy["ingress"]:
        assert rule["from"]
        assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_files_pass_rays_own_check(path: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


def test_rays_own_check_refuses_unknown_fields() -> None:
    wrong = load("aws.yaml") | {"head_start_commands": []}
    with pytest.raises(jsonschema.ValidationError, match="head_start_commands"):
        validate_config(prepare_config(wrong))


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_every_ray_up_start_asks_for_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for commands in (head, workers):
        (start,) = [command for command in commands if "ray start" in command]
        assert re.search(r"RAY_AUTH_MODE=token (\.venv/bin/)?ray start ", start)
        assert "chmod 600 ~/.ray/auth_token" in commands
    assert "--dashboard-host=127.0.0.1" in next(c for c in head if "ray start" in c)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_aws_nodes_use_a_group_of_the_users() -> None:
    config = load("aws.yaml")
    assert "security_group" not in config["provider"]
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["REPLACE_SECURITY_GROUP"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_aws_containers_are_shown_their_gpus() -> None:
    """Ray adds the runtime of NVIDIA alone, which without these shows none."""
    options = load("aws.yaml")["docker"]["worker_run_options"]
    assert "--env NVIDIA_VISIBLE_DEVICES=all" in options
    assert "--env NVIDIA_DRIVER_CAPABILITIES=compute,utility" in options


def test_one_image_everywhere() -> None:
    images = {
        c["image"] for name in CLUSTERS for pod in pods(cluster_spec(load(name))) for c in pod["containers"]
    }
    assert images == {load("aws.yaml")["docker"]["image"]} == {"REPLACE_REGISTRY/mtmsd:0.1.0"}
