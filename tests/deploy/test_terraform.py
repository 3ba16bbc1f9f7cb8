"""The Terraform modules. The AWS provider is not to be had everywhere, so of what needs it only the form is checked, and what its values
have in common with the other forms of the same thing; names, ARNs, tags and policies come from modules without a provider,
which are tested."""

import re
import shutil
import tempfile
import unittest
from pathlib import Path

from support import DEPLOY, run, tool

MODULES = DEPLOY / "terraform"

# No settings of the caller's: neither plugins nor a configuration file.
ALONE = {"TF_CLI_CONFIG_FILE": "/dev/null", "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}


def terraform(*arguments, cwd):
    return run(tool("terraform"), *arguments, cwd=cwd, env=ALONE)


class Modules(unittest.TestCase):
    def test_there_are_modules(self):
        names = sorted(path.parent.name for path in MODULES.glob("*/main.tf"))
        self.assertEqual(names, ["alarms", "backup", "cell", "control-plane", "naming", "policies"])

    def test_format(self):
        result = terraform("fmt", "-check", "-recursive", "-diff", "-no-color", cwd=MODULES)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_modules_without_a_provider(self):
        with tempfile.TemporaryDirectory() as folder:
            # With the policies that the modules read, at the same distance.
            copy = Path(folder) / "deploy"
            shutil.copytree(DEPLOY / "iam", copy / "iam")
            shutil.copytree(MODULES, copy / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
            for name, least in (("naming", 17), ("policies", 4)):
                module = copy / "terraform" / name
                init = terraform("init", "-backend=false", "-no-color", cwd=module)
                self.assertEqual(init.returncode, 0, init.stdout + init.stderr)
                result = terraform("test", "-no-color", cwd=module)
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
                # A test command that finds no test succeeds, too.
                passed = re.search(r"Success! (\d+) passed, 0 failed", result.stdout)
                self.assertGreaterEqual(int(passed.group(1)), least, name)

    def test_every_variable_that_a_module_is_given_exists_there_and_nothing_required_is_missing(self):
        declared = {}
        for path in MODULES.glob("*/*.tf"):
            for name, body in re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', path.read_text(), re.MULTILINE | re.DOTALL):
                declared.setdefault(path.parent.name, {})[name] = not re.search(r"^  default\b", body, re.MULTILINE)
        calls = 0
        for path in MODULES.glob("*/*.tf"):
            for name, body in re.findall(r'^module "(\w+)" \{\n(.*?)^\}', path.read_text(), re.MULTILINE | re.DOTALL):
                source = re.search(r'source\s*= "\.\./([\w-]+)"', body).group(1)
                given = set(re.findall(r"^  (\w+)\s*=", body, re.MULTILINE)) - {"source", "for_each", "count"}
                required = {variable for variable, needed in declared[source].items() if needed}
                self.assertEqual(given - set(declared[source]), set(), f"{path.parent.name}, module {name}")
                self.assertEqual(required - given, set(), f"{path.parent.name}, module {name}")
                calls += 1
        self.assertEqual(calls, 9)

    def test_every_variable_and_local_that_is_used_is_declared_and_the_other_way_round(self):
        for module in {path.parent for path in MODULES.glob("*/*.tf")}:
            text = "\n".join(path.read_text() for path in module.glob("*.tf"))
            variables = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
            self.assertEqual(set(re.findall(r"\bvar\.(\w+)", text)), variables, module.name)
            blocks = re.findall(r"^locals \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
            values = {name for block in blocks for name in re.findall(r"^  (\w+)\s*=", block, re.MULTILINE)}
            self.assertEqual(set(re.findall(r"\blocal\.(\w+)", text)), values, module.name)

    def test_every_resource_that_is_referred_to_is_declared(self):
        for module in {path.parent for path in MODULES.glob("*/*.tf")}:
            text = "\n".join(path.read_text() for path in module.glob("*.tf"))
            made = {".".join(pair) for pair in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)}
            looked_up = {".".join(pair) for pair in re.findall(r'^data "(\w+)" "(\w+)"', text, re.MULTILINE)}
            self.assertEqual(set(re.findall(r"\bdata\.(\w+\.\w+)", text)) - looked_up, set(), module.name)
            references = re.findall(r"(?<![\w.\"])(aws_\w+\.\w+)", re.sub(r"\bdata\.\w+\.\w+", "", text))
            self.assertEqual(set(references) - made, set(), module.name)
            modules = set(re.findall(r'^module "(\w+)"', text, re.MULTILINE))
            self.assertEqual(set(re.findall(r"\bmodule\.(\w+)", text)) - modules, set(), module.name)

    def test_outputs_of_naming_that_are_used_exist(self):
        outputs = set(re.findall(r'^output "(\w+)"', (MODULES / "naming/main.tf").read_text(), re.MULTILINE))
        used = set()
        for path in MODULES.glob("*/*.tf"):
            used |= set(re.findall(r"\bmodule\.naming\.(\w+)", path.read_text()))
        self.assertTrue(used)
        self.assertEqual(used - outputs, set())

    def test_what_holds_data_is_not_destroyed(self):
        kept = ("aws_kms_key", "aws_dynamodb_table", "aws_s3_bucket")
        found = 0
        for path in MODULES.glob("*/*.tf"):
            blocks = re.findall(r'^resource "(\w+)" "\w+" \{\n(.*?)^\}', path.read_text(), re.MULTILINE | re.DOTALL)
            for kind, body in blocks:
                if kind in kept:
                    found += 1
                    self.assertRegex(body, r"prevent_destroy\s*= true", f"{path.parent.name} {kind}")
                if kind == "aws_dynamodb_table":
                    self.assertRegex(body, r'attribute_name = "TTL"\n\s*enabled\s*= true')
                    self.assertRegex(body, r"point_in_time_recovery \{\n\s*enabled = true")
                    self.assertRegex(body, r"server_side_encryption \{\n\s*enabled\s*= true\n\s*kms_key_arn")
                    self.assertRegex(body, r"deletion_protection_enabled = var\.deletion_protection")
                if kind == "aws_kms_key":
                    self.assertRegex(body, r"enable_key_rotation = true")
        self.assertEqual(found, 6)


if __name__ == "__main__":
    unittest.main()
