"""What each role may do and what it may not, by the rules of IAM.

The rules are those of the simulator iam-simulate, which is a tool of the tests and no part of what is delivered. It knows the actions, their
resources and their condition keys from AWS's own tables, and refuses a question that AWS could not be asked.
"""

import json
import re
import unittest

from support import ACCOUNT, DEPLOY, PARTITION, REGION, TOOLS, TOP, policy, run

CELL_A, CELL_B, CELL_C = ("prod-CustomerData-cell-a", "prod-CustomerData-cell-b", "prod-CustomerData-cell-c")
MAPPINGS, CONTROL = "prod-CellMappings", "prod-CellControl"
BY_CELL = "/index/CellIdIndex"
OWN, GUESSED = "CUSTOMER#a", "CUSTOMER#b"

ROLES = {
    "resolver": policy("resolver", PREFIX="prod-"),
    "control-plane": policy("control-plane", PREFIX="prod-"),
    "cell-removal": policy("cell-removal", PREFIX="prod-"),
    "cell-recovery": policy("cell-recovery", PREFIX="prod-"),
    "cell-data": policy("cell-data", PREFIX="prod-"),
    "migrator": policy("migrator", PREFIX="prod-", SOURCE_CELL="cell-a", TARGET_CELL="cell-b"),
    "application": policy("application", PREFIX="prod-", CELL="cell-a"),
}

TENANT_A = {"aws:PrincipalTag/tenant": "a"}


def keys(*leading, tenant=TENANT_A):
    """The context of a request on these partitions; with none, that of one whose partitions are not told."""
    return {**tenant, **({"dynamodb:LeadingKeys": list(leading)} if leading else {})}


ALLOWED = [
    ("resolver", "GetItem", MAPPINGS, {}),
    ("resolver", "BatchGetItem", MAPPINGS, {}),
    # What celld does: reads, a transaction over both tables, polls, loads, trims; and `celld tables create`.
    ("control-plane", "GetItem", MAPPINGS, {}),
    ("control-plane", "BatchGetItem", MAPPINGS, {}),
    ("control-plane", "Scan", MAPPINGS, {}),
    ("control-plane", "Query", MAPPINGS + BY_CELL, {}),
    ("control-plane", "PutItem", MAPPINGS, {}),
    ("control-plane", "UpdateItem", MAPPINGS, {}),
    ("control-plane", "Query", CONTROL, {}),
    ("control-plane", "PutItem", CONTROL, {}),
    ("control-plane", "ConditionCheckItem", CONTROL, {}),
    ("control-plane", "BatchWriteItem", CONTROL, {}),
    ("control-plane", "DescribeTimeToLive", MAPPINGS, {}),
    ("control-plane", "DeleteItem", CONTROL, {}),
    ("control-plane", "CreateTable", MAPPINGS, {}),
    ("control-plane", "UpdateTimeToLive", CONTROL, {}),
    ("control-plane", "CreateTable", CELL_C, {}),
    ("control-plane", "UpdateContinuousBackups", CELL_C, {}),
    ("control-plane", "UpdateTable", CELL_C, {}),
    ("control-plane", "UpdateTimeToLive", CELL_C, {}),
    ("control-plane", "DescribeTable", CELL_C, {}),
    ("control-plane", "DescribeTimeToLive", CELL_C, {}),
    ("control-plane", "DescribeContinuousBackups", CELL_C, {}),
    ("control-plane", "ListTagsOfResource", CELL_C, {}),
    ("control-plane", "TagResource", CELL_C, {}),
    ("cell-removal", "Scan", CELL_C, {}),
    ("cell-removal", "CreateBackup", CELL_C, {}),
    ("cell-removal", "DeleteTable", CELL_C, {}),
    ("cell-recovery", "CreateBackup", CELL_C, {}),
    ("cell-recovery", "DeleteBackup", CELL_C + "/backup/01700000000000-abcdef01", {}),
    ("cell-recovery", "RestoreTableFromBackup", CELL_C + "/backup/01700000000000-abcdef01", {}),
    ("cell-recovery", "RestoreTableToPointInTime", CELL_C, {}),
    ("cell-recovery", "BatchWriteItem", CELL_C, {}),
    ("cell-recovery", "Scan", CELL_C, {}),
    ("cell-recovery", "Scan", CELL_C + "-drill-0123456789ab", {}),
    ("cell-recovery", "DeleteTable", CELL_C + "-drill-0123456789ab", {}),
    ("cell-data", "Query", CELL_C, {}),
    ("cell-data", "PutItem", CELL_C, {}),
    ("cell-data", "UpdateItem", CELL_C, {}),
    ("cell-data", "DeleteItem", CELL_C, {}),
    ("cell-data", "ConditionCheckItem", CELL_C, {}),
    ("cell-data", "GetItem", CELL_C, {}),
    ("cell-data", "GetRecords", CELL_C + "/stream/2026-11-23T00:00:00.000", {}),
    ("migrator", "Query", CELL_A, {}),
    ("migrator", "DeleteItem", CELL_A, {}),
    ("migrator", "PutItem", CELL_B, {}),
    ("migrator", "ConditionCheckItem", CELL_B, {}),
    ("migrator", "GetRecords", CELL_A + "/stream/2026-01-01T00:00:00.000", {}),
    ("migrator", "UpdateItem", CONTROL, {"dynamodb:LeadingKeys": ["MIGRATION#m-1"]}),
    ("migrator", "GetItem", CONTROL, {"dynamodb:LeadingKeys": ["MIGRATION#m-1"]}),
    ("application", "GetItem", CELL_A, keys(OWN)),
    ("application", "Query", CELL_A, keys(OWN)),
    ("application", "PutItem", CELL_A, keys(OWN)),
    ("application", "UpdateItem", CELL_A, keys(OWN)),
    ("application", "ConditionCheckItem", CELL_A, keys(OWN)),
    ("application", "BatchGetItem", CELL_A, keys(OWN, OWN)),
]

