package guarded

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"time"

	cellsv1 "cells.example/guarded/gen/cells/v1"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

const (
	direct = "DIRECT"
	logged = "LOGGED"

	open     = "OPEN"
	incoming = "INCOMING"
	fenced   = "FENCED"
	moved    = "MOVED"

	guardSort = "\x01"
)

// log is how a write is checked and logged. Without a log it is checked at the first shard.
type log struct {
	mode string
	// Of logged; empty until the guard was read.
	migration string
	shards    int
}

var plain = log{mode: direct, shards: 1}

// route is what a writer holds of a tenant.
type route struct {
	tenant, cell string
	epoch        uint64
	log
	leaseEnd time.Time
}

func (r route) leased() bool {
	return r.mode == direct && time.Now().Before(r.leaseEnd)
}

func (r route) confirmedBy(g *guard) bool {
	return g != nil && g.state == open && g.epoch == r.epoch
}

func (r route) agreesWith(g *guard) bool {
	return r.confirmedBy(g) && r.log == g.log
}

// guard is what the guard in a cell says of a tenant.
type guard struct {
	state string
	epoch uint64
	log
}

// reached is the epoch that the tenant has reached for sure.
func (g *guard) reached() uint64 {
	switch {
	case g == nil || g.epoch == 0:
		return 0
	case g.state == moved:
		return g.epoch
	default:
		return g.epoch - 1
	}
}

