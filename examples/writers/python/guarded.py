"""Writes and strict reads of a tenant's items with a DynamoDB client of your own, by the contract of docs/writers.md.

    writer = Writer(
        directory_pb2_grpc.CellDirectoryStub(channel),
        admin_pb2_grpc.CellAdminStub(channel),
        lambda cell: dynamodb_client(region_name=cell.region),
    )
    writer.write("customer-12345", put("Orders", {"PK": {"S": "CUSTOMER#customer-12345"}, "SK": {"S": "ORDER#1"}}))
    item = writer.get("customer-12345", "Orders", {"PK": {"S": "CUSTOMER#customer-12345"}, "SK": {"S": "ORDER#1"}})

Needs boto3 and the stubs that grpc_tools makes of proto/. Copy it into your program, and change what you need.
"""

import random
import secrets
import threading
import time
from dataclasses import dataclass, replace

import boto3
import grpc
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError, SSLError
from botocore.parsers import ResponseParserError
from cells.v1 import admin_pb2, directory_pb2, types_pb2

DIRECT, LOGGED = "DIRECT", "LOGGED"
OPEN, INCOMING, FENCED, MOVED = "OPEN", "INCOMING", "FENCED", "MOVED"

# Longest wait for a new lease. What the directory does not answer in time is written guarded, by what is known already.
RENEW_S = 0.5
# How long a directory that did not answer is left alone.
SILENCE_S = 1.0
# Pauses while a guard refuses or a table is busy: they begin with the first and double up to the second.
PAUSE_S = (0.02, 0.25)
# Nothing was done, and trying again helps.
BUSY = {
    "ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException",
    "TransactionConflictException", "TransactionInProgressException",
    # Reasons of a cancelled transaction.
    "ProvisionedThroughputExceeded", "ThrottlingError", "TransactionConflict",
}  # fmt: skip


class Refused(Exception):
    """The cell lets nothing of the tenant's pass, or did not until the deadline. Nothing was written."""


class ConditionFailed(Exception):
    """The condition of one of the writes does not hold. Nothing was written."""


class OutcomeUnknown(Exception):
    """The write may have been done, or may yet be: read the item before you decide what to do. After any other error it was not done."""


def dynamodb_client(attempt_s=1.0, **options):
    """A client that sends each request once. The SDK's own retries would send a plain write again after its lease, and would find the
    condition false that their first attempt, whose reply was lost, made false."""
    once = Config(retries={"total_max_attempts": 1}, connect_timeout=attempt_s, read_timeout=attempt_s)
    return boto3.client("dynamodb", config=once, **options)


@dataclass(frozen=True)
class Write:
    action: str  # Put, Update or Delete
    table: str  # as the table set names it
    params: dict  # of PutItem, UpdateItem or DeleteItem, without TableName
    repeatable: bool  # doing it twice leaves what doing it once does; only such a write can be plain


def put(table, item, **params):
    return Write("Put", table, {"Item": item, **params}, "ConditionExpression" not in params)


def delete(table, key, **params):
    return Write("Delete", table, {"Key": key, **params}, "ConditionExpression" not in params)


def update(table, key, *, repeatable=False, **params):
    """Repeatable is what only SETs values that do not depend on the old ones, without a condition."""
    return Write("Update", table, {"Key": key, **params}, repeatable)


@dataclass(frozen=True)
class Table:
    name: str  # as DynamoDB names it
    keys: tuple  # the names of the partition key and of the sort key, if it has one


@dataclass(frozen=True)
class Place:
    """A cell, and how to get at its tables."""

    client: object
    tables: dict  # by the name that the table set gives them
    guards: Table  # the one of them that holds guards and logs

    def table(self, name):
        if name not in self.tables:
            raise LookupError(f"the cell has no table {name}")
        return self.tables[name]


