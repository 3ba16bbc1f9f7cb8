// Package guarded writes and strictly reads a tenant's items with a DynamoDB client of your own, by the contract of docs/writers.md.
//
//	writer := guarded.New(cellsv1.NewCellDirectoryClient(conn), cellsv1.NewCellAdminClient(conn),
//		func(cell *cellsv1.Cell) *dynamodb.Client {
//			return guarded.Client(config, func(o *dynamodb.Options) { o.Region = cell.GetRegion() })
//		})
//	err := writer.Write(ctx, "customer-12345", guarded.Put("Orders", item))
//	item, err := writer.Get(ctx, "customer-12345", "Orders", key)
//
// Needs aws-sdk-go-v2 and the stubs that buf makes of proto/ (buf.gen.yaml). Copy it into your program, and change what you need.
package guarded

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cellsv1 "cells.example/guarded/gen/cells/v1"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// Longest wait for a new lease. What the directory does not answer in time is written guarded, by what is known already.
	renewTimeout = 500 * time.Millisecond
	// How long a directory that did not answer is left alone.
	silence = time.Second
	// Longest time for a call whose context has no deadline. A deadline must come before the ten minutes are over for which DynamoDB knows a
	// token.
	callTimeout = 5 * time.Second
)

var (
	// ErrRefused says that the cell lets nothing of the tenant's pass, or did not until the deadline; nothing was written.
	ErrRefused = errors.New("refused")
	// ErrConditionFailed says that the condition of one of the writes does not hold; nothing was written.
	ErrConditionFailed = errors.New("a condition of the write does not hold")
	// ErrOutcomeUnknown says that the write may have been done, or may yet be: read the item before you decide what to do. After any other
	// error it was not done.
	ErrOutcomeUnknown = errors.New("the write may have been done")
)

// Item is an item, or a key.
type Item = map[string]types.AttributeValue

// Client makes a client that sends each request once. The SDK's own retries would send a plain write again after its lease, and would find
// the condition false that their first attempt, whose reply was lost, made false.
func Client(config aws.Config, options ...func(*dynamodb.Options)) *dynamodb.Client {
	once := func(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }
	return dynamodb.NewFromConfig(config, append(options, once)...)
}

// Write is one write: one of Put, Update and Delete is set, without its TableName.
type Write struct {
	// As the table set names it.
	Table  string
	Put    *types.Put
	Update *types.Update
	Delete *types.Delete
	// Doing it twice leaves what doing it once does: no condition, nothing that depends on the old item. Only such a write can be plain.
	Repeatable bool
}

// Put writes an item in place of what is there.
func Put(table string, item Item) Write {
	return Write{Table: table, Put: &types.Put{Item: item}, Repeatable: true}
}

// Delete removes an item.
func Delete(table string, key Item) Write {
	return Write{Table: table, Delete: &types.Delete{Key: key}, Repeatable: true}
}

// Writer may be shared by goroutines.
type Writer struct {
	// Longest time for one request to DynamoDB.
	AttemptTimeout time.Duration

	directory cellsv1.CellDirectoryClient
	admin     cellsv1.CellAdminClient
	connect   func(*cellsv1.Cell) *dynamodb.Client

	mu          sync.Mutex
	routes      map[string]route
	places      map[string]*place
	silentUntil time.Time
}

// New makes a Writer. connect makes a Client for a cell of the registry.
func New(
	directory cellsv1.CellDirectoryClient, admin cellsv1.CellAdminClient, connect func(*cellsv1.Cell) *dynamodb.Client,
) *Writer {
	return &Writer{
		AttemptTimeout: time.Second,
		directory:      directory, admin: admin, connect: connect,
		routes: map[string]route{}, places: map[string]*place{},
	}
}

// Write does all of the writes or none, 98 at most. It returns nil when they are done, and cannot be lost by a move of the tenant.
func (w *Writer) Write(ctx context.Context, tenant string, writes ...Write) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	c := &call{pause: firstPause}
	err := w.write(ctx, c, tenant, writes)
	if err != nil && c.unknown && !errors.Is(err, ErrConditionFailed) {
		// Not wrapped: what it says is true of the last attempt alone.
		return fmt.Errorf("%w: %v", ErrOutcomeUnknown, err)
	}
	return err
}

