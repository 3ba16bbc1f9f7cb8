"""The manifests as kustomize builds them, against Kubernetes' schemas and against what celld needs."""

import tempfile
import unittest
from pathlib import Path

import yaml

from support import DEPLOY, config_default, config_keys, run, seconds, tool

FOLDERS = ("base", "overlays/production")

# src/telemetry/pipeline.rs gives the last export this long.
TELEMETRY_FLUSH_SECONDS = 2
MARGIN_SECONDS = 5


def build(folder):
    result = run(tool("kustomize"), "build", DEPLOY / "kubernetes" / folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = {folder: build(folder) for folder in FOLDERS}
        cls.objects = {}
        for folder, text in cls.text.items():
            cls.objects[folder] = {}
            for one in yaml.safe_load_all(text):
                assert one["kind"] not in cls.objects[folder], "two of a kind: these tests look at one"
                cls.objects[folder][one["kind"]] = one

    def each(self, *kinds):
        for folder in FOLDERS:
            yield (folder, *(self.objects[folder][kind] for kind in kinds))

    def pods(self):
        for folder, deployment in self.each("Deployment"):
            template = deployment["spec"]["template"]
            container, = template["spec"]["containers"]
            yield folder, template, container

    def environment(self, folder, container):
        """All that the container finds in its environment, Secrets' values left out."""
        config = self.objects[folder]["ConfigMap"]
        source, = container["envFrom"]
        # The generated name, hash and all: a reference that kustomize did not follow would leave the pod waiting for ever.
        self.assertEqual(source["configMapRef"]["name"], config["metadata"]["name"])
        return {**config["data"], **{variable["name"]: None for variable in container["env"]}}

    def test_every_object_is_valid(self):
        for folder, text in self.text.items():
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "built.yaml"
                path.write_text(text)
                result = run(tool("kubernetes-validate"), "--strict", path)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            passed = (result.stdout + result.stderr).count(" passed for resource ")
            self.assertEqual(passed, len(self.objects[folder]))

    def test_what_there_is(self):
        kinds = {"Namespace", "ServiceAccount", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
        for folder in FOLDERS:
            self.assertEqual(set(self.objects[folder]), kinds)
            for kind, one in self.objects[folder].items():
                if kind != "Namespace":
                    self.assertEqual(one["metadata"]["namespace"], "cell-directory", kind)

    def test_the_container_can_do_next_to_nothing(self):
        for folder, template, container in self.pods():
            pod, own = template["spec"]["securityContext"], container["securityContext"]
            self.assertIs(pod["runAsNonRoot"], True)
            self.assertGreater(pod["runAsUser"], 0)
            self.assertEqual(pod["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertIs(own["readOnlyRootFilesystem"], True)
            self.assertIs(own["allowPrivilegeEscalation"], False)
            self.assertEqual(own["capabilities"], {"drop": ["ALL"]})
            self.assertIs(template["spec"]["automountServiceAccountToken"], False)
            self.assertNotIn("hostNetwork", template["spec"])
            self.assertIn("memory", container["resources"]["limits"])
            self.assertIn("cpu", container["resources"]["requests"])

    def test_the_only_writable_place_is_where_celld_writes(self):
        for folder, template, container in self.pods():
            mount, = container["volumeMounts"]
            self.assertEqual(mount["mountPath"], self.environment(folder, container)["CELLD_DATA_DIR"])
            volume, = template["spec"]["volumes"]
            self.assertEqual(volume["name"], mount["name"])
            self.assertIn("sizeLimit", volume["emptyDir"])

    def test_every_variable_is_a_key_of_celld(self):
        known = {f"CELLD_{key.upper()}" for key in config_keys()}
        for folder, _, container in self.pods():
            environment = self.environment(folder, container)
            self.assertEqual(set(environment) - known, set(), "celld refuses to start on these")
            self.assertEqual(container["args"], ["serve"])

    def test_no_service_puts_variables_into_the_pod(self):
        for _, template, _ in self.pods():
            self.assertIs(template["spec"]["enableServiceLinks"], False)

    def test_every_replica_is_reached_where_it_listens(self):
        for folder, template, container in self.pods():
            listen = self.environment(folder, container)["CELLD_LISTEN"]
            host, port = listen.rsplit(":", 1)
            self.assertEqual(host, "0.0.0.0")
            ports = {p["name"]: p["containerPort"] for p in container["ports"]}
            self.assertEqual(ports, {"grpc": int(port)})
            self.assertEqual(container["readinessProbe"]["grpc"], {"port": int(port)})
            service = self.objects[folder]["Service"]["spec"]
            self.assertEqual(service["clusterIP"], "None")
            served, = service["ports"]
            self.assertEqual(ports[served["targetPort"]], int(port))
            ingress, = self.objects[folder]["NetworkPolicy"]["spec"]["ingress"]
            self.assertEqual(ingress["ports"], [{"protocol": "TCP", "port": int(port)}])

    def test_nobody_is_killed_for_not_being_ready(self):
        for _, _, container in self.pods():
            for probe in ("livenessProbe", "startupProbe"):
                # Health is NOT_SERVING while DynamoDB is waited for and while calls are drained.
                self.assertNotIn("grpc", container[probe], probe)
                self.assertEqual(container[probe]["tcpSocket"], {"port": "grpc"}, probe)

    def test_a_plaintext_port_is_asked_for(self):
        for folder, _, container in self.pods():
            environment = self.environment(folder, container)
            plaintext = environment.get("CELLD_INSECURE") == "true"
            self.assertNotEqual(plaintext, "CELLD_TLS_CERT" in environment, "either TLS or insecure, or celld does not start")
            # The kubelet's gRPC probe speaks no TLS.
            self.assertEqual(plaintext, "grpc" in container["readinessProbe"])

    def test_a_drain_ends_before_the_pod_is_killed(self):
        for folder, template, container in self.pods():
            environment = self.environment(folder, container)
            value = lambda key: seconds(environment.get(f"CELLD_{key.upper()}", config_default(key)))
            hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            needed = hook + value("drain_delay") + value("drain_timeout") + TELEMETRY_FLUSH_SECONDS + MARGIN_SECONDS
            self.assertGreaterEqual(template["spec"]["terminationGracePeriodSeconds"], needed)
            # Readiness fails, and endpoints go, while calls are still taken.
            probe = container["readinessProbe"]
            noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
            self.assertGreater(value("drain_delay") + hook, noticed)

    def test_selectors_select_the_pods(self):
        for folder, deployment, service, budget, network in self.each("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            selectors = {
                "Deployment": deployment["spec"]["selector"]["matchLabels"],
                "Service": service["spec"]["selector"],
                "PodDisruptionBudget": budget["spec"]["selector"]["matchLabels"],
                "NetworkPolicy": network["spec"]["podSelector"]["matchLabels"],
            }
            for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
                selectors[f"spread by {spread['topologyKey']}"] = spread["labelSelector"]["matchLabels"]
            for of, selector in selectors.items():
                self.assertTrue(selector, f"{of}: selects everything")
                self.assertLessEqual(selector.items(), labels.items(), of)

    def test_a_disruption_and_a_rollout_leave_replicas(self):
        for folder, deployment, budget in self.each("Deployment", "PodDisruptionBudget"):
            self.assertGreaterEqual(deployment["spec"]["replicas"], 2)
            self.assertLess(budget["spec"]["maxUnavailable"], deployment["spec"]["replicas"])
            self.assertGreater(budget["spec"]["maxUnavailable"], 0, "no node could ever be drained")
            self.assertEqual(deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0)
            keys = [c["topologyKey"] for c in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]]
            self.assertEqual(sorted(keys), ["kubernetes.io/hostname", "topology.kubernetes.io/zone"])

    def test_the_network_is_closed_but_for_what_is_needed(self):
        for folder, network in self.each("NetworkPolicy"):
            spec = network["spec"]
            self.assertEqual(sorted(spec["policyTypes"]), ["Egress", "Ingress"])
            for rule in spec["ingress"]:
                self.assertTrue(rule.get("from"), "open to everybody")
            ports = set()
            for rule in spec["egress"]:
                self.assertTrue(rule.get("to"), "open to everywhere")
                ports |= {port["port"] for port in rule["ports"]}
                for peer in rule["to"]:
                    if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                        self.assertEqual({port["port"] for port in rule["ports"]}, {443})
                        self.assertIn("169.254.0.0/16", peer["ipBlock"]["except"])
            collector = self.objects[folder]["ConfigMap"]["data"]["CELLD_OTLP_ENDPOINT"]
            self.assertEqual(ports, {53, 443, int(collector.rsplit(":", 1)[1])})

    def test_the_role_is_that_of_the_service_account(self):
        for folder, deployment, account in self.each("Deployment", "ServiceAccount"):
            self.assertEqual(deployment["spec"]["template"]["spec"]["serviceAccountName"], account["metadata"]["name"])
            self.assertIn("eks.amazonaws.com/role-arn", account["metadata"]["annotations"])
            # The default of ServiceAccount in control-plane.yaml.
            self.assertEqual(f"{account['metadata']['namespace']}:{account['metadata']['name']}", "cell-directory:cell-directory")
        base, overlay = (self.objects[f]["ServiceAccount"]["metadata"]["annotations"] for f in FOLDERS)
        self.assertNotEqual(base, overlay, "the overlay sets its role")

    def test_the_overlay_sets_what_a_deployment_needs(self):
        config = self.objects["overlays/production"]["ConfigMap"]["data"]
        for key in ("CELLD_REGION", "CELLD_TABLE_PREFIX", "CELLD_LISTEN"):
            self.assertTrue(config[key], key)
        container, = self.objects["overlays/production"]["Deployment"]["spec"]["template"]["spec"]["containers"]
        self.assertRegex(container["image"], r"^[^:]+:\d+\.\d+\.\d+$", "an image without a version changes under the pods")


if __name__ == "__main__":
    unittest.main()