@dataclass(frozen=True)
class Guard:
    """What the guard in a cell says of a tenant."""

    state: str
    epoch: int
    mode: str
    migration: str
    shards: int

    @staticmethod
    def of(item, cell):
        """None where there is none. One of another cell came with a copy of that cell's table, and is none."""
        if not item or item["GuardCell"]["S"] != cell:
            return None
        return Guard(
            item["GuardState"]["S"],
            int(item["GuardEpoch"]["N"]),
            item["GuardMode"]["S"],
            item.get("GuardMigration", {"S": ""})["S"],
            int(item["GuardShards"]["N"]),
        )


def log_of(guard):
    """How a write that this guard lets pass is checked and logged. Without a log it is checked at the first shard."""
    return (LOGGED, guard.migration, guard.shards) if guard.mode == LOGGED else (DIRECT, "", 1)


@dataclass(frozen=True)
class Route:
    """What a writer holds of a tenant."""

    tenant: str
    cell: str
    epoch: int
    mode: str
    lease_end: float = 0.0  # on the monotonic clock
    migration: str = ""  # of LOGGED; empty until the guard was read
    shards: int = 1

    def leased(self):
        return self.mode == DIRECT and time.monotonic() < self.lease_end

    def confirmed_by(self, guard):
        return guard is not None and guard.state == OPEN and guard.epoch == self.epoch

    def agrees_with(self, guard):
        log = (self.mode, self.migration, self.shards)
        return self.confirmed_by(guard) and log == log_of(guard)


class Call:
    """One write or read: how long it may take, and what became of its attempts."""

    def __init__(self, deadline_s):
        self.deadline = time.monotonic() + deadline_s
        self.next_pause = PAUSE_S[0]
        self.redirected = False
        self.unknown = False

    def left(self):
        return max(0.0, self.deadline - time.monotonic())

    def pause(self, why):
        if not self.left():
            raise Refused(f"the deadline passed: {why}")
        time.sleep(min(self.left(), self.next_pause * random.uniform(0.5, 1)))
        self.next_pause = min(2 * self.next_pause, PAUSE_S[1])

    def judge(self, error):
        """Whether trying again can help after this error of DynamoDB's; raises it where it cannot."""
        if isinstance(error, ClientError):
            if error.response["Error"]["Code"] in BUSY:
                return
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                raise error
        self.unknown |= not isinstance(error, NOT_SENT)


# What DynamoDB's clients raise where no connection was made, and where a request was refused, failed, or was not answered.
NOT_SENT = (ConnectTimeoutError, EndpointConnectionError)
ERRORS = (ClientError, HTTPClientError, SSLError, ResponseParserError, *NOT_SENT)


