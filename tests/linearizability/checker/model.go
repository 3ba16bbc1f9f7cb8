package main

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// State is what is true of one key.
//
//	Absent(epoch) ── resolve, pin ──► Placed(cell, epoch + 1) ── delete ──► Absent(epoch + 1)
type State struct {
	Placed bool
	// Empty while placed: a Resolve whose answer nobody heard chose a cell, and nobody has seen yet which. The first answer that names
	// it settles it for all.
	Cell string
	// The epoch of the placement, or of the last one there was; 0: there never was one.
	Epoch uint64
	// The final state has been read. What has not happened until then is taken to have never happened.
	Closed bool
}

// One key's model. Porcupine looks for an order of all operations, each somewhere between its call and its return, in which every
// step is possible.
//
// An operation without an outcome returns after everything else. It is only allowed where it has an effect, or at the end of all,
// where it had none: that says the same as allowing it anywhere, and leaves far fewer orders to try.
var model = porcupine.Model{
	Init: func() interface{} { return State{} },
	Step: func(state, input, _ interface{}) (bool, interface{}) {
		possible, next := step(state.(State), input.(*Op))
		return possible, next
	},
	Hash: func(state interface{}) uint64 {
		return hash(state.(State))
	},
	DescribeOperation: func(input, _ interface{}) string { return input.(*Op).String() },
	DescribeState:     func(state interface{}) string { return state.(State).String() },
}

func step(s State, op *Op) (bool, State) {
	switch op.Outcome {
	case "unknown":
		next, effect := s.after(op)
		if effect && !s.Closed {
			return true, next
		}
		return s.Closed, s
	case "ok":
		return s.answered(op)
	case "not_found":
		return !s.Placed && (op.Op == "lookup" || op.Op == "get" || op.Op == "delete"), s
	case "exists":
		holds, next := s.is(op.GotCell, op.GotEpoch)
		return holds && op.Op == "pin" && op.GotCell != op.Cell, next
	case "epoch_mismatch":
		return s.Placed && op.Op == "delete" && s.Epoch == op.GotEpoch && op.Epoch != op.GotEpoch, s
	case "epoch_not_reached":
		// A tenant without a cell would get the next epoch.
		reached := s.Epoch
		if !s.Placed {
			reached++
		}
		assigning := op.Op == "resolve" || s.Placed
		return assigning && s.Epoch == op.GotEpoch && reached < op.Epoch, s
	case "vacated":
		return op.Op == "final" && !s.Placed && s.Epoch == op.GotEpoch, s.closed()
	}
	return false, s
}

// is says whether a tenant can be in this cell at this epoch, and what is known then.
func (s State) is(cell string, epoch uint64) (bool, State) {
	if !s.Placed || s.Epoch != epoch || (s.Cell != "" && s.Cell != cell) {
		return false, s
	}
	s.Cell = cell
	return true, s
}

// answered is a successful operation.
func (s State) answered(op *Op) (bool, State) {
	holds, next := s.is(op.GotCell, op.GotEpoch)
	created := State{Placed: true, Cell: op.GotCell, Epoch: s.Epoch + 1}
	creates := !s.Placed && op.GotEpoch == created.Epoch
	switch op.Op {
	case "resolve", "lookup":
		if op.GotEpoch < op.Epoch {
			return false, s
		}
		// Whoever places a tenant is told "assigned"; or "table", where the reply to the assignment was lost and the call found it in the
		// table when it tried again. Several who ask one replica at the same time share one assignment: all but the first find it done.
		if op.Op == "resolve" && op.Source != "memory" && creates {
			return true, created
		}
		return holds, next
	case "get":
		return holds, next
	case "pin":
		if op.GotCell != op.Cell {
			return false, s
		}
		if creates {
			return true, created
		}
		return holds, next
	case "delete":
		return holds && (op.Epoch == 0 || op.Epoch == s.Epoch), State{Epoch: s.Epoch}
	case "final":
		return holds, next.closed()
	}
	return false, s
}

// after is the state after an operation of which nobody knows the outcome, and whether that is another one.
func (s State) after(op *Op) (State, bool) {
	switch op.Op {
	case "resolve":
		if !s.Placed && s.Epoch+1 >= op.Epoch {
			return State{Placed: true, Epoch: s.Epoch + 1}, true
		}
	case "pin":
		if !s.Placed {
			return State{Placed: true, Cell: op.Cell, Epoch: s.Epoch + 1}, true
		}
	case "delete":
		if s.Placed && (op.Epoch == 0 || op.Epoch == s.Epoch) {
			return State{Epoch: s.Epoch}, true
		}
	}
	return s, false
}

func (s State) closed() State {
	s.Closed = true
	return s
}

func hash(s State) uint64 {
	h := s.Epoch << 2
	if s.Placed {
		h |= 1
	}
	if s.Closed {
		h |= 2
	}
	for _, letter := range []byte(s.Cell) {
		h = h*31 + uint64(letter)
	}
	return h
}

func (s State) String() string {
	switch {
	case s.Placed && s.Cell == "":
		return fmt.Sprintf("some cell at %d", s.Epoch)
	case s.Placed:
		return fmt.Sprintf("%s at %d", s.Cell, s.Epoch)
	}
	return fmt.Sprintf("absent after %d", s.Epoch)
}

func (op *Op) String() string {
	asked := op.Op
	if op.Cell != "" {
		asked += " " + op.Cell
	}
	if op.Epoch != 0 {
		asked += fmt.Sprintf(" epoch %d", op.Epoch)
	}
	answer := op.Outcome
	if op.GotCell != "" || op.GotEpoch != 0 {
		answer += fmt.Sprintf(": %s at %d", op.GotCell, op.GotEpoch)
	}
	if op.Source != "" {
		answer += fmt.Sprintf(" (%s, %.1f ms old)", op.Source, float64(op.Age)/1e6)
	}
	return fmt.Sprintf("#%d %s %s -> %s", op.ID, op.Replica, asked, answer)
}
