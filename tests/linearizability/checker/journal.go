package main

import (
	"fmt"
	"maps"
)

// journal checks what the tables held at the end: the journal has no gap and no entry twice, an epoch follows the one before it, and
// replayed it comes to what the mappings and the counts say. And it holds every change that anybody was told of.
func journal(history *History) (problems []Problem) {
	wrong := func(key, format string, values ...any) {
		problems = append(problems, Problem{Check: "journal", Key: key, Detail: fmt.Sprintf(format, values...)})
	}
	nonces := map[string]bool{}
	for at, entry := range history.Tables.Entries {
		if entry.Sequence != uint64(at)+1 {
			wrong("", "entry %d stands where %d is due", entry.Sequence, at+1)
			break
		}
		if nonces[entry.Nonce] {
			wrong("", "the nonce of entry %d stands twice", entry.Sequence)
		}
		nonces[entry.Nonce] = true
	}
	if entries := uint64(len(history.Tables.Entries)); entries != history.Tables.Head {
		wrong("", "the head is at %d and there are %d entries", history.Tables.Head, entries)
	}

	type change struct {
		change, key, cell string
		epoch             uint64
	}
	changes := map[change]bool{}
	states := map[string]State{}
	counts := map[string]uint64{}
	for cell := range history.Tables.Counts {
		counts[cell] = 0
	}
	for _, c := range history.Changes {
		before := states[c.Key]
		switch {
		case c.Change == "placed" && !before.Placed && c.Epoch == before.Epoch+1:
			states[c.Key] = State{Placed: true, Cell: c.Cell, Epoch: c.Epoch}
			counts[c.Cell]++
		case c.Change == "vacated" && before.Placed && c.Epoch == before.Epoch && c.Cell == before.Cell:
			states[c.Key] = State{Epoch: c.Epoch}
			counts[c.Cell]--
		default:
			wrong(c.Key, "entry %d: %s %s at %d does not follow %v", c.Sequence, c.Change, c.Cell, c.Epoch, before)
		}
		changes[change{c.Change, c.Key, c.Cell, c.Epoch}] = true
	}
	if !maps.Equal(counts, history.Tables.Counts) {
		wrong("", "the cells' counts are %v, and by the journal %v", history.Tables.Counts, counts)
	}

	for at := range history.Ops {
		op := &history.Ops[at]
		if op.Op == "final" {
			found := State{Placed: op.Outcome == "ok", Cell: op.GotCell, Epoch: op.GotEpoch}
			if found != states[op.Key] {
				wrong(op.Key, "the table says %v, and the journal %v", found, states[op.Key])
			}
			continue
		}
		if op.GotCell != "" && !changes[change{"placed", op.Key, op.GotCell, op.GotEpoch}] {
			wrong(op.Key, "the journal knows nothing of the placement in [%v]", op)
		}
		if op.Op == "delete" && op.Outcome == "ok" && !changes[change{"vacated", op.Key, op.GotCell, op.GotEpoch}] {
			wrong(op.Key, "the journal knows nothing of the removal in [%v]", op)
		}
	}
	return problems
}