class Writer:
    """May be shared by threads. `connect(cell)` makes a `dynamodb_client` for a cell of the registry."""

    def __init__(self, directory, admin, connect):
        self._directory, self._admin, self._connect = directory, admin, connect
        self._lock = threading.Lock()
        self._routes, self._places = {}, {}
        self._silent_until = 0.0

    def write(self, tenant, *writes, deadline_s=5.0):
        """Does all of them or none, 98 at most. Returns when they are done, and cannot be lost by a move of the tenant. `deadline_s` must
        stay below the ten minutes for which DynamoDB knows a token."""
        call = Call(deadline_s)
        try:
            route = self._route(tenant, call)
            plain = len(writes) == 1 and writes[0].repeatable and route.leased()
            if not (plain and self._write_plainly(route, writes[0], call)):
                self._write_guarded(route, writes, call)
        except ConditionFailed:
            raise
        except Exception as error:
            if call.unknown:
                raise OutcomeUnknown(f"the write may have been done: {error}") from error
            raise

    def get(self, tenant, table, key, deadline_s=5.0):
        """A strict read: of the cell in which the tenant is, and not of one that it has left. None where there is no item."""
        call = Call(deadline_s)
        route = self._route(tenant, call)
        while True:
            place = self._place(route.cell, call)
            item = self._read(place, place.table(table), key, call)
            guard = self._guard(route, call)
            if route.confirmed_by(guard):
                return item
            route = self._follow(route, guard, call)

    def _write_plainly(self, route, write, call):
        """Whether it was done within the lease. Otherwise the outcome does not count, whatever it is: it is written again, guarded."""
        place = self._place(route.cell, call)
        action, table = getattr(place.client, f"{write.action.lower()}_item"), place.table(write.table)
        try:
            action(TableName=table.name, **write.params)
        except ERRORS as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                raise ConditionFailed(str(error)) from error
            call.judge(error)
            return False
        call.unknown = not route.leased()
        return not call.unknown

    def _write_guarded(self, route, writes, call):
        transaction, of = None, None
        while True:
            if route.mode == LOGGED and not route.migration:
                guard = self._guard(route, call)
            else:
                # As long as the route is the same, so are the transaction and its token: whatever became of earlier attempts, it is
                # done once.
                if of != route:
                    transaction, of = self._transaction(route, writes, self._place(route.cell, call)), route
                done, guard = self._transact(route, transaction, call)
                if done:
                    return
            route = self._follow(route, guard, call)

    def _transaction(self, route, writes, place):
        operation = secrets.token_hex(16)
        shard = random.randrange(route.shards)
        items = [{"ConditionCheck": guard_check(place.guards, route, shard)}]
        touched = []
        for write in writes:
            table = place.table(write.table)
            items.append({write.action: {"TableName": table.name, **write.params}})
            whole = write.params.get("Key") or write.params["Item"]
            key = {name: whole[name] for name in table.keys}
            touched.append({"M": {"Table": {"S": write.table}, "Key": {"M": key}}})
        if route.mode == LOGGED:
            record = keys_of(place.guards, f"\1log#{route.migration}#{shard}", f"\1{operation}")
            record["LogKeys"] = {"L": touched}
            items.append({"Put": {"TableName": place.guards.name, "Item": record}})
        return {"TransactItems": items, "ClientRequestToken": operation}

    def _transact(self, route, transaction, call):
        """Whether it was done, and if not, the guard that refused it."""
        client = self._place(route.cell, call).client
        while True:
            try:
                client.transact_write_items(**transaction)
                return True, None
            except ERRORS as error:
                reasons = error.response.get("CancellationReasons", []) if isinstance(error, ClientError) else []
                codes = [reason["Code"] for reason in reasons]
                if codes[:1] == ["ConditionalCheckFailed"]:
                    item = reasons[0].get("Item")
                    # A shard that is not there went with its migration: the first is there as long as any is.
                    return False, Guard.of(item, route.cell) if item else self._guard(route, call)
                if "ConditionalCheckFailed" in codes and codes[0] == "None":
                    raise ConditionFailed(str(error)) from error
                if not BUSY.intersection(codes):
                    call.judge(error)
                call.pause(str(error))

    def _follow(self, route, refused, call):
        """How to go on after a guard that is not as the route says."""
        guard = refused
        while guard and (guard.state == FENCED or guard.state == INCOMING and guard.epoch <= route.epoch):
            call.pause(f"the guard of {route.cell} is {guard.state}")
            guard = self._guard(route, call)
        if not guard or guard.state != OPEN:
            # It left, or is yet to come back; where to, the directory knows.
            if call.redirected:
                raise Refused(f"{route.cell} at epoch {route.epoch} has no guard that lets writes pass: try later, or ask who runs it")
            call.redirected = True
            reached = 0 if not guard else guard.epoch if guard.state == MOVED else guard.epoch - 1
            return self._resolve(route.tenant, max(route.epoch, reached), call.left())
        if guard.epoch < route.epoch:
            # An epoch never falls: this guard came with an old copy of the table.
            raise Refused(f"the guard of {route.cell} is older than epoch {route.epoch}: ask who runs it")
        if guard.mode == LOGGED and not guard.migration:
            raise Refused(f"the guard of {route.cell} names no migration: ask who runs it")
        if route.agrees_with(guard):
            if guard is refused:
                call.pause(f"the guard of {route.cell} is changing")
            return route
        # A guard says nothing of a lease.
        mode, migration, shards = log_of(guard)
        return self._keep(Route(route.tenant, route.cell, guard.epoch, mode, 0.0, migration, shards))

    def _guard(self, route, call):
        place = self._place(route.cell, call)
        key = keys_of(place.guards, f"\1guard#0#{route.tenant}", "\1")
        return Guard.of(self._read(place, place.guards, key, call), route.cell)

    def _read(self, place, table, key, call):
        while True:
            try:
                return place.client.get_item(TableName=table.name, Key=key, ConsistentRead=True).get("Item")
            except ERRORS as error:
                # A read leaves nothing open.
                unknown = call.unknown
                call.judge(error)
                call.unknown = unknown
                call.pause(str(error))

    def _route(self, tenant, call):
        with self._lock:
            held = self._routes.get(tenant)
            silent = time.monotonic() < self._silent_until
        if held and (held.mode == LOGGED or held.leased() or silent):
            return held
        if not held:
            return self._resolve(tenant, 0, call.left())
        try:
            return self._resolve(tenant, held.epoch, min(RENEW_S, call.left()))
        except grpc.RpcError as error:
            # Guarded writes need no directory.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            self._silent_until = time.monotonic() + SILENCE_S
            return held

    def _resolve(self, tenant, min_epoch, timeout):
        # Counted from before the request is sent: the lease may be shorter than it seems, but never longer.
        sent = time.monotonic()
        request = directory_pb2.ResolveRequest(
            partition_key=tenant, min_epoch=min_epoch, fallback=directory_pb2.FALLBACK_POLICY_REFUSE
        )
        answer = self._directory.Resolve(request, timeout=timeout)
        placement, lease = answer.placement, answer.decision.lease
        mode = LOGGED if placement.write_mode == types_pb2.WRITE_MODE_LOGGED else DIRECT
        lease_end = sent + lease.seconds + lease.nanos / 1e9
        return self._keep(Route(tenant, placement.cell_id, placement.epoch, mode, lease_end))

    def _keep(self, route):
        with self._lock:
            held = self._routes.get(route.tenant)
            if held is None or held.epoch <= route.epoch:
                self._routes[route.tenant] = route
        return route

    def _place(self, cell_id, call):
        with self._lock:
            place = self._places.get(cell_id)
        if place is None:
            cell = self._admin.GetCell(admin_pb2.GetCellRequest(cell_id=cell_id), timeout=call.left()).cell
            place = place_of(cell, self._connect(cell))
            with self._lock:
                self._places[cell_id] = place
        return place


