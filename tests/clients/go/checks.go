package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	cellsv1 "cells.test/client/gen/cells/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var checks = []struct {
	name string
	run  func(*client) error
}{
	{"resolve places a new key and remembers it", resolveTwice},
	{"batch resolve answers each key for itself", batchResolve},
	{"list placements pages through a cell", listPlacements},
	{"an invalid call names the reason and the field", invalidCall},
	{"a deadline is met", deadline},
	{"the server itself keeps the deadline", serverDeadline},
	{"a key pinned elsewhere is refused", pinnedElsewhere},
}

// equal is nil where a value is the one wanted.
func equal[T comparable](what string, actual, wanted T) error {
	if actual != wanted {
		return fmt.Errorf("%s: %v, wanted %v", what, actual, wanted)
	}
	return nil
}

func isTrue(what string, holds bool) error {
	if !holds {
		return errors.New("does not hold: " + what)
	}
	return nil
}

func (c *client) resolve(key string) (*cellsv1.ResolveResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return c.directory.Resolve(ctx, &cellsv1.ResolveRequest{PartitionKey: key})
}

func (c *client) pin(key string, cell *cellsv1.Cell) (*cellsv1.Placement, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	request := &cellsv1.PinPlacementRequest{PartitionKey: key, CellId: cell.GetCellId(), RequestId: rand.Text()}
	answer, err := c.directory.PinPlacement(ctx, request)
	return answer.GetPlacement(), err
}

func resolveTwice(c *client) error {
	key := c.key("resolve")
	first, err := c.resolve(key)
	if err != nil {
		return err
	}
	placement := first.GetPlacement()
	cell, err := c.cell(placement.GetCellId())
	if err != nil {
		return err
	}
	again, err := c.resolve(key)
	if err != nil {
		return err
	}
	source := again.GetDecision().GetSource()
	return errors.Join(
		equal("source of the first answer", first.GetDecision().GetSource(), cellsv1.DecisionSource_DECISION_SOURCE_ASSIGNED),
		isTrue("the first answer is authoritative", first.GetDecision().GetAuthoritative()),
		equal("partition key", placement.GetPartitionKey(), key),
		equal("epoch of the first answer", placement.GetEpoch(), 1),
		equal("state", placement.GetState(), cellsv1.PlacementState_PLACEMENT_STATE_ACTIVE),
		equal("endpoint", placement.GetEndpoint(), cell.GetEndpoint()),
		equal("region", placement.GetRegion(), cell.GetRegion()),
		isTrue(fmt.Sprintf("the second answer comes from memory or the table (it came from %v)", source),
			source == cellsv1.DecisionSource_DECISION_SOURCE_MEMORY || source == cellsv1.DecisionSource_DECISION_SOURCE_TABLE),
		isTrue("the second answer is authoritative", again.GetDecision().GetAuthoritative()),
		equal("cell of the second answer", again.GetPlacement().GetCellId(), placement.GetCellId()),
		equal("epoch of the second answer", again.GetPlacement().GetEpoch(), 1),
	)
}

func batchResolve(c *client) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	keys := []string{c.key("batch-0"), "", c.key("batch-2")}
	answer, err := c.directory.BatchResolve(ctx, &cellsv1.BatchResolveRequest{PartitionKeys: keys})
	if err != nil {
		return err
	}
	if err := equal("number of results", len(answer.GetResults()), len(keys)); err != nil {
		return err
	}
	refused := answer.GetResults()[1]
	problems := []error{
		isTrue("the empty key has an error", refused.GetError() != nil),
		isTrue("the empty key has no placement", refused.GetPlacement() == nil),
		isTrue("the empty key has no decision", refused.GetDecision() == nil),
		equal("code of the empty key", codes.Code(refused.GetError().GetCode()), codes.InvalidArgument),
		equal("reason of the empty key", refused.GetError().GetReason(), "INVALID_PARTITION_KEY"),
		isTrue("the empty key's error says something", refused.GetError().GetMessage() != ""),
	}
	named := map[string]bool{}
	for _, i := range []int{0, 2} {
		result := answer.GetResults()[i]
		if result.GetError() != nil {
			return fmt.Errorf("key %d: %v", i, result.GetError())
		}
		id := result.GetPlacement().GetCellId()
		named[id] = true
		cell, err := c.cell(id)
		if err != nil {
			return fmt.Errorf("key %d: %w", i, err)
		}
		alone, err := c.resolve(keys[i])
		if err != nil {
			return fmt.Errorf("key %d: %w", i, err)
		}
		source := result.GetDecision().GetSource()
		problems = append(problems,
			equal(fmt.Sprintf("source of key %d", i), source, cellsv1.DecisionSource_DECISION_SOURCE_ASSIGNED),
			equal(fmt.Sprintf("epoch of key %d", i), result.GetPlacement().GetEpoch(), 1),
			equal(fmt.Sprintf("cell of key %d resolved alone", i), alone.GetPlacement().GetCellId(), id),
			equal("endpoint of "+id, answer.GetCells()[id].GetEndpoint(), cell.GetEndpoint()),
			equal("region of "+id, answer.GetCells()[id].GetRegion(), cell.GetRegion()),
		)
	}
	problems = append(problems, equal("number of cells in the answer", len(answer.GetCells()), len(named)))
	return errors.Join(problems...)
}

