package main

import (
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// The most keys of which a picture is made.
const maxPictures = 5

// linearizable checks every key's operations by themselves. A key that takes longer than `limit` counts as wrong: it was not shown to
// be right.
func linearizable(history *History, limit time.Duration, pictures string) (problems []Problem, slowest time.Duration) {
	byKey := map[string][]*Op{}
	end := int64(0)
	for at := range history.Ops {
		op := &history.Ops[at]
		byKey[op.Key] = append(byKey[op.Key], op)
		end = max(end, op.Call)
		if op.Return != nil {
			end = max(end, *op.Return)
		}
	}
	var lock sync.Mutex
	var waiting sync.WaitGroup
	places := make(chan struct{}, runtime.GOMAXPROCS(0))
	for key, ops := range byKey {
		waiting.Add(1)
		places <- struct{}{}
		go func() {
			defer func() { <-places; waiting.Done() }()
			began := time.Now()
			operations := operations(ops, end)
			result, info := porcupine.CheckOperationsVerbose(model, operations, limit)
			took := time.Since(began)
			lock.Lock()
			defer lock.Unlock()
			slowest = max(slowest, took)
			if result == porcupine.Ok {
				return
			}
			problem := Problem{Check: "linearizability", Key: key, Detail: stuck(ops, operations, info)}
			if result == porcupine.Unknown {
				problem.Check = "undecided"
				problem.Detail = fmt.Sprintf("not decided within %v; %s", limit, problem.Detail)
			}
			if pictures != "" && len(problems) < maxPictures {
				problem.Picture = filepath.Join(pictures, key+".html")
				info.AddAnnotations(annotations(history.Faults))
				if err := porcupine.VisualizePath(model, info, problem.Picture); err != nil {
					problem.Picture = err.Error()
				}
			}
			problems = append(problems, problem)
		}()
	}
	waiting.Wait()
	sort.Slice(problems, func(a, b int) bool { return problems[a].Key < problems[b].Key })
	return problems, slowest
}

// operations gives Porcupine the time in which each operation can have taken effect.
//
// An answer of Resolve says how old it can be: the table held the placement at some moment of the time before it was given. So the
// window opens that much before the call. An answer that is older than it says is found out by this.
func operations(ops []*Op, end int64) []porcupine.Operation {
	var all []porcupine.Operation
	for _, op := range ops {
		call, back := op.Call, end+1
		if op.Return != nil {
			back = *op.Return
		}
		all = append(all, porcupine.Operation{ClientId: op.Client, Input: op, Call: call - op.Age, Return: back})
	}
	return all
}

// stuck says how far Porcupine came: which operation fits nowhere after the longest order that it found.
func stuck(ops []*Op, operations []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	placed := map[int]bool{}
	state, steps := State{}, []string{}
	for _, operation := range longest {
		op := operation.Input.(*Op)
		placed[op.ID] = true
		_, state = step(state, op)
		steps = append(steps, fmt.Sprintf("%v => %v", op, state))
	}
	first, firstReturn := (*Op)(nil), int64(math.MaxInt64)
	for _, operation := range operations {
		op := operation.Input.(*Op)
		if !placed[op.ID] && operation.Return < firstReturn {
			first, firstReturn = op, operation.Return
		}
	}
	if first == nil {
		return fmt.Sprintf("all %d operations", len(ops))
	}
	last := steps[max(0, len(steps)-8):]
	return fmt.Sprintf("%d of %d operations fit; then no place for [%v], called at %d and returned at %d ns; the last that fit: %q",
		len(longest), len(ops), first, first.Call, firstReturn, slices.Clone(last))
}

func annotations(faults []Fault) (all []porcupine.Annotation) {
	for _, fault := range faults {
		all = append(all, porcupine.Annotation{
			Tag: "faults", Start: fault.From, End: fault.To, Description: fault.What, BackgroundColor: "#ffaaaa",
		})
	}
	return all
}