// Get is a strict read: of the cell in which the tenant is, and not of one that it has left. It returns nil where there is no item.
func (w *Writer) Get(ctx context.Context, tenant, table string, key Item) (Item, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	c := &call{pause: firstPause}
	r, err := w.route(ctx, tenant)
	if err != nil {
		return nil, err
	}
	for {
		item, g, err := w.readWithGuard(ctx, c, r, table, key)
		if err != nil || r.confirmedBy(g) {
			return item, err
		}
		if r, err = w.follow(ctx, c, r, g); err != nil {
			return nil, err
		}
	}
}

// readWithGuard reads an item, and then the guard. An epoch never comes back: what holds before the read and after it held all the while.
func (w *Writer) readWithGuard(ctx context.Context, c *call, r route, table string, key Item) (Item, *guard, error) {
	at, err := w.place(ctx, r.cell)
	if err != nil {
		return nil, nil, err
	}
	from, err := at.table(table)
	if err != nil {
		return nil, nil, err
	}
	item, err := w.read(ctx, c, at, from, key)
	if err != nil {
		return nil, nil, err
	}
	g, err := w.guard(ctx, c, r)
	return item, g, err
}

func (w *Writer) write(ctx context.Context, c *call, tenant string, writes []Write) error {
	r, err := w.route(ctx, tenant)
	if err != nil {
		return err
	}
	if len(writes) == 1 && writes[0].Repeatable && r.leased() {
		if done, err := w.writePlainly(ctx, c, r, writes[0]); done || err != nil {
			return err
		}
	}
	return w.writeGuarded(ctx, c, r, writes)
}

// writePlainly says whether the write was done within the lease. Otherwise the outcome does not count, whatever it is: it is written again,
// guarded.
func (w *Writer) writePlainly(ctx context.Context, c *call, r route, write Write) (bool, error) {
	at, err := w.place(ctx, r.cell)
	if err != nil {
		return false, err
	}
	attempt, cancel := context.WithTimeout(ctx, w.AttemptTimeout)
	defer cancel()
	if err := at.plainly(attempt, write); err != nil {
		return false, c.judge(err)
	}
	c.unknown = !r.leased()
	return !c.unknown, nil
}

func (w *Writer) writeGuarded(ctx context.Context, c *call, r route, writes []Write) error {
	var transaction *dynamodb.TransactWriteItemsInput
	var of route
	for {
		var refused *guard
		at, err := w.place(ctx, r.cell)
		if err != nil {
			return err
		}
		if r.mode == logged && r.migration == "" {
			refused, err = w.guard(ctx, c, r)
		} else {
			// As long as the route is the same, so are the transaction and its token: whatever became of earlier attempts, it is done once.
			if transaction == nil || of != r {
				if transaction, err = at.transaction(r, writes); err != nil {
					return err
				}
				of = r
			}
			var done bool
			if done, refused, err = w.transact(ctx, c, at, r, transaction); done {
				return nil
			}
		}
		if err != nil {
			return err
		}
		if r, err = w.follow(ctx, c, r, refused); err != nil {
			return err
		}
	}
}

// transact says whether it was done, and if not, which guard refused it.
func (w *Writer) transact(
	ctx context.Context, c *call, at *place, r route, transaction *dynamodb.TransactWriteItemsInput,
) (bool, *guard, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, w.AttemptTimeout)
		_, err := at.client.TransactWriteItems(attempt, transaction)
		cancel()
		if err == nil {
			return true, nil, nil
		}
		var cancelled *types.TransactionCanceledException
		if errors.As(err, &cancelled) && len(cancelled.CancellationReasons) > 0 {
			guarded := cancelled.CancellationReasons[0]
			if aws.ToString(guarded.Code) == conditionFailed {
				if guarded.Item == nil {
					// A shard that is not there went with its migration: the first is there as long as any is.
					g, err := w.guard(ctx, c, r)
					return false, g, err
				}
				g, err := guardOf(guarded.Item, r.cell)
				return false, g, err
			}
		}
		if err := c.judge(err); err != nil {
			return false, nil, err
		}
		if err := c.wait(ctx, err.Error()); err != nil {
			return false, nil, err
		}
	}
}