// guardOf returns nil where there is no guard. One of another cell came with a copy of that cell's table, and is none.
func guardOf(item Item, cell string) (*guard, error) {
	if item == nil || text(item, "GuardCell") != cell {
		return nil, nil
	}
	epoch, err := strconv.ParseUint(number(item, "GuardEpoch"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%w: the guard of %s has no readable epoch: ask who runs it", ErrRefused, cell)
	}
	g := &guard{state: text(item, "GuardState"), epoch: epoch, log: plain}
	if text(item, "GuardMode") == logged {
		shards, err := strconv.Atoi(number(item, "GuardShards"))
		g.log = log{mode: logged, migration: text(item, "GuardMigration"), shards: shards}
		if err != nil || shards < 1 || g.migration == "" {
			return nil, fmt.Errorf("%w: the guard of %s has no readable log: ask who runs it", ErrRefused, cell)
		}
	}
	return g, nil
}

func text(item Item, name string) string {
	value, _ := item[name].(*types.AttributeValueMemberS)
	if value == nil {
		return ""
	}
	return value.Value
}

func number(item Item, name string) string {
	value, _ := item[name].(*types.AttributeValueMemberN)
	if value == nil {
		return ""
	}
	return value.Value
}

// table is a cell's table.
type table struct {
	// As DynamoDB names it.
	name string
	// The names of the partition key and of the sort key, if it has one.
	keys []string
}

func (t table) key(values ...string) Item {
	key := Item{}
	for i, value := range values {
		key[t.keys[i]] = &types.AttributeValueMemberS{Value: value}
	}
	return key
}

// place is a cell, and how to get at its tables.
type place struct {
	client *dynamodb.Client
	// By the name that the table set gives them.
	tables map[string]table
	// The one of them that holds guards and logs.
	guards table
}

// placeOf takes what GetCell says of a cell's tables.
func placeOf(cell *cellsv1.Cell, client *dynamodb.Client) (*place, error) {
	at := &place{client: client, tables: map[string]table{}}
	for _, t := range cell.GetTables().GetTables() {
		keys := []string{t.GetPartitionKey()}
		if t.GetSortKey() != "" {
			keys = append(keys, t.GetSortKey())
		}
		at.tables[t.GetName()] = table{name: t.GetTableName(), keys: keys}
	}
	guards, has := at.tables[cell.GetTables().GetGuards()]
	if !has {
		return nil, fmt.Errorf("%s has no table for guards, so its tenants cannot be written to like this", cell.GetCellId())
	}
	at.guards = guards
	return at, nil
}

func guardPartition(shard int, tenant string) string {
	return fmt.Sprintf("\x01guard#%d#%s", shard, tenant)
}

// guardCheck asks that the cell takes writes by this route.
func (p *place) guardCheck(r route, shard int) *types.ConditionCheck {
	condition := "GuardCell = :cell AND GuardState = :open AND GuardEpoch = :epoch AND GuardMode = :mode"
	values := Item{
		":cell":  &types.AttributeValueMemberS{Value: r.cell},
		":open":  &types.AttributeValueMemberS{Value: open},
		":epoch": &types.AttributeValueMemberN{Value: strconv.FormatUint(r.epoch, 10)},
		":mode":  &types.AttributeValueMemberS{Value: r.mode},
	}
	if r.mode == logged {
		// A migration that was cancelled leaves the epoch as it was, and the next one does not read its log.
		condition += " AND GuardMigration = :migration"
		values[":migration"] = &types.AttributeValueMemberS{Value: r.migration}
	}
	return &types.ConditionCheck{
		TableName:                           &p.guards.name,
		Key:                                 p.guards.key(guardPartition(shard, r.tenant), guardSort),
		ConditionExpression:                 &condition,
		ExpressionAttributeValues:           values,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}
}

// transaction makes the guarded write: the check, the writes, and in a log the record that names the keys that they touch.
func (p *place) transaction(r route, writes []Write) (*dynamodb.TransactWriteItemsInput, error) {
	random := make([]byte, 16)
	rand.Read(random)
	operation := hex.EncodeToString(random)
	shard := mathrand.IntN(r.shards)
	items := []types.TransactWriteItem{{ConditionCheck: p.guardCheck(r, shard)}}
	touched := []types.AttributeValue{}
	for _, write := range writes {
		item, key, err := p.item(write)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		touched = append(touched, &types.AttributeValueMemberM{Value: Item{
			"Table": &types.AttributeValueMemberS{Value: write.Table},
			"Key":   &types.AttributeValueMemberM{Value: key},
		}})
	}
	if r.mode == logged {
		record := p.guards.key(fmt.Sprintf("\x01log#%s#%d", r.migration, shard), "\x01"+operation)
		record["LogKeys"] = &types.AttributeValueMemberL{Value: touched}
		items = append(items, types.TransactWriteItem{Put: &types.Put{TableName: &p.guards.name, Item: record}})
	}
	return &dynamodb.TransactWriteItemsInput{TransactItems: items, ClientRequestToken: &operation}, nil
}

// item is a write as a part of a transaction, and the key that it touches.
func (p *place) item(write Write) (item types.TransactWriteItem, key Item, err error) {
	t, err := p.table(write.Table)
	if err != nil {
		return item, nil, err
	}
	var whole Item
	switch {
	case write.Put != nil:
		put := *write.Put
		put.TableName, item.Put, whole = &t.name, &put, put.Item
	case write.Update != nil:
		update := *write.Update
		update.TableName, item.Update, whole = &t.name, &update, update.Key
	case write.Delete != nil:
		remove := *write.Delete
		remove.TableName, item.Delete, whole = &t.name, &remove, remove.Key
	default:
		return item, nil, fmt.Errorf("the write to %s is none of Put, Update and Delete", write.Table)
	}
	key = Item{}
	for _, name := range t.keys {
		key[name] = whole[name]
	}
	return item, key, nil
}

func (p *place) table(name string) (table, error) {
	t, has := p.tables[name]
	if !has {
		return t, fmt.Errorf("the cell has no table %q", name)
	}
	return t, nil
}

// plainly does a write without a check.
func (p *place) plainly(ctx context.Context, write Write) error {
	item, key, err := p.item(write)
	switch {
	case err != nil:
	case item.Put != nil:
		_, err = p.client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: item.Put.TableName, Item: item.Put.Item,
			ConditionExpression:      item.Put.ConditionExpression,
			ExpressionAttributeNames: item.Put.ExpressionAttributeNames, ExpressionAttributeValues: item.Put.ExpressionAttributeValues,
		})
	case item.Update != nil:
		_, err = p.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: item.Update.TableName, Key: key,
			UpdateExpression: item.Update.UpdateExpression, ConditionExpression: item.Update.ConditionExpression,
			ExpressionAttributeNames: item.Update.ExpressionAttributeNames, ExpressionAttributeValues: item.Update.ExpressionAttributeValues,
		})
	case item.Delete != nil:
		_, err = p.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
			TableName: item.Delete.TableName, Key: key,
			ConditionExpression:      item.Delete.ConditionExpression,
			ExpressionAttributeNames: item.Delete.ExpressionAttributeNames, ExpressionAttributeValues: item.Delete.ExpressionAttributeValues,
		})
	}
	return err
}
