"""What runs celld without Kubernetes: the systemd unit, its configuration, and the image."""

import re
import tempfile
import tomllib
import unittest
from pathlib import Path

from support import DEPLOY, TOP, config_default, config_keys, run, seconds

UNIT = DEPLOY / "celld.service"

# Of ten; what is left is that a server has a network, and the host's root in read-only form. In tenths.
MOST_EXPOSED = 15


class Unit(unittest.TestCase):
    def settings(self):
        listed = re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)
        return dict(listed)

    def test_systemd_understands_it(self):
        # systemd looks for the program, which need not be on the machine that tests.
        text = UNIT.read_text()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / UNIT.name
            path.write_text(text.replace("/usr/bin/celld", "/bin/true"))
            self.assertNotEqual(path.read_text(), text)
            result = run("systemd-analyze", "verify", "--man=no", path)
        # Other units of the machine may be complained about; ours may not. An unknown key is only a message.
        own = [line for line in (result.stdout + result.stderr).splitlines() if UNIT.name in line]
        self.assertEqual((result.returncode, own), (0, []), result.stderr)

    def test_it_exposes_little(self):
        result = run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", UNIT)
        self.assertEqual(result.returncode, 0, result.stdout[-3000:] + result.stderr)

    def test_a_drain_ends_before_it_is_killed(self):
        config = tomllib.loads((DEPLOY / "celld.toml").read_text())
        drain = sum(seconds(config.get(key, config_default(key))) for key in ("drain_delay", "drain_timeout"))
        self.assertGreater(seconds(self.settings()["TimeoutStopSec"]), drain + 2)

    def test_the_snapshot_is_where_celld_may_write(self):
        config = tomllib.loads((DEPLOY / "celld.toml").read_text())
        self.assertEqual(config["data_dir"], f"/var/lib/{self.settings()['StateDirectory']}")


class Configuration(unittest.TestCase):
    def test_every_key_is_one_of_celld(self):
        config = tomllib.loads((DEPLOY / "celld.toml").read_text())
        self.assertEqual(set(config) - config_keys(), set())


class Image(unittest.TestCase):
    def instructions(self):
        lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
        return [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]

    def test_it_is_built_in_one_stage_and_run_in_another_without_a_shell(self):
        stages = [rest for word, rest in self.instructions() if word == "FROM"]
        self.assertEqual(len(stages), 2)
        self.assertIn("distroless", stages[1])
        self.assertTrue(stages[1].endswith(":nonroot"))
        # glibc of the build must not be newer than that of the image.
        self.assertIn("bookworm", stages[0])
        self.assertIn("debian12", stages[1])
        last = self.instructions()[[word for word, _ in self.instructions()].index("FROM", 1) :]
        self.assertNotIn("RUN", [word for word, _ in last])
        users = [rest for word, rest in last if word == "USER"]
        self.assertEqual(users, ["65532:65532"])

    def test_the_toolchain_is_one_that_cargo_accepts(self):
        rust = re.search(r"FROM rust:(\d+)\.(\d+)", (DEPLOY / "Dockerfile").read_text())
        manifest = tomllib.loads((TOP / "Cargo.toml").read_text())
        wanted = manifest["package"]["rust-version"].split(".")[:2]
        self.assertGreaterEqual([int(part) for part in rust.groups()], [int(part) for part in wanted])

    def test_all_that_the_build_reads_is_copied_and_nothing_that_is_not_there(self):
        copied = set()
        for word, rest in self.instructions():
            if word == "COPY" and not rest.startswith("--from"):
                copied |= set(rest.split()[:-1])
        for source in copied:
            self.assertTrue((TOP / source).exists(), source)
        manifest = (TOP / "Cargo.toml").read_text()
        named = {path.split("/")[0] for path in re.findall(r'path = "([^"]+)"', manifest)}
        self.assertLessEqual(named | {"Cargo.toml", "Cargo.lock", "build.rs", "proto"}, copied)
        allowed = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
        self.assertEqual(allowed, copied)

    def test_a_signal_reaches_celld(self):
        entry, = (rest for word, rest in self.instructions() if word == "ENTRYPOINT")
        self.assertEqual(entry, '["/usr/bin/celld"]')


if __name__ == "__main__":
    unittest.main()
