package main

import (
	"fmt"
	"sort"
)

// epochsRise checks that no process answers a lower epoch than it answered before.
//
// Porcupine cannot see this: memory may be old, and two answers of which the later is the older are both right as long as each says how
// old it is. But a caller who hears of an epoch from a replica must not be sent back by the same replica.
func epochsRise(history *History) (problems []Problem) {
	type place struct{ replica, key string }
	byPlace := map[place][]*Op{}
	for at := range history.Ops {
		op := &history.Ops[at]
		if op.Return != nil && op.Outcome == "ok" && op.Replica != "" {
			byPlace[place{op.Replica, op.Key}] = append(byPlace[place{op.Replica, op.Key}], op)
		}
	}
	for where, ops := range byPlace {
		told := []*Op{}
		for _, op := range ops {
			if floor(op) > 0 {
				told = append(told, op)
			}
		}
		sort.Slice(told, func(a, b int) bool { return *told[a].Return < *told[b].Return })
		sort.Slice(ops, func(a, b int) bool { return ops[a].Call < ops[b].Call })
		next, highest := 0, (*Op)(nil)
		for _, op := range ops {
			for next < len(told) && *told[next].Return < op.Call {
				if highest == nil || floor(told[next]) > floor(highest) {
					highest = told[next]
				}
				next++
			}
			if resolves(op) && highest != nil && op.GotEpoch < floor(highest) {
				problems = append(problems, Problem{
					Check: "epochs", Key: where.key,
					Detail: fmt.Sprintf("[%v] was answered after [%v] by the same process", op, highest),
				})
			}
		}
	}
	return problems
}

func resolves(op *Op) bool {
	return op.Op == "resolve" || op.Op == "lookup"
}

// floor is the lowest epoch that the process may answer after this answer; 0: it says nothing of that.
func floor(op *Op) uint64 {
	switch {
	case resolves(op):
		return op.GotEpoch
	case op.Op == "delete" && !op.Repeatable:
		// The process made the change itself, so its memory knows.
		return op.GotEpoch + 1
	}
	return 0
}

// placedOnce checks that one process says of a placement that it made it. All callers who share an assignment hear so.
func placedOnce(history *History) (problems []Problem) {
	type placement struct {
		key   string
		epoch uint64
	}
	makers := map[placement]*Op{}
	for at := range history.Ops {
		op := &history.Ops[at]
		if op.Op != "resolve" || op.Outcome != "ok" || op.Source != "assigned" {
			continue
		}
		made := placement{op.Key, op.GotEpoch}
		if other := makers[made]; other != nil && other.Replica != op.Replica {
			problems = append(problems, Problem{
				Check: "assigned twice", Key: op.Key, Detail: fmt.Sprintf("[%v] and [%v]", other, op),
			})
		}
		makers[made] = op
	}
	return problems
}
