// What another team's Go program meets: stubs generated from proto/, and a running celld.
//
//	client HOST:PORT
//
// Every check runs, whatever became of the others; the exit status is 1 if any failed. Keys are new in each run, so that
// the same server can be used again.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"time"

	cellsv1 "cells.test/client/gen/cells/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// No call but those that are to miss their deadline comes near this.
	callTimeout = 10 * time.Second
	// How long the list, which reads an eventually consistent index, may take to show what was just written.
	listLag = 5 * time.Second
	// Pages of one listing: a server that hands out tokens for ever must not hang the test.
	maxPages    = 10_000
	errorDomain = "cells.v1"
)

type client struct {
	addr      string
	directory cellsv1.CellDirectoryClient
	admin     cellsv1.CellAdminClient
	run       string
	// The cells that take new tenants.
	cells []*cellsv1.Cell
}

func (c *client) key(name string) string {
	return "go-" + c.run + "-" + name
}

func (c *client) cell(id string) (*cellsv1.Cell, error) {
	for _, cell := range c.cells {
		if cell.GetCellId() == id {
			return cell, nil
		}
	}
	return nil, fmt.Errorf("cell %q is none that takes new tenants", id)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: client HOST:PORT")
		os.Exit(2)
	}
	os.Exit(run(os.Args[1]))
}

func run(addr string) int {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		fmt.Printf("FAILED go: %v\n", err)
		return 1
	}
	defer conn.Close()
	c := &client{
		addr:      addr,
		directory: cellsv1.NewCellDirectoryClient(conn),
		admin:     cellsv1.NewCellAdminClient(conn),
		run:       rand.Text(),
	}
	if err := c.listCells(); err != nil {
		fmt.Printf("FAILED go: no cells to test with: %v\n", err)
		return 1
	}
	status := 0
	for _, check := range checks {
		if err := check.run(c); err != nil {
			fmt.Printf("FAILED go %s: %v\n", check.name, err)
			status = 1
		} else {
			fmt.Printf("ok     go %s\n", check.name)
		}
	}
	return status
}

func (c *client) listCells() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	total, token := 0, ""
	for range maxPages {
		request := &cellsv1.ListCellsRequest{PageSize: 2, PageToken: token}
		page, err := c.admin.ListCells(ctx, request, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		for _, cell := range page.GetCells() {
			total++
			if cell.GetState() == cellsv1.CellState_CELL_STATE_ACTIVE {
				c.cells = append(c.cells, cell)
			}
		}
		token = page.GetNextPageToken()
		if token == "" {
			break
		}
	}
	if len(c.cells) < 2 {
		return fmt.Errorf("these tests need two active cells, the server has %d cells, %d of them active", total, len(c.cells))
	}
	return nil
}
