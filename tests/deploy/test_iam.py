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
MIGRATION = "00000000000000000000000000000001"
LOG, DRAIN = f"\x01log#{MIGRATION}#3", "BULK#d-1"

# As many shards as a guard can have.
SHARDS = int(re.search(r"MAX_SHARDS: u8 = (\d+);", (TOP / "crates/cells-guard/src/guard.rs").read_text()).group(1))


def guard(tenant, shard=0):
    return f"\x01guard#{shard}#{tenant}"


def at(*leading):
    """The context of a request by nobody's tenant on these partitions."""
    return {"dynamodb:LeadingKeys": list(leading)}


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
    # Guards: with each placement, by migrations, and where they are missing.
    *(("control-plane", action, CELL_C, at(guard("a"))) for action in ("PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem", "GetItem")),
    ("control-plane", "PutItem", CELL_C, at(*(guard("a", shard) for shard in range(SHARDS)))),
    ("control-plane", "BatchGetItem", CELL_C, at(guard("a"), guard("b"))),
    # Records of migrations: begun, taken up, ended.
    *(("control-plane", "PutItem", CONTROL, at(of)) for of in ("MIGRATION#m-1", "MIGRATIONS", "MIGRATIONLOG", DRAIN)),
    ("control-plane", "UpdateItem", CONTROL, at("MIGRATION#m-1")),
    ("control-plane", "DeleteItem", CONTROL, at("MIGRATIONS")),
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
    ("cell-data", "GetItem", CELL_C, at(guard("a"))),
    ("cell-data", "ConditionCheckItem", CELL_C, at(guard("a", 5))),
    ("cell-data", "PutItem", CELL_C, at(OWN, LOG)),
    ("cell-data", "PutItem", CELL_C, {}),
    ("cell-data", "UpdateItem", CELL_C, {}),
    ("cell-data", "DeleteItem", CELL_C, {}),
    ("cell-data", "ConditionCheckItem", CELL_C, {}),
    ("cell-data", "GetItem", CELL_C, {}),
    ("cell-data", "GetRecords", CELL_C + "/stream/2026-11-23T00:00:00.000", {}),
    # Items in either direction under a check of a guard, guards, and logs; a log is removed in batches.
    *(("migrator", action, cell, at(OWN)) for cell in (CELL_A, CELL_B) for action in ("Query", "BatchGetItem", "PutItem", "DeleteItem")),
    *(("migrator", action, cell, at(guard("a"))) for cell in (CELL_A, CELL_B) for action in ("GetItem", "ConditionCheckItem", "PutItem", "UpdateItem", "DeleteItem")),
    *(("migrator", action, cell, at(LOG)) for cell in (CELL_A, CELL_B) for action in ("Query", "BatchWriteItem")),
    *(("migrator", action, CONTROL, at(of)) for action in ("PutItem", "Query", "DeleteItem") for of in ("MIGRATION#m-1", "MIGRATIONS", "MIGRATIONLOG", DRAIN)),
    ("migrator", "GetRecords", CELL_A + "/stream/2026-01-01T00:00:00.000", {}),
    ("migrator", "UpdateItem", CONTROL, {"dynamodb:LeadingKeys": ["MIGRATION#m-1"]}),
    ("migrator", "GetItem", CONTROL, {"dynamodb:LeadingKeys": ["MIGRATION#m-1"]}),
    ("application", "GetItem", CELL_A, keys(OWN)),
    ("application", "Query", CELL_A, keys(OWN)),
    ("application", "PutItem", CELL_A, keys(OWN)),
    ("application", "UpdateItem", CELL_A, keys(OWN)),
    ("application", "ConditionCheckItem", CELL_A, keys(OWN)),
    ("application", "BatchGetItem", CELL_A, keys(OWN, OWN)),
    # A guarded write: a check of any shard, the write, and the record; a guard is read to learn what it says.
    *(("application", action, CELL_A, keys(guard("a", shard))) for action in ("ConditionCheckItem", "GetItem") for shard in range(SHARDS)),
    ("application", "PutItem", CELL_A, keys(LOG)),
    # The same, should DynamoDB ask for all items of a transaction with one action together.
    ("application", "ConditionCheckItem", CELL_A, keys(guard("a", 3), OWN)),
    ("application", "PutItem", CELL_A, keys(OWN, LOG)),
]

