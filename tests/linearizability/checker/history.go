package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// Op is one operation of one client, or what the tables said of a key when everything had come to rest.
type Op struct {
	ID     int    `json:"id"`
	Client int    `json:"client"`
	Key    string `json:"key"`
	// resolve, lookup, get, pin, delete, final
	Op string `json:"op"`
	// The cell to pin to.
	Cell string `json:"cell"`
	// The least epoch to take (resolve, lookup) or the only one to delete; 0: any.
	Epoch uint64 `json:"epoch"`
	// The process that was asked last, and its life.
	Replica string `json:"replica"`
	// Nanoseconds of one monotonic clock. Return is absent where nobody knows when, or whether, it took effect.
	Call   int64  `json:"call"`
	Return *int64 `json:"return"`
	// ok, not_found, exists, epoch_mismatch, epoch_not_reached, unknown, vacated (final)
	Outcome  string `json:"outcome"`
	GotCell  string `json:"got_cell"`
	GotEpoch uint64 `json:"got_epoch"`
	// memory, table, assigned
	Source string `json:"source"`
	// How old the answer said it can be, in nanoseconds.
	Age int64 `json:"age"`
	// Made with a request id, so that it may be another call's answer that is answered.
	Repeatable bool `json:"repeatable"`
}

// Change is a placement's change as the journal has it.
type Change struct {
	Sequence uint64 `json:"sequence"`
	Nonce    string `json:"nonce"`
	// placed, vacated
	Change string `json:"change"`
	Key    string `json:"key"`
	Cell   string `json:"cell"`
	Epoch  uint64 `json:"epoch"`
}

// Fault is something that was done to the service, for whoever looks at a history.
type Fault struct {
	What string `json:"what"`
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

// Tables is what the tables said when everything had come to rest, apart from the journal and the mappings.
type Tables struct {
	Head   uint64            `json:"head"`
	Counts map[string]uint64 `json:"counts"`
	// The entries' sequences and nonces, those without a placement included.
	Entries []Entry `json:"entries"`
}

// Entry is a journal entry without its changes.
type Entry struct {
	Sequence uint64 `json:"sequence"`
	Nonce    string `json:"nonce"`
}

// History is all of it.
type History struct {
	Ops     []Op
	Changes []Change
	Faults  []Fault
	Tables  *Tables
}

// The longest line of a history: that with all entries of the journal.
const maxLine = 64 << 20

// read reads a history: one JSON object a line, with one field that names what it is.
func read(path string) (*History, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	history := &History{}
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 1<<20), maxLine)
	for number := 1; lines.Scan(); number++ {
		var line struct {
			Op     *Op     `json:"op"`
			Change *Change `json:"change"`
			Fault  *Fault  `json:"fault"`
			Tables *Tables `json:"tables"`
			// What made the history, and attempts of which nothing may have come; for people.
			Run     json.RawMessage `json:"run"`
			Nothing json.RawMessage `json:"nothing"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		switch {
		case line.Op != nil:
			history.Ops = append(history.Ops, *line.Op)
		case line.Change != nil:
			history.Changes = append(history.Changes, *line.Change)
		case line.Fault != nil:
			history.Faults = append(history.Faults, *line.Fault)
		case line.Tables != nil:
			history.Tables = line.Tables
		case line.Run == nil && line.Nothing == nil:
			return nil, fmt.Errorf("line %d is none of op, change, fault, tables, nothing, run", number)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if history.Tables == nil {
		return nil, fmt.Errorf("the history is cut off: it does not say what the tables held at the end")
	}
	return history, nil
}
