"""The templates, made in moto and described back.

moto's CloudFormation makes tables, keys, policies, roles and buckets. It passes over TTL, point-in-time recovery and encryption of a table, and
knows no scaling, alarms, backups, budgets, trails or endpoints. Of those the template's own values are looked at, as they are after
parameters and conditions; and where moto has the service, they are sent to its API, which refuses what botocore's model of
AWS does not allow, and described back.
"""

import copy
import json
import re
import unittest

from moto_server import MotoServer
from support import ACCOUNT, DEPLOY, PARTITION, REGION, Template, policy, run, tool

TEMPLATES = sorted((DEPLOY / "cloudformation").glob("*.yaml"))

MODES = {
    "PAY_PER_REQUEST": {"CellId": "cell-a"},
    "PROVISIONED": {
        "CellId": "cell-b",
        "BillingMode": "PROVISIONED",
        "MinReadCapacity": 7,
        "MaxReadCapacity": 70,
        "MinWriteCapacity": 9,
        "MaxWriteCapacity": 90,
        "TargetUtilization": 60,
    },
}
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms"
CELL = {
    "Prefix": "prod-",
    "Environment": "production",
    "AlarmTopicArn": TOPIC,
    "MonthlyBudgetUsd": 200,
    "BudgetEmail": "owner@example.com",
}

# What celld makes by itself (src/store/dynamodb/{schema,tables}.rs); that it does so is tested there, by its conformance suite.
CONTROL_TABLES = {
    "prod-CellMappings": {
        "key": {"PartitionKey": "HASH"},
        "indexes": {"CellIdIndex": {"CellId": "HASH"}},
        "attributes": {"PartitionKey": "S", "CellId": "S"},
    },
    "prod-CellControl": {
        "key": {"PK": "HASH", "SK": "RANGE"},
        "indexes": {},
        "attributes": {"PK": "S", "SK": "S"},
    },
}

server = None


def setUpModule():
    global server
    server = MotoServer()


def tearDownModule():
    server.stop()


