"""Every manifest is one that API servers take, field for field, of old and coming versions."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import pytest
import yaml
from support.chart import CHART, LOADER, ci_values, objects
from support.source_tree import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")
# A file of a megabyte is read and parsed for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
VERSIONS = ("1.29", "1.33", "1.37")
TOO_OLD = {("ways-out", "1.29"): "resourceClaimTemplateName"}
"""What an operator asks for and a version does not have yet."""
OF_CRDS = {"gateway.networking.k8s.io", "monitoring.coreos.com", "keda.sh"}
CRDS = ROOT.parent / "shared" / "crds"
VALUES = ci_values()


@cache
def things_of(case: str) -> list[dict[str, Any]]:
    return objects(VALUES[case])


@pytest.mark.parametrize("case", sorted(VALUES))
def test_helm_has_nothing_to_say(case: str) -> None:
    found = helm.lint(str(CHART), VALUES[case], strict=True)
    said = [one["err"] for one in found["messages"] if one["severity"] > 1]
    assert (said, found["errors"]) == ([], [])


@pytest.mark.parametrize("case", sorted(VALUES))
def test_each_object_is_valid_to_the_last_field(case: str) -> None:
    for thing in things_of(case):
        for version in VERSIONS:
            why = invalid(json.dumps(thing), version)
            allowed = TOO_OLD.get((case, version))
            assert not why or (allowed and allowed in why), f"{thing['metadata']['name']}: {why}"


@cache
def invalid(thing: str, version: str) -> str:
    """Why a server of this version would refuse it; empty: it would not, or a CRD defines it."""
    try:
        kubernetes_validate.validate(json.loads(thing), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        group = str(json.loads(thing)["apiVersion"]).partition("/")[0]
        return "" if group in OF_CRDS else f"no such kind in {version}"
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("case", sorted(VALUES))
def test_what_crds_define_is_as_they_define_it(case: str) -> None:
    if not CRDS.is_dir():
        pytest.skip(f"no definitions at {CRDS}")
    schemas = definitions()
    for thing in things_of(case):
        schema = schemas.get((thing["apiVersion"], thing["kind"]))
        if schema is not None:
            jsonschema.Draft7Validator(schema).validate(thing)


def test_all_kinds_that_crds_define_are_rendered_by_some_values() -> None:
    kinds = {thing["kind"] for case in VALUES for thing in things_of(case)}
    assert kinds >= {"HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject"}
    assert kinds >= {
        "DaemonSet",
        "HorizontalPodAutoscaler",
        "Ingress",
        "PodDisruptionBudget",
        "Role",
    }


@pytest.mark.parametrize("case", sorted(VALUES))
def test_pods_are_what_pod_security_calls_restricted(case: str) -> None:
    """But for what values ask for by name: the host's network, folders of the node."""
    for thing in things_of(case):
        if "template" not in thing.get("spec", {}):
            continue
        spec = thing["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        ours = [one for one in spec["containers"] + spec.get("initContainers", []) if _ours(one)]
        for one in ours:
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_values_are_few_enough_to_read() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) <= 350


def _ours(told: dict[str, Any]) -> bool:
    return re.search(r"-(router|worker-cpu|worker-cuda|redis)[:@]", told["image"]) is not None


@cache
def definitions() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for file in sorted(Path(CRDS).glob("*.yaml")):
        if "ray.io" in file.name:
            continue
        for crd in yaml.load_all(file.read_text(), LOADER):
            if crd and crd["kind"] == "CustomResourceDefinition":
                for version in crd["spec"]["versions"]:
                    api = f"{crd['spec']['group']}/{version['name']}"
                    schema = version["schema"]["openAPIV3Schema"]
                    found[(api, crd["spec"]["names"]["kind"])] = _strict(schema)
    return found


def _strict(schema: Any) -> Any:
    """Nothing beside what is named, as a server prunes it."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: _strict(value) for key, value in schema.items()}
    named = isinstance(known.get("properties"), dict) and known.get("type") == "object"
    free = known.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in known
    if known.get("x-kubernetes-int-or-string"):
        known.pop("type", None)
    known.pop("format", None)
    if str(known.get("pattern", "")).startswith("^(?i)"):
        known.pop("pattern")  # Go's own syntax
    return known if not named or free else {**known, "additionalProperties": False}
