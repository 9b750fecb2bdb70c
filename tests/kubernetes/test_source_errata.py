"""The corrections of the source document: what of them can be judged without a cloud."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from clipper_backup.buckets import gcs, s3
from clipper_backup.ops.bucket_check import judge_rules

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/design/source-errata.md").read_text()
JSON_BLOCKS: list[dict[str, Any]] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
OBJECT_ACTIONS = {"GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"}


def having(key: str) -> dict[str, Any]:
    (block,) = (block for block in JSON_BLOCKS if key in block or key in block.get("Statement", [{}])[0])
    return block


def test_every_correction_a_row_points_to_is_there() -> None:
    headings = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert linked == anchors


def test_rows_are_numbered_and_whole() -> None:
    rows = [row for row in TEXT.splitlines() if re.match(r"\| \d", row)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(len([cell for cell in row.split("|") if cell.strip()]) == 4 for row in rows)


def test_each_action_is_on_the_kind_of_resource_it_acts_on() -> None:
    for statement in having("Sid")["Statement"]:
        on_objects = statement["Resource"].endswith("/*")
        actions = {action.removeprefix("s3:") for action in statement["Action"]}
        assert actions == OBJECT_ACTIONS if on_objects else actions.isdisjoint(OBJECT_ACTIONS)
        assert ("ListBucketMultipartUploads" in actions) is not on_objects


def test_bucket_check_wants_no_more_than_the_corrected_rules() -> None:
    """They delete no living object outside the dumps, remove old versions and end unfinished uploads."""
    (of_s3,) = (block["Rules"] for block in JSON_BLOCKS if "Rules" in block and "Role" not in block)
    of_google = having("lifecycle")["lifecycle"]["rule"]
    for rules in ([s3._rule(rule) for rule in of_s3], list(gcs.read_rules(of_google, "STANDARD", any_class=False))):
        (finding,) = (looked.finding for looked in judge_rules(rules, "", 30, versioned=True))
        assert "neither holds nor RETENTION_MIN_DUMPS" in finding.text


def test_the_trust_is_for_our_service_accounts_alone() -> None:
    (statement,) = having("Principal")["Statement"]
    rbac = yaml.safe_load_all((ROOT / "infrastructure/k8s/base/rbac.yaml").read_text())
    ours = [o["metadata"]["name"] for o in rbac if o["kind"] == "ServiceAccount"]
    trusted = statement["Condition"]["StringEquals"]["OIDC_PROVIDER:sub"]
    assert trusted == [f"system:serviceaccount:clipper-production:{name}" for name in ours]
    assert re.findall(r"^for account in (.+); do$", TEXT, re.MULTILINE) == [" ".join(ours)] * 3


def test_the_annotations_are_those_of_rbac_yaml() -> None:
    rbac = (ROOT / "infrastructure/k8s/base/rbac.yaml").read_text()
    annotation = re.compile(r"[\w.]+\.(?:google|gke|com|identity|io)[\w./-]*/(?:gcp-service-account|role-arn|client-id)")
    assert set(annotation.findall(TEXT)) == set(annotation.findall(rbac))
    assert len(set(annotation.findall(TEXT))) == 3
