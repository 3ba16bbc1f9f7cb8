"""Alerts and dashboard: their rules by promtool, their names against the metrics that the code exports."""

import json
import re
import unittest

import yaml

from support import DEPLOY, TOP, run, tool

ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
ALERT_TESTS = TOP / "tests/deploy/alerts.test.yaml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"

# Names that OpenTelemetry defines come from its crate; this is the one that is used.
SEMANTIC = {"RPC_SERVER_CALL_DURATION": "rpc.server.call.duration"}

INSTRUMENT = re.compile(
    r"\.(?:u64|f64|i64)_(?P<kind>observable_counter|observable_gauge|up_down_counter|counter|histogram|gauge)\(\s*(?P<name>\"[^\"]+\"|\w+)\s*\)"
    r"\s*\.with_unit\(\"(?P<unit>[^\"]+)\"\)"
)


def exported():
    """The series that Prometheus makes of the instruments in the code.

    By the rules of OpenTelemetry's compatibility document: dots become underscores; a unit s is spelled out at the end, a unit in braces
    is left out; a sum that only grows ends in _total; a histogram is three series.
    """
    names, made = set(), 0
    for path in sorted((TOP / "src").rglob("*.rs")):
        source = path.read_text()
        constants = dict(re.findall(r'pub const (\w+): &str = "([^"]+)";', source))
        instruments = list(INSTRUMENT.finditer(source))
        # An instrument in a form that is not understood here would silently be none.
        makers = re.findall(r"\.(?:u64|f64|i64)_\w*(?:counter|histogram|gauge)\(", source)
        assert len(instruments) == len(makers), f"{path}: an instrument is not understood"
        for instrument in instruments:
            name = instrument["name"].strip('"') if '"' in instrument["name"] else {**SEMANTIC, **constants}[instrument["name"]]
            name = name.replace(".", "_")
            unit = instrument["unit"]
            assert unit == "s" or unit.startswith("{"), f"{path}: unit {unit} is not known to the tests"
            if unit == "s":
                name += "_seconds"
            kind = instrument["kind"]
            if kind in ("counter", "observable_counter"):
                names.add(f"{name}_total")
            elif kind == "histogram":
                names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
            else:
                names.add(name)
            made += 1
    assert made >= 12, f"only {made} instruments were found"
    return names


def labels():
    """The attributes that the code puts on metrics, as labels."""
    telemetry = "\n".join(path.read_text() for path in (TOP / "src/telemetry").glob("*.rs"))
    found = set(re.findall(r'KeyValue::new\("(\w+)"', telemetry))
    constants = dict(re.findall(r'pub const (\w+): &str = "([^"]+)";', telemetry))
    found |= {constants[name] for name in re.findall(r"KeyValue::new\(names::(\w+)", telemetry)}
    found |= {"rpc.method", "rpc.system.name", "rpc.response.status_code", "error.type"}
    # Resource attributes, the histogram's own, and what Grafana and label_replace bring.
    return {name.replace(".", "_") for name in found} | {"job", "instance", "le"}


def used(expression):
    """The metrics and the labels of an expression."""
    plain = re.sub(r"\"(?:[^\"\\]|\\.)*\"", '""', expression)
    metrics = set(re.findall(r"\b(?:cells?|rpc|celld)_[a-z_]+(?=\s*[{\[]|\s*$|\s*\))", re.sub(r"\b(?:by|without)\s*\([^)]*\)", "", plain)))
    found = set()
    for group in re.findall(r"\{([^}]*)\}", plain):
        found |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", group))
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", plain):
        found |= {label.strip() for label in group.split(",")}
    return metrics, found


def rules():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


class Alerts(unittest.TestCase):
    def test_rules_are_well_formed(self):
        result = run(tool("promtool"), "check", "rules", ALERTS)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_rules_fire_when_they_have_to(self):
        result = run(tool("promtool"), "test", "rules", ALERT_TESTS.name, cwd=ALERT_TESTS.parent)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_every_alert_is_tested_firing_and_quiet(self):
        firing, quiet = set(), set()
        for case in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                (firing if check.get("exp_alerts") else quiet).add(check["alertname"])
        names = {rule["alert"] for rule in rules()}
        self.assertEqual((firing, quiet), (names, names))

    def test_every_alert_says_what_to_do(self):
        for rule in rules():
            self.assertEqual(set(rule["annotations"]), {"summary", "action"}, rule["alert"])
            self.assertIn(rule["labels"]["severity"], ("page", "ticket"), rule["alert"])


class Names(unittest.TestCase):
    def check(self, where, expression):
        metrics, found = used(expression)
        self.assertTrue(metrics, f"{where}: no metric found in {expression}")
        self.assertEqual(metrics - exported(), set(), f"{where}: celld exports no such metric")
        self.assertEqual(found - labels() - {"signal"}, set(), f"{where}: celld's metrics have no such label")

    def test_alerts(self):
        for rule in rules():
            self.check(rule["alert"], rule["expr"])

    def test_alert_tests(self):
        for case in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
            for series in case["input_series"]:
                if not series["series"].startswith("up{"):
                    self.check(case["name"], series["series"])

    def test_dashboard(self):
        self.assertGreaterEqual(len(panels()), 12)
        for panel in panels():
            self.assertTrue(panel["targets"], panel["title"])
            for target in panel["targets"]:
                self.check(panel["title"], target["expr"])
        for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                self.check(variable["name"], re.search(r"label_values\((.*), \w+\)", variable["query"]["query"]).group(1))

    def test_every_metric_is_on_the_dashboard(self):
        shown = set()
        for panel in panels():
            for target in panel["targets"]:
                shown |= used(target["expr"])[0]
        missing = {name for name in exported() if not name.endswith(("_sum", "_count"))} - shown
        self.assertEqual(missing, set())


class Dashboard(unittest.TestCase):
    def test_expressions_parse(self):
        # As recording rules, with Grafana's variables filled in.
        listed = []
        for panel in panels():
            for at, target in enumerate(panel["targets"]):
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
                self.assertNotIn("$", expression, panel["title"])
                listed.append({"record": f"panel_{panel['id']}_{at}", "expr": expression})
        text = yaml.safe_dump({"groups": [{"name": "dashboard", "rules": listed}]})
        # Not by standard input: Debian's promtool reads files only.
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            result = run(tool("promtool"), "check", "rules", file.name)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_panels_do_not_overlap(self):
        dashboard = json.loads(DASHBOARD.read_text())
        self.assertEqual(len({panel["id"] for panel in dashboard["panels"]}), len(dashboard["panels"]))
        cells = set()
        for panel in dashboard["panels"]:
            grid = panel["gridPos"]
            self.assertLessEqual(grid["x"] + grid["w"], 24, panel["title"])
            own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
            self.assertEqual(cells & own, set(), panel["title"])
            cells |= own


if __name__ == "__main__":
    unittest.main()