def keys_of(table, partition, sort):
    return dict(zip(table.keys, ({"S": partition}, {"S": sort})))


def guard_check(guards, route, shard):
    """That the cell takes writes by this route."""
    condition = "GuardCell = :cell AND GuardState = :open AND GuardEpoch = :epoch AND GuardMode = :mode"
    values = {
        ":cell": {"S": route.cell},
        ":open": {"S": OPEN},
        ":epoch": {"N": str(route.epoch)},
        ":mode": {"S": route.mode},
    }
    if route.mode == LOGGED:
        # A migration that was cancelled leaves the epoch as it was, and the next one does not read its log.
        condition += " AND GuardMigration = :migration"
        values[":migration"] = {"S": route.migration}
    return {
        "TableName": guards.name,
        "Key": keys_of(guards, f"\1guard#{shard}#{route.tenant}", "\1"),
        "ConditionExpression": condition,
        "ExpressionAttributeValues": values,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def place_of(cell, client):
    """What GetCell says of a cell's tables."""
    tables = {
        table.name: Table(table.table_name, (table.partition_key, table.sort_key) if table.sort_key else (table.partition_key,))
        for table in cell.tables.tables
    }
    if cell.tables.guards not in tables:
        raise LookupError(f"{cell.cell_id} has no table for guards, so its tenants cannot be written to like this")
    return Place(client, tables, tables[cell.tables.guards])