// follow says how to go on after a guard that is not as the route says.
func (w *Writer) follow(ctx context.Context, c *call, r route, refused *guard) (route, error) {
	g := refused
	for g != nil && (g.state == fenced || g.state == incoming && g.epoch <= r.epoch) {
		if err := c.wait(ctx, fmt.Sprintf("the guard of %s is %s", r.cell, g.state)); err != nil {
			return r, err
		}
		var err error
		if g, err = w.guard(ctx, c, r); err != nil {
			return r, err
		}
	}
	switch {
	case g == nil || g.state != open:
		// It left, or is yet to come back; where to, the directory knows.
		if c.redirected {
			const problem = "%w: %s at epoch %d has no guard that lets writes pass: try later, or ask who runs it"
			return r, fmt.Errorf(problem, ErrRefused, r.cell, r.epoch)
		}
		c.redirected = true
		return w.resolve(ctx, r.tenant, max(r.epoch, g.reached()))
	case g.epoch < r.epoch:
		// An epoch never falls: this guard came with an old copy of the table.
		return r, fmt.Errorf("%w: the guard of %s is older than epoch %d: ask who runs it", ErrRefused, r.cell, r.epoch)
	case r.agreesWith(g):
		if g == refused {
			return r, c.wait(ctx, fmt.Sprintf("the guard of %s is changing", r.cell))
		}
		return r, nil
	default:
		// A guard says nothing of a lease.
		taken := route{tenant: r.tenant, cell: r.cell, epoch: g.epoch, log: g.log}
		w.keep(taken)
		return taken, nil
	}
}

// guard reads the first shard of a tenant's guard; nil where there is none.
func (w *Writer) guard(ctx context.Context, c *call, r route) (*guard, error) {
	at, err := w.place(ctx, r.cell)
	if err != nil {
		return nil, err
	}
	item, err := w.read(ctx, c, at, at.guards, at.guards.key(guardPartition(0, r.tenant), guardSort))
	if err != nil {
		return nil, err
	}
	return guardOf(item, r.cell)
}

func (w *Writer) read(ctx context.Context, c *call, at *place, from table, key Item) (Item, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, w.AttemptTimeout)
		answer, err := at.client.GetItem(attempt, &dynamodb.GetItemInput{
			TableName: &from.name, Key: key, ConsistentRead: aws.Bool(true),
		})
		cancel()
		if err == nil {
			return answer.Item, nil
		}
		// A read leaves nothing open.
		unknown := c.unknown
		if err := c.judge(err); err != nil {
			return nil, err
		}
		c.unknown = unknown
		if err := c.wait(ctx, err.Error()); err != nil {
			return nil, err
		}
	}
}

func (w *Writer) route(ctx context.Context, tenant string) (route, error) {
	w.mu.Lock()
	held, known := w.routes[tenant]
	silent := time.Now().Before(w.silentUntil)
	w.mu.Unlock()
	if known && (held.mode == logged || held.leased() || silent) {
		return held, nil
	}
	if !known {
		return w.resolve(ctx, tenant, 0)
	}
	renewal, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	answer, err := w.resolve(renewal, tenant, held.epoch)
	if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
		// Guarded writes need no directory.
		w.mu.Lock()
		w.silentUntil = time.Now().Add(silence)
		w.mu.Unlock()
		return held, nil
	}
	return answer, err
}

func (w *Writer) resolve(ctx context.Context, tenant string, minEpoch uint64) (route, error) {
	// Counted from before the request is sent: the lease may be shorter than it seems, but never longer. Go's times carry the monotonic
	// clock.
	sent := time.Now()
	answer, err := w.directory.Resolve(ctx, &cellsv1.ResolveRequest{
		PartitionKey: tenant, MinEpoch: minEpoch, Fallback: cellsv1.FallbackPolicy_FALLBACK_POLICY_REFUSE,
	})
	if err != nil {
		return route{}, err
	}
	placement := answer.GetPlacement()
	r := route{
		tenant: tenant, cell: placement.GetCellId(), epoch: placement.GetEpoch(), log: plain,
		leaseEnd: sent.Add(answer.GetDecision().GetLease().AsDuration()),
	}
	if placement.GetWriteMode() == cellsv1.WriteMode_WRITE_MODE_LOGGED {
		// The guard says in which migration's log.
		r.log = log{mode: logged}
	}
	w.keep(r)
	return r, nil
}

func (w *Writer) keep(r route) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.routes[r.tenant].epoch <= r.epoch {
		w.routes[r.tenant] = r
	}
}

func (w *Writer) place(ctx context.Context, cell string) (*place, error) {
	w.mu.Lock()
	at := w.places[cell]
	w.mu.Unlock()
	if at != nil {
		return at, nil
	}
	answer, err := w.admin.GetCell(ctx, &cellsv1.GetCellRequest{CellId: cell})
	if err != nil {
		return nil, err
	}
	at, err = placeOf(answer.GetCell(), w.connect(answer.GetCell()))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.places[cell] = at
	return at, nil
}

func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout)
}