# What nobody may do with a guard or a log who is not the directory.
WRITES = ("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem")
READS = ("GetItem", "BatchGetItem", "Query", "ConditionCheckItem")

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
    *(("resolver", action, CELL_A, at(of)) for action in WRITES + READS for of in (guard("a"), LOG, OWN)),
    *(("resolver", action, CONTROL, at(of)) for action in WRITES + READS for of in ("MIGRATION#m-1", "MIGRATIONS", "MIGRATIONLOG", DRAIN)),
    # The control plane makes cells' tables, and sees none of what is in them.
    ("control-plane", "GetItem", CELL_A, {}),
    ("control-plane", "Query", CELL_A, {}),
    ("control-plane", "PutItem", CELL_A, {}),
    ("control-plane", "Query", CELL_A + BY_CELL, {}),
    ("control-plane", "Scan", CELL_A, {}),
    *(("control-plane", action, CELL_A, at(of)) for action in WRITES + READS for of in (OWN, LOG, "\x01", "guard#0#a")),
    ("control-plane", "BatchGetItem", CELL_A, at(guard("a"), OWN)),
    ("control-plane", "PutItem", CELL_A, at(guard("a"), OWN)),
    ("control-plane", "GetItem", CELL_A, at()),
    ("control-plane", "Query", CELL_A, at(guard("a"))),
    ("control-plane", "BatchWriteItem", CELL_A, at(guard("a"))),
    ("control-plane", "PutItem", "staging-CustomerData-cell-a", at(guard("a"))),
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
    # A batch carries no conditions, so it could write past a guard: it is for logs.
    ("migrator", "BatchWriteItem", CELL_B, {}),
    ("migrator", "BatchWriteItem", CELL_B, at(OWN)),
    ("migrator", "BatchWriteItem", CELL_B, at(guard("a"))),
    ("migrator", "BatchWriteItem", CELL_B, at(LOG, OWN)),
    ("migrator", "BatchWriteItem", CELL_C, at(LOG)),
    ("migrator", "DeleteItem", CONTROL, at("MIGRATIONS", "JOURNAL")),
    ("migrator", "PutItem", CONTROL, at("MIGRATIONSX")),
    ("migrator", "PutItem", CONTROL, at("CELL")),
    ("migrator", "BatchWriteItem", CONTROL, at("MIGRATION#m-1")),
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
    # Its guard is checked and read, never written; its log is added to, and no more.
    *(("application", action, CELL_A, keys(guard("a", shard))) for action in WRITES for shard in range(SHARDS)),
    *(("application", action, CELL_A, keys(OWN, guard("a"))) for action in WRITES),
    ("application", "PutItem", CELL_A, keys(LOG, guard("a"))),
    ("application", "Query", CELL_A, keys(guard("a"))),
    ("application", "BatchGetItem", CELL_A, keys(guard("a"))),
    *(("application", action, CELL_A, keys(LOG)) for action in ("UpdateItem", "DeleteItem", "BatchWriteItem") + READS),
    *(("application", action, CELL_B, keys(guard("a"))) for action in WRITES + READS),
    ("application", "PutItem", CELL_B, keys(LOG)),
    # Others' guards, and those whose partitions end or go on like its own: of tenants x#a, a#1, ab, and #a at shard 1.
    *(
        ("application", action, CELL_A, keys(guard(tenant, shard)))
        for action in WRITES + READS
        for tenant in ("b", "x#a", "0#a", "a#1", "ab", "A", "#a", "")
        for shard in (0, 1, 10)
    ),
    ("application", "ConditionCheckItem", CELL_A, keys(guard("a"), guard("b"))),
    ("application", "ConditionCheckItem", CELL_A, keys(guard("a"), GUESSED)),
    ("application", "PutItem", CELL_A, keys(LOG, GUESSED)),
    ("application", "PutItem", CELL_A, keys("\x01")),
    ("application", "PutItem", CELL_A, keys("log#1#0")),
    # No shard beyond the last.
    ("application", "ConditionCheckItem", CELL_A, keys(guard("a", SHARDS))),
    # No tag, and one that is a pattern.
    *(("application", "ConditionCheckItem", CELL_A, keys(guard("b"), tenant=tag)) for tag in ({}, {"aws:PrincipalTag/tenant": "*"})),
    ("application", "PutItem", CELL_A, keys(GUESSED, tenant={"aws:PrincipalTag/tenant": "*"})),
    ("application", "ConditionCheckItem", CELL_A, keys()),
    ("application", "ConditionCheckItem", CELL_A, keys("")),
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
        provisions = ("control-plane", "cell-removal", "cell-recovery", "cell-data")
        # In tests below; and what DynamoDB's ARNs are not for.
        scaling = {"RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy"}
        looking = {"DescribeScalableTargets", "DescribeScalingPolicies", "GetCostAndUsage", "GetMetricData", "PutMetricData"}
        places = (
            # Control tables are deleted by no policy of these.
            ("src/store/dynamodb", 10, ("control-plane",), {"DeleteTable"}),
            ("src/cells", 10, provisions, scaling | looking | {"ListBackups"}),
            ("src/migration", 5, ("control-plane", "migrator"), set()),
            ("crates/cells-guard/src", 5, ("cell-data",), set()),
        )
        for place, least, roles, known in places:
            called = set()
            allowed = {action for role, action, _, _ in ALLOWED if role in roles}
            for path in (TOP / place).rglob("*.rs"):
                for name in re.findall(r"\b(?:client|dynamodb|scaling)\s*\.([a-z_]+)\(\)\s*\.", path.read_text()):
                    called.add("".join(word.capitalize() for word in name.split("_")))
            self.assertGreaterEqual(len(called), least, f"{place}: {sorted(called)}")
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
            *(("application", action, cell, keys(OWN, guard("a"))) for action in WRITES for cell in (CELL_A, CELL_B)),
            *(("application", action, cell, keys(LOG)) for action in ("UpdateItem", "DeleteItem", "BatchWriteItem") + READS for cell in (CELL_A, CELL_B)),
        ]
        asked = [simulation([ROLES[role], everything], action, table_arn(table), context) for role, action, table, context in cases]
        self.assertEqual(simulate(asked), ["ExplicitlyDenied"] * len(cases))

    def test_iam_takes_the_text_of_every_policy(self):
        # Tab, line feed, carriage return and U+0020 to U+00FF, and no escapes; 6144 characters beside white space, with long names filled in.
        for path in (DEPLOY / "iam").glob("*.json"):
            with self.subTest(path.stem):
                text = path.read_text()
                self.assertRegex(text, r"\A[\t\n\r\x20-\xff]+\Z")
                self.assertNotIn("\\u", text)
                filled = re.sub(r"<[A-Z_]+>", "x" * 32, text)
                self.assertLess(len(re.sub(r"\s", "", filled)), 6144)


if __name__ == "__main__":
    unittest.main()