func listPlacements(c *client) error {
	cell := c.cells[0]
	var wanted []string
	for n := range 5 {
		key := c.key(fmt.Sprintf("list-%d", n))
		placement, err := c.pin(key, cell)
		if err != nil {
			return fmt.Errorf("pin %s: %w", key, err)
		}
		err = errors.Join(
			equal("cell of "+key, placement.GetCellId(), cell.GetCellId()),
			equal("epoch of "+key, placement.GetEpoch(), 1),
		)
		if err != nil {
			return err
		}
		wanted = append(wanted, key)
	}
	giveUp := time.Now().Add(listLag)
	for {
		seen, err := c.listCell(cell)
		if err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(wanted), func(key string) bool { return seen[key] })
		if len(missing) == 0 {
			return nil
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("not listed in %s after %v: %v", cell.GetCellId(), listLag, missing)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// listCell answers the keys that one listing of a cell shows, two a page.
func (c *client) listCell(cell *cellsv1.Cell) (map[string]bool, error) {
	seen, token := map[string]bool{}, ""
	for range maxPages {
		page, err := c.listPage(cell, token)
		if err != nil {
			return nil, err
		}
		if n := len(page.GetPlacements()); n > 2 {
			return nil, fmt.Errorf("a page of 2 holds %d placements", n)
		}
		for _, placement := range page.GetPlacements() {
			key := placement.GetPartitionKey()
			if seen[key] {
				return nil, fmt.Errorf("%s is listed twice", key)
			}
			seen[key] = true
			err := errors.Join(
				equal("cell of the listed "+key, placement.GetCellId(), cell.GetCellId()),
				equal("endpoint of the listed "+key, placement.GetEndpoint(), cell.GetEndpoint()),
			)
			if err != nil {
				return nil, err
			}
		}
		token = page.GetNextPageToken()
		if token == "" {
			return seen, nil
		}
	}
	return nil, fmt.Errorf("the list of %s has no end after %d pages", cell.GetCellId(), maxPages)
}

func (c *client) listPage(cell *cellsv1.Cell, token string) (*cellsv1.ListPlacementsResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return c.directory.ListPlacements(ctx, &cellsv1.ListPlacementsRequest{CellId: cell.GetCellId(), PageSize: 2, PageToken: token})
}

// expectError is nil where a call failed with a code and a documented reason.
func expectError(err error, code codes.Code, reason string) error {
	if err == nil {
		return errors.New("the call succeeded and should have failed")
	}
	infos := details[*errdetails.ErrorInfo](err)
	if len(infos) != 1 {
		return fmt.Errorf("%d ErrorInfo details, wanted 1, in: %w", len(infos), err)
	}
	return errors.Join(
		equal("status code", status.Code(err), code),
		equal("ErrorInfo.domain", infos[0].GetDomain(), errorDomain),
		equal("ErrorInfo.reason", infos[0].GetReason(), reason),
	)
}

// details answers the google.rpc details of one kind that an error carries.
func details[T any](err error) []T {
	var found []T
	for _, detail := range status.Convert(err).Details() {
		if detail, ok := detail.(T); ok {
			found = append(found, detail)
		}
	}
	return found
}

func invalidCall(c *client) error {
	_, err := c.resolve("")
	if problem := expectError(err, codes.InvalidArgument, "INVALID_PARTITION_KEY"); problem != nil {
		return problem
	}
	requests := details[*errdetails.BadRequest](err)
	if len(requests) != 1 || len(requests[0].GetFieldViolations()) != 1 {
		return fmt.Errorf("BadRequest details %v, wanted one with one violation", requests)
	}
	violation := requests[0].GetFieldViolations()[0]
	return errors.Join(
		equal("violated field", violation.GetField(), "partition_key"),
		isTrue("the violation has a description", violation.GetDescription() != ""),
	)
}

func pinnedElsewhere(c *client) error {
	key := c.key("pinned")
	here, elsewhere := c.cells[0], c.cells[1]
	if _, err := c.pin(key, here); err != nil {
		return err
	}
	_, err := c.pin(key, elsewhere)
	if problem := expectError(err, codes.AlreadyExists, "PLACEMENT_EXISTS"); problem != nil {
		return problem
	}
	answer, err := c.resolve(key)
	if err != nil {
		return err
	}
	return equal("cell after the refused pin", answer.GetPlacement().GetCellId(), here.GetCellId())
}
