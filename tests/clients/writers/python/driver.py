"""Does what tests/clients/writers/ asks of examples/writers/python/guarded.py: a line of JSON for each call on standard input, and a line
for what came of it on standard output. The first line says where DynamoDB is and which cells there are. The directory is a fake that
answers what each call lists, or a server whose address the first line gives.
"""

import json
import sys
import time

import grpc
from cells.v1 import admin_pb2, admin_pb2_grpc, directory_pb2, directory_pb2_grpc, types_pb2
from google.protobuf import json_format

import guarded


class NoAnswer(grpc.RpcError):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code


class Fake:
    """The directory and the registry."""

    def __init__(self, cells):
        self.cells = {cell["cellId"]: json_format.ParseDict(cell, types_pb2.Cell()) for cell in cells}
        self.routes, self.asked, self.takes = [], [], 0

    def GetCell(self, request, timeout):
        return admin_pb2.GetCellResponse(cell=self.cells[request.cell_id])

    def Resolve(self, request, timeout):
        time.sleep(self.takes)
        self.asked.append(request.min_epoch)
        if request.fallback != directory_pb2.FALLBACK_POLICY_REFUSE:
            raise AssertionError("a fallback is no route for this recipe")
        if not self.routes:
            raise NoAnswer(grpc.StatusCode.UNAVAILABLE)
        route = self.routes.pop(0) if len(self.routes) > 1 else self.routes[0]
        answer = json_format.ParseDict(route, directory_pb2.ResolveResponse())
        if answer.placement.epoch < request.min_epoch:
            raise NoAnswer(grpc.StatusCode.FAILED_PRECONDITION)
        return answer


def write_of(asked):
    params = asked["params"]
    if asked["action"] == "Put":
        return guarded.put(asked["table"], params.pop("Item"), **params)
    if asked["action"] == "Delete":
        return guarded.delete(asked["table"], params.pop("Key"), **params)
    return guarded.update(asked["table"], params.pop("Key"), repeatable=asked.get("repeatable", False), **params)


def do(writer, call):
    tenant, deadline = call["tenant"], call["deadlineSeconds"]
    try:
        if "get" in call:
            item = writer.get(tenant, call["get"]["table"], call["get"]["key"], deadline_s=deadline)
            return {"outcome": "done", "item": item}
        writer.write(tenant, *map(write_of, call["writes"]), deadline_s=deadline)
        return {"outcome": "done"}
    except guarded.OutcomeUnknown as error:
        return {"outcome": "unknown", "said": str(error)}
    except guarded.ConditionFailed as error:
        return {"outcome": "condition failed", "said": str(error)}
    except guarded.Refused as error:
        return {"outcome": "refused", "said": str(error)}
    except Exception as error:
        return {"outcome": "error", "said": f"{type(error).__name__}: {error}"}


def main():
    setup = json.loads(sys.stdin.readline())
    client = guarded.dynamodb_client(
        attempt_s=setup["attemptSeconds"],
        endpoint_url=setup["endpoint"],
        region_name="eu-west-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    fake = Fake(setup.get("cells", []))
    directory = admin = fake
    if "directory" in setup:
        # A proxy of the caller's environment has no business between two programs of one machine.
        channel = grpc.insecure_channel(setup["directory"], options=[("grpc.enable_http_proxy", 0)])
        directory, admin = directory_pb2_grpc.CellDirectoryStub(channel), admin_pb2_grpc.CellAdminStub(channel)
    writer = guarded.Writer(directory, admin, lambda cell: client)
    for line in sys.stdin:
        call = json.loads(line)
        fake.routes, fake.asked, fake.takes = call["routes"], [], call["resolveSeconds"]
        answer = do(writer, call)
        print(json.dumps({**answer, "asked": fake.asked}), flush=True)


main()