def create(template):
    """Makes the stack and answers the logical ids that moto made something of, with their physical ids."""
    cloudformation = server.client("cloudformation")
    body = copy.deepcopy(template.body)
    for resource in body["Resources"].values():
        # moto fails on tags of a key; test_the_key looks at them in the template.
        if resource["Type"] == "AWS::KMS::Key":
            del resource["Properties"]["Tags"]
    parameters = [{"ParameterKey": key, "ParameterValue": str(value)} for key, value in template.given.items()]
    cloudformation.create_stack(
        StackName=template.stack,
        TemplateBody=json.dumps(body),
        Parameters=parameters,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
    )
    stack, = cloudformation.describe_stacks(StackName=template.stack)["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack["StackStatus"]
    resources = cloudformation.describe_stack_resources(StackName=template.stack)["StackResources"]
    # moto lists what it passed over, too, without a name.
    made = [resource for resource in resources if "LogicalResourceId" in resource]
    return {resource["LogicalResourceId"]: resource.get("PhysicalResourceId") for resource in made}


def keys(schema):
    return {element["AttributeName"]: element["KeyType"] for element in schema}


def tags(listed):
    return {tag["Key"]: tag["Value"] for tag in listed}


class Lint(unittest.TestCase):
    def test_cfn_lint_finds_nothing(self):
        self.assertEqual([path.name for path in TEMPLATES], ["cell.yaml", "control-plane.yaml"])
        result = run(tool("cfn-lint"), "--regions", "us-east-1", REGION, "--", *TEMPLATES)
        self.assertEqual((result.returncode, result.stdout), (0, ""), result.stdout + result.stderr)

    def test_what_holds_data_survives_its_stack(self):
        kept = {"AWS::DynamoDB::Table", "AWS::KMS::Key", "AWS::S3::Bucket", "AWS::Backup::BackupVault"}
        for template in (Template("cell.yaml", "s", **CELL, CellId="a"), Template("control-plane.yaml", "s", Environment="e")):
            for logical, resource in template.body["Resources"].items():
                if resource["Type"] in kept:
                    for policy_ in ("DeletionPolicy", "UpdateReplacePolicy"):
                        self.assertEqual(resource.get(policy_), "Retain", f"{logical} {policy_}")

    def test_cell_ids_and_prefixes_are_held_to_what_celld_takes(self):
        parameters = Template("cell.yaml", "s", **CELL, CellId="a").body["Parameters"]
        cell, prefix = (re.compile(parameters[name]["AllowedPattern"]) for name in ("CellId", "Prefix"))
        for good in ("a", "0", "cell-a", "c" * 63):
            self.assertTrue(cell.fullmatch(good), good)
        for bad in ("", "-a", "Cell", "cell_a", "c" * 64, "a b"):
            self.assertFalse(cell.fullmatch(bad), bad)
        for good in ("", "Prod_1.eu-", "p" * 64):
            self.assertTrue(prefix.fullmatch(good), good)
        for bad in ("a b", "a/b", "é", "p" * 65):
            self.assertFalse(prefix.fullmatch(bad), bad)


class TableChecks:
    def check_protection(self, template, name, described):
        """What every table has, control plane's or cell's."""
        self.assertTrue(described["DeletionProtectionEnabled"], name)
        # moto's CloudFormation passes over these three.
        table, = (t for t in template.resources("AWS::DynamoDB::Table").values() if t["TableName"] == name)
        self.assertEqual(table["TimeToLiveSpecification"], {"AttributeName": "TTL", "Enabled": True})
        self.assertEqual(table["PointInTimeRecoverySpecification"], {"PointInTimeRecoveryEnabled": True})
        sse = {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": template._attribute("Key", "Arn")}
        self.assertEqual(table["SSESpecification"], sse)

    def check_tags(self, arn, cell):
        listed = server.client("dynamodb").list_tags_of_resource(ResourceArn=arn)["Tags"]
        expected = {"cell": cell, "environment": "production", "managed-by": "cell-directory"}
        self.assertEqual({key: value for key, value in tags(listed).items() if not key.startswith("aws:")}, expected)

    def check_key(self, key_id, services):
        kms = server.client("kms")
        self.assertTrue(kms.get_key_rotation_status(KeyId=key_id)["KeyRotationEnabled"])
        document = kms.get_key_policy(KeyId=key_id, PolicyName="default")["Policy"]
        # From CloudFormation moto keeps the mapping, AWS a text.
        if isinstance(document, str):
            document = json.loads(document)
        for statement in document["Statement"]:
            if statement["Principal"] == {"AWS": "*"}:
                condition = statement["Condition"]["StringEquals"]
                self.assertEqual(condition["kms:CallerAccount"], ACCOUNT)
                via = [f"{service}.{REGION}.amazonaws.com" for service in services]
                self.assertEqual(condition["kms:ViaService"], via)
                self.assertFalse([action for action in statement["Action"] if action in ("kms:*", "kms:PutKeyPolicy")])

    def check_alarms(self, template):
        """Puts the alarms into moto's CloudWatch; answers (metric, dimensions) of each, dimensions as sorted values."""
        cloudwatch = server.client("cloudwatch")
        alarms = template.resources("AWS::CloudWatch::Alarm")
        for alarm in alarms.values():
            cloudwatch.put_metric_alarm(**alarm)
        names = [alarm["AlarmName"] for alarm in alarms.values()]
        self.assertEqual(len(set(names)), len(names), "two alarms of one name overwrite each other")
        described = cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]
        self.assertEqual({alarm["AlarmName"] for alarm in described}, set(names))
        watched = set()
        for alarm in described:
            self.assertEqual(alarm["AlarmActions"], [TOPIC], alarm["AlarmName"])
            self.assertEqual(alarm["OKActions"], [TOPIC], alarm["AlarmName"])
            self.assertEqual(alarm["TreatMissingData"], "notBreaching", alarm["AlarmName"])
            metrics = [query["MetricStat"]["Metric"] for query in alarm.get("Metrics", []) if "MetricStat" in query]
            # A metric's own period and statistic, or a sum over several by an expression that is what the alarm looks at.
            if metrics:
                returned = [query for query in alarm["Metrics"] if query.get("ReturnData")]
                self.assertEqual(len(returned), 1, alarm["AlarmName"])
                ids = {query["Id"] for query in alarm["Metrics"] if "MetricStat" in query}
                used = set(re.findall(r"\b[a-z]+\b", returned[0]["Expression"]))
                self.assertEqual(used, ids, alarm["AlarmName"])
                self.assertLessEqual(len(alarm["Metrics"]), 10, "an alarm takes ten metrics")
            for metric in metrics or [alarm]:
                self.assertEqual(metric["Namespace"], "AWS/DynamoDB")
                watched.add((metric["MetricName"], tuple(sorted(d["Value"] for d in metric["Dimensions"]))))
        return watched

    def check_backup(self, template, retention, arns):
        backup = server.client("backup")
        vault, = template.resources("AWS::Backup::BackupVault").values()
        self.assertEqual(vault["EncryptionKeyArn"], template._attribute("Key", "Arn"))
        backup.create_backup_vault(
            BackupVaultName=vault["BackupVaultName"],
            EncryptionKeyArn=vault["EncryptionKeyArn"],
            BackupVaultTags=vault["BackupVaultTags"],
        )
        plan, = template.resources("AWS::Backup::BackupPlan").values()
        rules = [dict(rule) for rule in plan["BackupPlan"]["BackupPlanRule"]]
        for rule in rules:
            # The one name that differs between CloudFormation and the API. By reference it is the vault of this template.
            self.assertEqual(rule.pop("TargetBackupVault"), template._ref("BackupVault"))
            rule["TargetBackupVaultName"] = vault["BackupVaultName"]
        made = backup.create_backup_plan(
            BackupPlan={"BackupPlanName": plan["BackupPlan"]["BackupPlanName"], "Rules": rules}
        )
        described = backup.get_backup_plan(BackupPlanId=made["BackupPlanId"])["BackupPlan"]
        rule, = described["Rules"]
        self.assertEqual(rule["Lifecycle"]["DeleteAfterDays"], retention)
        self.assertRegex(rule["ScheduleExpression"], r"^cron\(\d+ \d+ \* \* \? \*\)$")
        selection, = template.resources("AWS::Backup::BackupSelection").values()
        self.assertEqual(selection["BackupSelection"]["Resources"], arns)
        self.assertEqual(selection["BackupSelection"]["IamRoleArn"], template._attribute("BackupRole", "Arn"))


class Cell(TableChecks, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.templates, cls.made = {}, {}
        for mode, parameters in MODES.items():
            stack = f"cell-{mode.lower().replace('_', '-')}"
            cls.templates[mode] = Template("cell.yaml", stack, **CELL, **parameters)
            cls.made[mode] = create(cls.templates[mode])

    def each(self):
        for mode, template in self.templates.items():
            cell = template.given["CellId"]
            yield mode, template, cell, f"prod-CustomerData-{cell}"

    def test_the_table(self):
        dynamodb = server.client("dynamodb")
        for mode, template, cell, name in self.each():
            table = dynamodb.describe_table(TableName=name)["Table"]
            self.assertEqual(keys(table["KeySchema"]), {"PK": "HASH", "SK": "RANGE"})
            types = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
            self.assertEqual(types, {"PK": "S", "SK": "S", "CellId": "S"})
            self.assertEqual(table["BillingModeSummary"]["BillingMode"], mode)
            stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
            self.assertEqual(table["StreamSpecification"], stream)
            index, = table["GlobalSecondaryIndexes"]
            self.assertEqual(index["IndexName"], "CellIdIndex")
            self.assertEqual(keys(index["KeySchema"]), {"CellId": "HASH", "PK": "RANGE"})
            self.assertEqual(index["Projection"]["ProjectionType"], "KEYS_ONLY")
            if mode == "PROVISIONED":
                for of in (table, index):
                    throughput = of["ProvisionedThroughput"]
                    self.assertEqual((throughput["ReadCapacityUnits"], throughput["WriteCapacityUnits"]), (7, 9))
            else:
                resolved, = template.resources("AWS::DynamoDB::Table").values()
                self.assertNotIn("ProvisionedThroughput", resolved)
                self.assertNotIn("ProvisionedThroughput", resolved["GlobalSecondaryIndexes"][0])
            self.check_protection(template, name, table)
            self.check_tags(table["TableArn"], cell)

    def test_the_table_takes_a_tenants_items_and_finds_them_by_cell(self):
        dynamodb = server.client("dynamodb")
        for _, _, cell, name in self.each():
            for tenant in ("a", "b"):
                item = {"PK": f"CUSTOMER#{tenant}", "SK": "PROFILE", "CellId": cell}
                dynamodb.put_item(TableName=name, Item={key: {"S": value} for key, value in item.items()})
            found = dynamodb.query(
                TableName=name,
                IndexName="CellIdIndex",
                KeyConditionExpression="CellId = :cell AND begins_with(PK, :prefix)",
                ExpressionAttributeValues={":cell": {"S": cell}, ":prefix": {"S": "CUSTOMER#"}},
            )
            self.assertEqual([item["PK"]["S"] for item in found["Items"]], ["CUSTOMER#a", "CUSTOMER#b"])

    def test_deletion_protection_protects(self):
        dynamodb = server.client("dynamodb")
        for _, _, _, name in self.each():
            with self.assertRaises(dynamodb.exceptions.ClientError):
                dynamodb.delete_table(TableName=name)
            self.assertEqual(dynamodb.describe_table(TableName=name)["Table"]["TableStatus"], "ACTIVE")

    def test_the_key(self):
        for mode, template, _, _ in self.each():
            self.check_key(self.made[mode]["Key"], ["dynamodb", "backup"])
            key = template.resource("Key")
            self.assertEqual(tags(key["Tags"])["cell"], template.given["CellId"])

    def test_scaling_only_where_capacity_is_provisioned(self):
        template = self.templates["PAY_PER_REQUEST"]
        self.assertEqual(template.resources("AWS::ApplicationAutoScaling::ScalableTarget"), {})
        self.assertEqual(template.resources("AWS::ApplicationAutoScaling::ScalingPolicy"), {})

    def test_scaling_of_table_and_index(self):
        template = self.templates["PROVISIONED"]
        scaling = server.client("application-autoscaling")
        targets = template.resources("AWS::ApplicationAutoScaling::ScalableTarget")
        for target in targets.values():
            scaling.register_scalable_target(**target)
        for properties in template.resources("AWS::ApplicationAutoScaling::ScalingPolicy").values():
            # By reference to its target in CloudFormation, by the target's own properties in the API.
            logical = properties.pop("ScalingTargetId").removeprefix(f"{template.stack}-")
            target = targets[logical]
            named = {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
            scaling.put_scaling_policy(**properties, **named)

        table = "table/prod-CustomerData-cell-b"
        expected = {
            (table, "dynamodb:table:ReadCapacityUnits"): (7, 70, "DynamoDBReadCapacityUtilization"),
            (table, "dynamodb:table:WriteCapacityUnits"): (9, 90, "DynamoDBWriteCapacityUtilization"),
            (f"{table}/index/CellIdIndex", "dynamodb:index:ReadCapacityUnits"): (7, 70, "DynamoDBReadCapacityUtilization"),
            (f"{table}/index/CellIdIndex", "dynamodb:index:WriteCapacityUnits"): (9, 90, "DynamoDBWriteCapacityUtilization"),
        }
        described = scaling.describe_scalable_targets(ServiceNamespace="dynamodb")["ScalableTargets"]
        policies = scaling.describe_scaling_policies(ServiceNamespace="dynamodb")["ScalingPolicies"]
        self.assertEqual(len({p["PolicyName"] for p in policies}), len(policies))
        found = {}
        for target in described:
            at = (target["ResourceId"], target["ScalableDimension"])
            tracked, = (
                p["TargetTrackingScalingPolicyConfiguration"]
                for p in policies
                if (p["ResourceId"], p["ScalableDimension"]) == at
            )
            self.assertEqual(tracked["TargetValue"], 60)
            metric = tracked["PredefinedMetricSpecification"]["PredefinedMetricType"]
            found[at] = (target["MinCapacity"], target["MaxCapacity"], metric)
        self.assertEqual(found, expected)

    def test_alarms(self):
        for _, template, _, name in self.each():
            watched = self.check_alarms(template)
            for metric in ("ReadThrottleEvents", "WriteThrottleEvents", "ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits"):
                self.assertIn((metric, (name,)), watched)
            self.assertIn(("WriteThrottleEvents", ("CellIdIndex", name)), watched)
            for operation in ("GetItem", "Query", "PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"):
                self.assertIn(("SystemErrors", tuple(sorted((operation, name)))), watched)
            # An alarm on SystemErrors of the table as a whole would have no data, ever.
            self.assertNotIn(("SystemErrors", (name,)), watched)

    def test_alarms_without_a_topic(self):
        given = {**CELL, "AlarmTopicArn": ""}
        for alarm in Template("cell.yaml", "s", **given, CellId="a").resources("AWS::CloudWatch::Alarm").values():
            self.assertNotIn("AlarmActions", alarm)

    def test_backup(self):
        for _, template, _, name in self.each():
            arn = f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/{name}"
            self.check_backup(template, 35, [arn])

    def test_budget(self):
        budgets = server.client("budgets")
        for _, template, cell, name in self.each():
            budget, = template.resources("AWS::Budgets::Budget").values()
            properties = budget["Budget"]
            self.assertEqual(properties["CostFilters"], {"TagKeyValue": [f"user:cell${cell}"]})
            properties["BudgetLimit"]["Amount"] = str(properties["BudgetLimit"]["Amount"])
            budgets.create_budget(
                AccountId=ACCOUNT,
                Budget=properties,
                NotificationsWithSubscribers=budget["NotificationsWithSubscribers"],
            )
            described = budgets.describe_budget(AccountId=ACCOUNT, BudgetName=name)["Budget"]
            self.assertEqual(float(described["BudgetLimit"]["Amount"]), 200)
            self.assertEqual(described["TimeUnit"], "MONTHLY")
        none = {**CELL, "MonthlyBudgetUsd": 0}
        self.assertEqual(Template("cell.yaml", "s", **none, CellId="a").resources("AWS::Budgets::Budget"), {})

    def test_the_applications_policy_is_that_of_deploy_iam(self):
        iam = server.client("iam")
        for mode, _, cell, _ in self.each():
            arn = self.made[mode]["ApplicationPolicy"]
            version = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
            self.assertEqual(version, policy("application", PREFIX="prod-", CELL=cell))


class ControlPlane(TableChecks, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        ec2 = server.client("ec2")
        cls.vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [cls.vpc]}])["RouteTables"]
        cls.route_table = tables[0]["RouteTableId"]
        cls.template = Template(
            "control-plane.yaml",
            "control-plane",
            Prefix="prod-",
            Environment="production",
            AlarmTopicArn=TOPIC,
            BackupRetentionDays=90,
            VpcId=cls.vpc,
            RouteTableIds=cls.route_table,
            OidcProvider="oidc.example.com/id/ABC",
        )
        cls.made = create(cls.template)

    def test_the_tables_are_those_that_celld_makes(self):
        dynamodb = server.client("dynamodb")
        for name, expected in CONTROL_TABLES.items():
            with self.subTest(name):
                table = dynamodb.describe_table(TableName=name)["Table"]
                self.assertEqual(keys(table["KeySchema"]), expected["key"])
                types = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
                self.assertEqual(types, expected["attributes"])
                indexes = table.get("GlobalSecondaryIndexes", [])
                self.assertEqual({i["IndexName"]: keys(i["KeySchema"]) for i in indexes}, expected["indexes"])
                for index in indexes:
                    self.assertEqual(index["Projection"]["ProjectionType"], "KEYS_ONLY")
                self.assertEqual(table["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST")
                self.assertNotIn("StreamSpecification", table)
                self.check_protection(self.template, name, table)
                self.check_tags(table["TableArn"], "control-plane")

    def test_what_is_expected_of_the_tables_is_what_the_source_says(self):
        source = (DEPLOY.parent / "src/store/dynamodb/schema.rs").read_text()
        for name in ("CellIdIndex", "PartitionKey", "CellId", "PK", "SK", "TTL"):
            self.assertRegex(source, rf'pub const \w+: &str = "{name}";')
        tables = (DEPLOY.parent / "src/store/dynamodb/tables.rs").read_text()
        self.assertIn("table: names.mappings(), key: &[mapping::PARTITION_KEY], indexed: true", tables)
        self.assertIn("table: names.control(), key: &[control::PK, control::SK], indexed: false", tables)

    def test_the_key(self):
        self.check_key(self.made["Key"], ["dynamodb", "backup"])
        statements = {s["Sid"]: s for s in self.template.resource("Key")["KeyPolicy"]["Statement"]}
        trail, = self.template.resources("AWS::CloudTrail::Trail").values()
        arn = f"arn:{PARTITION}:cloudtrail:{REGION}:{ACCOUNT}:trail/{trail['TrailName']}"
        self.assertEqual(statements["EncryptTheTrail"]["Condition"], {"StringEquals": {"aws:SourceArn": arn}})

    def test_the_endpoint_lets_only_own_principals_through_to_own_tables(self):
        endpoint, = self.template.resources("AWS::EC2::VPCEndpoint").values()
        document = endpoint.pop("PolicyDocument")
        made = server.client("ec2").create_vpc_endpoint(**endpoint, PolicyDocument=json.dumps(document))
        self.assertEqual(made["VpcEndpoint"]["ServiceName"], f"com.amazonaws.{REGION}.dynamodb")
        self.assertEqual(made["VpcEndpoint"]["RouteTableIds"], [self.route_table])
        statement, listing = document["Statement"]
        for one in (statement, listing):
            self.assertEqual(one["Condition"], {"StringEquals": {"aws:PrincipalAccount": ACCOUNT}})
        self.assertEqual(listing["Action"], "dynamodb:ListBackups")
        own = f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/prod-"
        for resource in statement["Resource"]:
            self.assertTrue(resource.startswith(own), resource)
        without = Template("control-plane.yaml", "s", Environment="e")
        self.assertEqual(without.resources("AWS::EC2::VPCEndpoint"), {})

    def test_the_trail_records_writes_of_items(self):
        trail, = self.template.resources("AWS::CloudTrail::Trail").values()
        selectors = trail["AdvancedEventSelectors"]
        self.assertTrue(trail["IsLogging"] and trail["EnableLogFileValidation"])
        self.assertEqual(trail["KMSKeyId"], self.template._attribute("Key", "Arn"))
        cloudtrail, s3 = server.client("cloudtrail"), server.client("s3")
        s3.create_bucket(Bucket="trail", CreateBucketConfiguration={"LocationConstraint": REGION})
        cloudtrail.create_trail(Name="audit", S3BucketName="trail")
        cloudtrail.put_event_selectors(TrailName="audit", AdvancedEventSelectors=selectors)
        described = cloudtrail.get_event_selectors(TrailName="audit")["AdvancedEventSelectors"]
        data, = (
            {field["Field"]: field for field in selector["FieldSelectors"]}
            for selector in described
            if {"Field": "eventCategory", "Equals": ["Data"]} in selector["FieldSelectors"]
        )
        self.assertEqual(data["resources.type"]["Equals"], ["AWS::DynamoDB::Table"])
        self.assertEqual(data["readOnly"]["Equals"], ["false"])
        for table in ("CellMappings", "CellControl", "CustomerData-"):
            arn = f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/prod-{table}"
            self.assertIn(arn, data["resources.ARN"]["StartsWith"])
        reads = Template("control-plane.yaml", "s", Environment="e", AuditReads="true")
        trail, = reads.resources("AWS::CloudTrail::Trail").values()
        self.assertNotIn("readOnly", json.dumps(trail))

    def test_the_trails_bucket_is_encrypted_and_not_public(self):
        bucket, = self.template.resources("AWS::S3::Bucket").values()
        s3 = server.client("s3")
        described = s3.get_bucket_encryption(Bucket=self.made["AuditBucket"])["ServerSideEncryptionConfiguration"]
        rule, = described["Rules"]
        self.assertEqual(rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"], "aws:kms")
        self.assertEqual(set(bucket["PublicAccessBlockConfiguration"].values()), {True})
        self.assertEqual(len(bucket["PublicAccessBlockConfiguration"]), 4)
        self.assertEqual(bucket["OwnershipControls"], {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]})
        policy_, = self.template.resources("AWS::S3::BucketPolicy").values()
        statements = policy_["PolicyDocument"]["Statement"]
        for statement in statements:
            if statement["Effect"] == "Allow":
                self.assertEqual(statement["Principal"], {"Service": "cloudtrail.amazonaws.com"})
                self.assertIn("aws:SourceArn", statement["Condition"]["StringEquals"])
        denied = [s for s in statements if s["Effect"] == "Deny"]
        self.assertEqual([s["Condition"] for s in denied], [{"Bool": {"aws:SecureTransport": "false"}}])

    def test_alarms(self):
        watched = self.check_alarms(self.template)
        for name in CONTROL_TABLES:
            for metric in ("ReadThrottleEvents", "WriteThrottleEvents"):
                self.assertIn((metric, (name,)), watched)
            for operation in ("GetItem", "TransactWriteItems"):
                self.assertIn(("SystemErrors", tuple(sorted((operation, name)))), watched)
            self.assertNotIn(("SystemErrors", (name,)), watched)

    def test_backup(self):
        arns = [f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/{name}" for name in CONTROL_TABLES]
        self.check_backup(self.template, 90, arns)

    def test_policies_are_those_of_deploy_iam(self):
        iam = server.client("iam")
        for logical, role in (
            ("ResolverPolicy", "resolver"),
            ("ControlPlanePolicy", "control-plane"),
            ("CellRemovalPolicy", "cell-removal"),
            ("CellRecoveryPolicy", "cell-recovery"),
            ("CellDataPolicy", "cell-data"),
            ("MigratorPolicy", "migrator"),
        ):
            with self.subTest(role):
                arn = self.made[logical]
                version = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
                self.assertEqual(version, policy(role, PREFIX="prod-", SOURCE_CELL="*", TARGET_CELL="*"))

    def test_celld_takes_its_role_by_its_service_account_only(self):
        role = server.client("iam").get_role(RoleName=self.made["ControlPlaneRole"])["Role"]
        document = role["AssumeRolePolicyDocument"]
        statement, = document["Statement"]
        self.assertEqual(statement["Action"], "sts:AssumeRoleWithWebIdentity")
        expected = {
            "oidc.example.com/id/ABC:aud": "sts.amazonaws.com",
            "oidc.example.com/id/ABC:sub": "system:serviceaccount:cell-directory:cell-directory",
        }
        self.assertEqual(statement["Condition"], {"StringEquals": expected})


if __name__ == "__main__":
    unittest.main()
