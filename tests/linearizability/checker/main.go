// Checks a history of placements, as tests/linearizability records them.
//
//	linearizability-checker [-limit DURATION] [-pictures DIRECTORY] HISTORY
//
// Prints what it found as one JSON object. Ends with status 0 if the history is right, 1 if it is not, or could not be shown to be, and 2
// if it could not be read. Four checks: the operations on each key are linearizable (Porcupine); no process answers a lower epoch
// than before; one process says of a placement that it made it; journal, tables and answers agree.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

// Problem is something that must not be.
type Problem struct {
	Check string `json:"check"`
	Key   string `json:"key,omitempty"`
	// For people.
	Detail string `json:"detail"`
	// An HTML file that shows the key's operations.
	Picture string `json:"picture,omitempty"`
}

// Report is what is printed.
type Report struct {
	Operations int       `json:"operations"`
	Keys       int       `json:"keys"`
	SlowestMS  int64     `json:"slowest_key_ms"`
	Problems   []Problem `json:"problems"`
}

func main() {
	limit := flag.Duration("limit", 30*time.Second, "longest time for one key")
	pictures := flag.String("pictures", "", "where to draw what is not linearizable")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	history, err := read(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "linearizability-checker:", err)
		os.Exit(2)
	}
	keys := map[string]bool{}
	for _, op := range history.Ops {
		keys[op.Key] = true
	}
	problems, slowest := linearizable(history, *limit, *pictures)
	for _, check := range []func(*History) []Problem{epochsRise, placedOnce, journal} {
		problems = append(problems, check(history)...)
	}
	report := Report{len(history.Ops), len(keys), slowest.Milliseconds(), problems}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "linearizability-checker:", err)
		os.Exit(2)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}