DENIED = [
    # The resolver reads by key, and nothing but the routing table.
    ("resolver", "PutItem", MAPPINGS, {}),
    ("resolver", "UpdateItem", MAPPINGS, {}),
    ("resolver", "DeleteItem", MAPPINGS, {}),
    ("resolver", "BatchWriteItem", MAPPINGS, {}),
    ("resolver", "Scan", MAPPINGS, {}),
    ("resolver", "Query", MAPPINGS, {}),
    ("resolver", "Query", MAPPINGS + BY_CELL, {}),
    ("resolver", "GetItem", CONTROL, {}),
    ("resolver", "GetItem", CELL_A, {}),
    ("resolver", "GetItem", "staging-CellMappings", {}),
    # The control plane makes cells' tables, and sees none of what is in them.
    ("control-plane", "GetItem", CELL_A, {}),
    ("control-plane", "Query", CELL_A, {}),
    ("control-plane", "PutItem", CELL_A, {}),
    ("control-plane", "Query", CELL_A + BY_CELL, {}),
    ("control-plane", "Scan", CELL_A, {}),
    ("control-plane", "DeleteTable", MAPPINGS, {}),
    ("control-plane", "DeleteTable", CONTROL, {}),
    ("control-plane", "DeleteTable", CELL_A, {}),
    ("control-plane", "CreateTable", "staging-CustomerData-cell-a", {}),
    ("control-plane", "CreateTable", "prod-Other", {}),
    ("control-plane", "PutItem", "staging-CellControl", {}),
    ("control-plane", "Scan", "prod-CellMappingsOfOthers", {}),
    # Who removes cells removes nothing else, and reads nothing by key.
    ("cell-removal", "DeleteTable", MAPPINGS, {}),
    ("cell-removal", "DeleteTable", CONTROL, {}),
    ("cell-removal", "Scan", MAPPINGS, {}),
    ("cell-removal", "DeleteTable", "staging-CustomerData-cell-a", {}),
    ("cell-removal", "GetItem", CELL_A, {}),
    ("cell-removal", "PutItem", CELL_A, {}),
    # Who drills deletes what he restored, and no table of a cell; the directory's own tables and their backups are not his.
    ("cell-recovery", "DeleteTable", CELL_C, {}),
    ("cell-recovery", "DeleteTable", MAPPINGS, {}),
    ("cell-recovery", "DeleteBackup", CONTROL + "/backup/01700000000000-abcdef01", {}),
    ("cell-recovery", "RestoreTableToPointInTime", CONTROL, {}),
    ("cell-recovery", "Scan", MAPPINGS, {}),
    ("cell-recovery", "CreateBackup", "staging-CustomerData-cell-a", {}),
    # Who handles items handles no tables, neither the directory's nor others'.
    ("cell-data", "Query", CONTROL, {}),
    ("cell-data", "PutItem", MAPPINGS, {}),
    ("cell-data", "Scan", CELL_A, {}),
    ("cell-data", "DeleteTable", CELL_A, {}),
    ("cell-data", "GetRecords", MAPPINGS + "/stream/2026-11-23T00:00:00.000", {}),
    ("cell-data", "PutItem", "staging-CustomerData-cell-a", {}),
    # The migrator has its two cells and its own records.
    ("migrator", "GetItem", CELL_C, {}),
    ("migrator", "PutItem", CELL_C, {}),
    ("migrator", "Query", CELL_C, {}),
    ("migrator", "DeleteItem", "prod-CustomerData-x-cell-a", {}),
    ("migrator", "PutItem", "prod-CustomerData-cell-a2", {}),
    ("migrator", "GetRecords", CELL_C + "/stream/2026-01-01T00:00:00.000", {}),
    ("migrator", "Scan", CELL_A, {}),
    ("migrator", "DeleteTable", CELL_A, {}),
    # A batch carries no conditions, so it could write past a guard.
    ("migrator", "BatchWriteItem", CELL_B, {}),
    ("migrator", "PutItem", CONTROL, {"dynamodb:LeadingKeys": ["JOURNAL"]}),
    ("migrator", "UpdateItem", CONTROL, {"dynamodb:LeadingKeys": ["MIGRATION#m-1", "JOURNAL"]}),
    ("migrator", "GetItem", CONTROL, {"dynamodb:LeadingKeys": ["TENANT#a"]}),
    ("migrator", "PutItem", CONTROL, {"dynamodb:LeadingKeys": []}),
    ("migrator", "PutItem", CONTROL, {}),
    ("migrator", "Scan", CONTROL, {}),
    ("migrator", "UpdateItem", MAPPINGS, {}),
    # The application has one tenant in one cell.
    ("application", "GetItem", CELL_B, keys(OWN)),
    ("application", "PutItem", CELL_B, keys(OWN)),
    ("application", "GetItem", "prod-CustomerData-x-cell-a", keys(OWN)),
    ("application", "GetItem", CELL_A, keys(GUESSED)),
    ("application", "PutItem", CELL_A, keys(GUESSED)),
    ("application", "BatchGetItem", CELL_A, keys(OWN, GUESSED)),
    # Tenants a#1 and ab begin like a, and A is another.
    ("application", "GetItem", CELL_A, keys("CUSTOMER#a#1")),
    ("application", "GetItem", CELL_A, keys("CUSTOMER#ab")),
    ("application", "GetItem", CELL_A, keys("CUSTOMER#A")),
    ("application", "BatchGetItem", CELL_A, keys(OWN, "CUSTOMER#a#1")),
    ("application", "BatchGetItem", CELL_A, keys(OWN, "CUSTOMER#ab")),
    # The tag is text, not a pattern.
    ("application", "GetItem", CELL_A, keys(GUESSED, tenant={"aws:PrincipalTag/tenant": "*"})),
    ("application", "GetItem", CELL_A, keys("CUSTOMER#b", tenant={})),
    # ForAllValues holds for no values at all.
    ("application", "GetItem", CELL_A, keys()),
    ("application", "GetItem", CELL_A, {**TENANT_A, "dynamodb:LeadingKeys": []}),
    ("application", "Scan", CELL_A, keys()),
    # The keys of an index are others than the table's: a cell's id here, which all of its tenants share.
    ("application", "Query", CELL_A + BY_CELL, keys("cell-a")),
    ("application", "Query", CELL_A + BY_CELL, keys(OWN)),
    ("application", "PartiQLSelect", CELL_A, keys(OWN)),
    ("application", "ExportTableToPointInTime", CELL_A, keys()),
    ("application", "BatchWriteItem", CELL_A, keys(OWN)),
    ("application", "DeleteTable", CELL_A, keys()),
    ("application", "GetItem", MAPPINGS, keys(OWN)),
    ("application", "GetItem", CONTROL, keys(OWN)),
]


