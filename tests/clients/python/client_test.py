"""What another team's Python program meets: stubs generated from proto/, and a running celld.

    client_test.py HOST:PORT

Every check runs, whatever became of the others; the exit status is 1 if any failed. Keys are new in each run, so that the
same server can be used again.
"""

import sys
import threading
import time
import traceback
import uuid

import grpc
from cells.v1 import admin_pb2, admin_pb2_grpc, directory_pb2, directory_pb2_grpc, types_pb2
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

# No call but the one that is to miss its deadline comes near this.
CALL_TIMEOUT_S = 10
# How long the list, which reads an eventually consistent index, may take to show what was just written.
LIST_LAG_S = 5
# Pages of one listing: a server that hands out tokens for ever must not hang the test.
MAX_PAGES = 10_000
ERROR_DOMAIN = "cells.v1"


class Failure(Exception):
    """A check that did not hold."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


def expect_equal(what, actual, wanted):
    expect(actual == wanted, f"{what}: {actual!r}, wanted {wanted!r}")


def source_name(source):
    return types_pb2.DecisionSource.Name(source)


class Client:
    def __init__(self, channel):
        self.directory = directory_pb2_grpc.CellDirectoryStub(channel)
        self.admin = admin_pb2_grpc.CellAdminStub(channel)
        self.run = uuid.uuid4().hex
        self.cells = self.list_cells()

    def key(self, name):
        return f"python-{self.run}-{name}"

    def list_cells(self):
        """The cells that take new tenants."""
        cells, token = [], ""
        for _ in range(MAX_PAGES):
            request = admin_pb2.ListCellsRequest(page_size=2, page_token=token)
            page = self.admin.ListCells(request, timeout=CALL_TIMEOUT_S)
            cells += page.cells
            token = page.next_page_token
            if not token:
                break
        active = [cell for cell in cells if cell.state == types_pb2.CELL_STATE_ACTIVE]
        expect(len(active) >= 2, f"these tests need two active cells, the server has {[c.cell_id for c in cells]}")
        return active

    def resolve(self, key):
        return self.directory.Resolve(directory_pb2.ResolveRequest(partition_key=key), timeout=CALL_TIMEOUT_S)

    def pin(self, key, cell):
        request = directory_pb2.PinPlacementRequest(
            partition_key=key, cell_id=cell.cell_id, request_id=str(uuid.uuid4())
        )
        return self.directory.PinPlacement(request, timeout=CALL_TIMEOUT_S).placement


def failing(call):
    """The error of a call that must fail."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise Failure(f"the call succeeded and should have failed; it answered {answer}")


def details_of(error, kind):
    """The google.rpc details of one kind that an error carries."""
    status = rpc_status.from_call(error)
    expect(status is not None, f"the error carries no google.rpc.Status: {error}")
    found = []
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            found.append(message)
    return found


def expect_error(error, code, reason):
    expect_equal("status code", error.code(), code)
    infos = details_of(error, error_details_pb2.ErrorInfo)
    expect_equal("number of ErrorInfo details", len(infos), 1)
    expect_equal("ErrorInfo.domain", infos[0].domain, ERROR_DOMAIN)
    expect_equal("ErrorInfo.reason", infos[0].reason, reason)


def resolve_places_a_new_key_and_remembers_it(client):
    key = client.key("resolve")
    first = client.resolve(key)
    expect_equal("source of the first answer", source_name(first.decision.source), "DECISION_SOURCE_ASSIGNED")
    expect(first.decision.authoritative, "the first answer is not authoritative")
    expect_equal("partition key", first.placement.partition_key, key)
    expect_equal("epoch of the first answer", first.placement.epoch, 1)
    expect_equal("state", first.placement.state, types_pb2.PLACEMENT_STATE_ACTIVE)
    cells = {cell.cell_id: cell for cell in client.cells}
    expect(first.placement.cell_id in cells, f"cell {first.placement.cell_id!r} is none of {sorted(cells)}")
    cell = cells[first.placement.cell_id]
    expect_equal("endpoint", first.placement.endpoint, cell.endpoint)
    expect_equal("region", first.placement.region, cell.region)

    again = client.resolve(key)
    source = source_name(again.decision.source)
    expect(
        source in ("DECISION_SOURCE_MEMORY", "DECISION_SOURCE_TABLE"), f"source of the second answer: {source}"
    )
    expect(again.decision.authoritative, "the second answer is not authoritative")
    expect_equal("cell of the second answer", again.placement.cell_id, first.placement.cell_id)
    expect_equal("epoch of the second answer", again.placement.epoch, 1)


