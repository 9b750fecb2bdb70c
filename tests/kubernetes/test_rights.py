"""rbac.yaml: who may do what, why, and what of it nothing uses yet (K1, K2)."""

import re

import yaml

from clipper_backup.cli.app import make_app
from clipper_backup.ops.snapshot.verbs import ACCOUNT, VERBS
from fixtures.kube_access import Access
from fixtures.kube_cluster import NAMESPACE, RBAC

ACCOUNTS = {"backup-operator", "backup-snapshots", "backup-restore-test", "backup-restore"}
_VERB = re.compile(r"^ +- ([a-z]+)( # .+)?$")
Verb = tuple[str, str, str]

NOT_USED_YET = {
    "backup-restore": {
        "configmaps": "get create patch delete",
        "cronjobs.batch": "get patch",
        "events": "list",
        "jobs.batch": "get list watch create delete",
        "persistentvolumeclaims": "get list watch create delete patch",
        "persistentvolumes": "get patch",
        "pods": "get list watch",
        "pods/log": "get",
        "services": "get create delete",
        "statefulsets.apps": "get list watch create delete patch",
        "storageclasses.storage.k8s.io": "get",
        "volumesnapshots.snapshot.storage.k8s.io": "get",
    },
}
"""What is granted for commands that are not there yet. An entry goes as soon as a command that its comment names is there."""


def granted() -> dict[Verb, list[str]]:
    """Account, resource and verb of each line of each role, with the commands that its comment names."""
    found: dict[Verb, list[str]] = {}
    for text in RBAC.read_text().split("\n---\n"):
        role = yaml.safe_load(text)
        if role["kind"] not in {"Role", "ClusterRole"}:
            continue
        lines = [match for line in text.splitlines() if (match := _VERB.match(line))]
        stated = [(rule, verb) for rule in role["rules"] for verb in rule["verbs"]]
        assert [match[1] for match in lines] == [verb for _, verb in stated], "each verb on a line of its own"
        for (rule, verb), match in zip(stated, lines, strict=True):
            ((group,), (resource,)) = (rule["apiGroups"], rule["resources"])
            account = role["metadata"]["name"].removeprefix("clipper-").replace("backup-backup-", "backup-")
            full = f"{resource}.{group}" if group else resource
            found[account, full, verb] = re.findall(r"`([^`]+)`", match[2] or "")
    return found


def is_there(command: str) -> bool:
    app = make_app()
    for word in command.split():
        if word not in set(app):
            return False
        app = app[word]
    return True


def test_each_verb_names_the_command_that_needs_it() -> None:
    assert len(granted()) > 40
    assert {verb: said for verb, said in granted().items() if not said} == {}
    commands = {command for said in granted().values() for command in said}
    assert commands == {"snapshot create", "snapshot list", "snapshot prune", "snapshot restore", "k8s restore"}


def test_what_no_command_uses_yet_is_on_the_list_and_no_more() -> None:
    waiting = {verb for verb, said in granted().items() if not any(map(is_there, said))}
    listed = {
        (account, resource, verb)
        for account, rules in NOT_USED_YET.items()
        for resource, verbs in rules.items()
        for verb in verbs.split()
    }
    assert waiting == listed
    assert is_there("job postgres-backup"), "else all would seem to wait"


def test_the_account_of_snapshots_has_what_its_commands_need_and_no_more() -> None:
    needed = {(ACCOUNT, f"{verb.resource.plural}.{verb.resource.group}".rstrip("."), verb.name) for verb in VERBS}
    of_messages = {(ACCOUNT, "events", "list")}
    assert {verb for verb in granted() if verb[0] == ACCOUNT} == needed | of_messages


def test_the_bindings_grant_each_role_to_its_own_account_and_to_nobody_else() -> None:
    access = Access(frozenset())
    access.grant(yaml.safe_load_all(RBAC.read_text()))
    of_roles = {(f"system:serviceaccount:{NAMESPACE}:{account}", verb, resource) for account, resource, verb in granted()}
    assert access.granted() == of_roles
    bindings = [o for o in yaml.safe_load_all(RBAC.read_text()) if o["kind"].endswith("Binding")]
    assert {subject["kind"] for o in bindings for subject in o["subjects"]} == {"ServiceAccount"}


def test_nobody_reads_secrets_and_nothing_is_granted_by_a_star() -> None:
    for _, resource, verb in granted():
        assert not {"secrets", "*"} & {resource.partition(".")[0], verb}
        assert resource.partition(".")[2] not in {"rbac.authorization.k8s.io", "*"}


def test_the_accounts() -> None:
    accounts = [o for o in yaml.safe_load_all(RBAC.read_text()) if o["kind"] == "ServiceAccount"]
    assert {o["metadata"]["name"] for o in accounts} == ACCOUNTS
    assert all(o["automountServiceAccountToken"] is False and "annotations" not in o["metadata"] for o in accounts)
    assert {account for account, _, _ in granted()} == ACCOUNTS - {"backup-operator", "backup-restore-test"}