def simulation(policies, action, resource, context):
    return {
        "identityPolicies": [{"name": str(at), "policy": one} for at, one in enumerate(policies)],
        "serviceControlPolicies": [],
        "resourceControlPolicies": [],
        "request": {
            "action": action if ":" in action else f"dynamodb:{action}",
            "principal": f"arn:{PARTITION}:iam::{ACCOUNT}:role/tested",
            "resource": {"accountId": ACCOUNT, "resource": resource},
            "contextVariables": context,
        },
    }


def table_arn(table):
    return f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/{table}"


def simulate(simulations):
    """The outcome of each; a question that cannot be asked is an error, not a refusal."""
    result = run(
        "node",
        TOP / "tests/deploy/simulate.cjs",
        text=json.dumps(simulations),
        env={"NODE_TOOLS": str(TOOLS / "node")},
    )
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert len(outcomes) == len(simulations)
    for asked, outcome in zip(simulations, outcomes):
        assert "error" not in outcome, f"{asked['request']}: {json.dumps(outcome['error'])}"
        # A condition key that the simulator passes over would make every condition on it meaningless.
        assert not outcome["ignored"], f"{asked['request']}: keys passed over: {outcome['ignored']}"
    return [outcome["result"] for outcome in outcomes]


class Roles(unittest.TestCase):
    def check(self, cases, expected):
        asked = [simulation([ROLES[role]], action, table_arn(table), context) for role, action, table, context in cases]
        for case, result in zip(cases, simulate(asked)):
            with self.subTest(case):
                self.assertIn(result, expected)

    def test_allowed(self):
        self.check(ALLOWED, ("Allowed",))

    def test_denied(self):
        self.check(DENIED, ("ImplicitlyDenied", "ExplicitlyDenied"))

    def test_every_role_has_both(self):
        for role in ROLES:
            for cases in (ALLOWED, DENIED):
                self.assertTrue([case for case in cases if case[0] == role], role)
        files = {path.stem for path in (DEPLOY / "iam").glob("*.json")}
        self.assertEqual(files, set(ROLES), "a policy without a test, or a test without a policy")

    def test_every_call_of_celld_is_allowed(self):
        # A transaction is allowed by the actions of its items.
        transaction = {"ConditionCheckItem", "DeleteItem", "PutItem", "UpdateItem"}
        allowed = {action for role, action, _, _ in ALLOWED if role in ("control-plane", "cell-removal", "cell-recovery", "cell-data")}
        # In tests below; and what DynamoDB's ARNs are not for.
        scaling = {"RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy"}
        looking = {"DescribeScalableTargets", "DescribeScalingPolicies", "GetCostAndUsage", "GetMetricData", "PutMetricData"}
        for place, known in (("src/store/dynamodb", set()), ("src/cells", scaling | looking | {"ListBackups"})):
            called = set()
            for path in (TOP / place).rglob("*.rs"):
                for name in re.findall(r"\b(?:client|dynamodb|scaling)\s*\.([a-z_]+)\(\)\s*\.", path.read_text()):
                    called.add("".join(word.capitalize() for word in name.split("_")))
            self.assertGreaterEqual(len(called), 10, place)
            if "TransactWriteItems" in called:
                called = called - {"TransactWriteItems"} | transaction
            self.assertEqual(called - allowed - known, set(), place)

    def test_what_is_asked_of_everything(self):
        actions = ("dynamodb:ListBackups", "application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies", "cloudwatch:GetMetricData", "ce:GetCostAndUsage")
        asked = [simulation([ROLES["control-plane"], ROLES["cell-removal"]], action, "*", {}) for action in actions]
        self.assertEqual(simulate(asked), ["Allowed"] * len(actions))

    def test_metrics_only_in_the_namespace_of_cells(self):
        key = "cloudwatch:namespace"
        namespaces = ({key: "CellBasedArchitecture/DynamoDB"}, {key: "AWS/DynamoDB"}, {key: "CellBasedArchitecture/DynamoDB2"})
        asked = [simulation([ROLES["control-plane"]], "cloudwatch:PutMetricData", "*", context) for context in namespaces]
        self.assertEqual(simulate(asked), ["Allowed", "ImplicitlyDenied", "ImplicitlyDenied"])

    def test_alarms_only_of_scaling_of_cells(self):
        alarm = f"arn:{PARTITION}:cloudwatch:{REGION}:{ACCOUNT}:alarm:"
        names = ("TargetTracking-table/prod-CustomerData-cell-a-AlarmHigh-0", "prod-CustomerData-cell-a-system-errors")
        asked = [simulation([ROLES["control-plane"]], "cloudwatch:DeleteAlarms", alarm + name, {}) for name in names]
        self.assertEqual(simulate(asked), ["Allowed", "ImplicitlyDenied"])

    def test_scaling_only_of_dynamodb(self):
        target = f"arn:{PARTITION}:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0123"
        key, policies = "application-autoscaling:service-namespace", [ROLES["control-plane"]]
        for name in ("RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy"):
            action = f"application-autoscaling:{name}"
            asked = [simulation(policies, action, target, {key: service}) for service in ("dynamodb", "ecs")]
            self.assertEqual(simulate(asked), ["Allowed", "ImplicitlyDenied"], name)

    def test_what_is_never_done_is_denied_even_if_another_policy_allows_it(self):
        everything = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"}],
        }
        cases = [
            ("application", "Scan", CELL_A, keys()),
            ("application", "PartiQLSelect", CELL_A, keys(OWN)),
            ("control-plane", "DeleteTable", CONTROL, {}),
        ]
        asked = [simulation([ROLES[role], everything], action, table_arn(table), context) for role, action, table, context in cases]
        self.assertEqual(simulate(asked), ["ExplicitlyDenied"] * len(cases))


if __name__ == "__main__":
    unittest.main()