def batch_resolve_answers_each_key_for_itself(client):
    keys = [client.key("batch-0"), "", client.key("batch-2")]
    request = directory_pb2.BatchResolveRequest(partition_keys=keys)
    answer = client.directory.BatchResolve(request, timeout=CALL_TIMEOUT_S)
    outcomes = [result.WhichOneof("outcome") for result in answer.results]
    expect_equal("outcomes", outcomes, ["placement", "error", "placement"])

    error = answer.results[1].error
    expect_equal("code of the empty key", error.code, code_pb2.INVALID_ARGUMENT)
    expect_equal("reason of the empty key", error.reason, "INVALID_PARTITION_KEY")
    expect(error.message, "the empty key's error says nothing")
    expect(not answer.results[1].HasField("decision"), "the empty key has a decision")

    cells = {cell.cell_id: cell for cell in client.cells}
    named = set()
    for index in (0, 2):
        result = answer.results[index]
        source = source_name(result.decision.source)
        expect_equal(f"source of key {index}", source, "DECISION_SOURCE_ASSIGNED")
        expect_equal(f"epoch of key {index}", result.placement.epoch, 1)
        expect_equal(f"cell of key {index}", client.resolve(keys[index]).placement.cell_id, result.placement.cell_id)
        named.add(result.placement.cell_id)
    expect_equal("cells of the answer", set(answer.cells), named)
    for cell_id in named:
        expect_equal(f"endpoint of {cell_id}", answer.cells[cell_id].endpoint, cells[cell_id].endpoint)
        expect_equal(f"region of {cell_id}", answer.cells[cell_id].region, cells[cell_id].region)


def list_placements_pages_through_a_cell(client):
    cell = client.cells[0]
    wanted = {client.key(f"list-{n}") for n in range(5)}
    for key in wanted:
        placement = client.pin(key, cell)
        expect_equal(f"cell of {key}", placement.cell_id, cell.cell_id)
        expect_equal(f"epoch of {key}", placement.epoch, 1)

    give_up = time.monotonic() + LIST_LAG_S
    while True:
        missing = wanted - list_cell(client, cell)
        if not missing:
            return
        expect(time.monotonic() < give_up, f"not listed in {cell.cell_id} after {LIST_LAG_S} s: {sorted(missing)}")
        time.sleep(0.1)


def list_cell(client, cell):
    """The keys that one listing of a cell shows, two a page."""
    seen, token = set(), ""
    for _ in range(MAX_PAGES):
        request = directory_pb2.ListPlacementsRequest(cell_id=cell.cell_id, page_size=2, page_token=token)
        page = client.directory.ListPlacements(request, timeout=CALL_TIMEOUT_S)
        expect(len(page.placements) <= 2, f"a page of 2 holds {len(page.placements)} placements")
        for placement in page.placements:
            expect_equal(f"cell of the listed {placement.partition_key}", placement.cell_id, cell.cell_id)
            expect_equal(f"endpoint of the listed {placement.partition_key}", placement.endpoint, cell.endpoint)
            expect(placement.partition_key not in seen, f"{placement.partition_key} is listed twice")
            seen.add(placement.partition_key)
        token = page.next_page_token
        if not token:
            return seen
    raise Failure(f"the list of {cell.cell_id} has no end after {MAX_PAGES} pages")


def an_invalid_call_names_the_reason_and_the_field(client):
    error = failing(lambda: client.resolve(""))
    expect_error(error, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARTITION_KEY")
    requests = details_of(error, error_details_pb2.BadRequest)
    expect_equal("number of BadRequest details", len(requests), 1)
    fields = [violation.field for violation in requests[0].field_violations]
    expect_equal("violated fields", fields, ["partition_key"])
    expect(requests[0].field_violations[0].description, "the violation has no description")


def a_deadline_is_met(client):
    # The server cannot finish an import that the client never finishes sending.
    done = threading.Event()

    def messages():
        yield directory_pb2.ImportPlacementsRequest(validate_only=True)
        done.wait(CALL_TIMEOUT_S)

    start = time.monotonic()
    try:
        error = failing(lambda: client.directory.ImportPlacements(messages(), timeout=0.3))
    finally:
        done.set()
    elapsed = time.monotonic() - start
    expect_equal("status code", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    expect(elapsed < 3, f"a deadline of 0.3 s took {elapsed:.1f} s")


def a_key_pinned_elsewhere_is_refused(client):
    key = client.key("pinned")
    here, elsewhere = client.cells[:2]
    client.pin(key, here)
    error = failing(lambda: client.pin(key, elsewhere))
    expect_error(error, grpc.StatusCode.ALREADY_EXISTS, "PLACEMENT_EXISTS")
    expect_equal("cell after the refused pin", client.resolve(key).placement.cell_id, here.cell_id)


CHECKS = [
    resolve_places_a_new_key_and_remembers_it,
    batch_resolve_answers_each_key_for_itself,
    list_placements_pages_through_a_cell,
    an_invalid_call_names_the_reason_and_the_field,
    a_deadline_is_met,
    a_key_pinned_elsewhere_is_refused,
]


def main():
    if len(sys.argv) != 2:
        print("usage: client_test.py HOST:PORT", file=sys.stderr)
        return 2
    failed = 0
    # A proxy of the caller's environment has no business between two programs of one machine.
    with grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CALL_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            print(f"FAILED python: nothing answers at {sys.argv[1]}")
            return 1
        try:
            client = Client(channel)
        except (Failure, grpc.RpcError) as error:
            print(f"FAILED python: no cells to test with: {error}")
            return 1
        for check in CHECKS:
            try:
                check(client)
                print(f"ok     python {check.__name__}", flush=True)
            except Failure as failure:
                failed += 1
                print(f"FAILED python {check.__name__}: {failure}", flush=True)
            except Exception:  # an answer that nobody foresaw fails its check, not the others
                failed += 1
                print(f"FAILED python {check.__name__}:\n{traceback.format_exc()}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
