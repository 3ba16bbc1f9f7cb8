"""What the tests of deploy/ share: where things are, tools, and the little of CloudFormation that is needed to read a template."""

import json
import os
import re
import subprocess
from pathlib import Path

import yaml

TOP = Path(__file__).resolve().parents[2]
DEPLOY = TOP / "deploy"
TOOLS = Path(os.environ.get("CELLD_TEST_TOOLS", TOP / "target" / "tools")).resolve()

ACCOUNT = "123456789012"
REGION = "eu-west-1"
PARTITION = "aws"

# Longest time for any one tool; each takes seconds.
TOOL_SECONDS = 120


def tool(name):
    """A tool that scripts/install-test-tools installed, and nothing of the same name from elsewhere."""
    for folder in (TOOLS / "bin", TOOLS / "python" / "bin"):
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    raise AssertionError(f"{name} is not in {TOOLS}: run scripts/install-test-tools deploy")


def run(*command, cwd=TOP, text=None, env=None):
    """Runs a command and answers its result, whatever its status."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        input=text,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
    )


def config_keys():
    """The keys of celld's configuration: the public fields of `Config` in src/config/keys.rs."""
    source = (TOP / "src/config/keys.rs").read_text()
    body = re.search(r"pub struct Config \{\n(.*?)\n\}", source, re.DOTALL).group(1)
    keys = set(re.findall(r"^    pub (\w+):", body, re.MULTILINE))
    assert {"listen", "table_prefix", "drain_timeout"} <= keys, "src/config/keys.rs is read wrongly"
    return keys


def config_default(key):
    source = (TOP / "src/config/keys.rs").read_text()
    field = re.search(rf"#\[arg\(([^]]*)\)\]\s*pub {key}:", source).group(1)
    return re.search(r'default_value = "([^"]*)"', field).group(1)


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", duration).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def policy(role, **placeholders):
    """A policy of deploy/iam with its placeholders filled in; one that is left is an error."""
    values = {"PARTITION": PARTITION, "REGION": REGION, "ACCOUNT": ACCOUNT, **placeholders}
    text = (DEPLOY / "iam" / f"{role}.json").read_text()
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    left = re.findall(r"<[A-Z_]+>", text)
    assert not left, f"{role}.json has placeholders that nobody fills in: {left}"
    return json.loads(text)


class _Loader(yaml.SafeLoader):
    pass


def _function(loader, suffix, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)

_NOTHING = object()


class Template:
    """A template with its parameters filled in. Knows the functions that the templates here use, and fails on any other."""

    def __init__(self, name, stack, **parameters):
        self.path = DEPLOY / "cloudformation" / name
        self.body = yaml.load(self.path.read_text(), _Loader)
        self.stack = stack
        self.given = parameters
        self.values = {
            "AWS::Region": REGION,
            "AWS::AccountId": ACCOUNT,
            "AWS::Partition": PARTITION,
            "AWS::StackName": stack,
        }
        for key, parameter in self.body["Parameters"].items():
            value = parameters.get(key, parameter.get("Default"))
            assert value is not None, f"{name}: parameter {key} has no value"
            if parameter["Type"] == "Number":
                value = float(value) if "." in str(value) else int(value)
            elif parameter["Type"] == "CommaDelimitedList":
                value = value.split(",")
            self.values[key] = value

    def resources(self, kind):
        """The resources of a type that would be made, by logical id, with their properties as CloudFormation would see them."""
        made = {}
        for logical, resource in self.body["Resources"].items():
            if resource["Type"] == kind and self._holds(resource.get("Condition")):
                made[logical] = self._value(resource["Properties"])
        return made

    def resource(self, logical):
        return self._value(self.body["Resources"][logical]["Properties"])

    def _holds(self, condition):
        return condition is None or self._truth(self.body["Conditions"][condition])

    def _truth(self, value):
        (function, argument), = value.items()
        if function == "Fn::Equals":
            left, right = (str(self._value(side)) for side in argument)
            return left == right
        if function == "Fn::Not":
            return not self._truth(argument[0])
        if function == "Fn::And":
            return all(self._truth(part) for part in argument)
        if function == "Condition":
            return self._holds(argument)
        raise AssertionError(f"{self.path.name}: condition {function} is not known to the tests")

    def _value(self, value):
        if isinstance(value, list):
            return [item for item in map(self._value, value) if item is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (function, argument), = value.items()
            if function == "Ref":
                return self._ref(argument)
            if function == "Fn::GetAtt":
                return self._attribute(*argument)
            if function == "Fn::If":
                return self._value(argument[1 if self._holds(argument[0]) else 2])
            if function == "Fn::Join":
                return argument[0].join(str(part) for part in self._value(argument[1]))
            if function == "Fn::Sub":
                return re.sub(r"\$\{([^}!]+)\}", self._substitute, argument)
            assert not function.startswith("Fn::"), f"{function} is not known to the tests"
        members = ((key, self._value(member)) for key, member in value.items())
        return {key: member for key, member in members if member is not _NOTHING}

    def _substitute(self, match):
        name = match.group(1)
        return str(self._attribute(*name.split(".", 1)) if "." in name else self._ref(name))

    def _ref(self, name):
        if name == "AWS::NoValue":
            return _NOTHING
        if name in self.values:
            return self.values[name]
        resource = self.body["Resources"][name]
        if resource["Type"] == "AWS::DynamoDB::Table":
            return self._value(resource["Properties"]["TableName"])
        return f"{self.stack}-{name}"

    def _attribute(self, name, attribute):
        kind = self.body["Resources"][name]["Type"]
        reference = self._ref(name)
        arns = {
            "AWS::DynamoDB::Table": f"arn:{PARTITION}:dynamodb:{REGION}:{ACCOUNT}:table/{reference}",
            "AWS::KMS::Key": f"arn:{PARTITION}:kms:{REGION}:{ACCOUNT}:key/{reference}",
            "AWS::IAM::Role": f"arn:{PARTITION}:iam::{ACCOUNT}:role/{reference}",
            "AWS::S3::Bucket": f"arn:{PARTITION}:s3:::{reference.lower()}",
        }
        assert attribute == "Arn", f"{name}.{attribute} is not known to the tests"
        return arns[kind]
