package guarded

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
)

const (
	// Pauses while a guard refuses or a table is busy: they begin with the first and double up to the second.
	firstPause = 20 * time.Millisecond
	lastPause  = 250 * time.Millisecond

	conditionFailed = "ConditionalCheckFailed"
)

// Nothing was done, and trying again helps. The last three are reasons of a cancelled transaction.
var busy = map[string]bool{
	"ProvisionedThroughputExceededException": true, "RequestLimitExceeded": true, "ThrottlingException": true,
	"TransactionConflictException": true, "TransactionInProgressException": true,
	"ProvisionedThroughputExceeded": true, "ThrottlingError": true, "TransactionConflict": true,
}

// call is one write or read, and what became of its attempts.
type call struct {
	pause      time.Duration
	redirected bool
	unknown    bool
}

func (c *call) wait(ctx context.Context, why string) error {
	timer := time.NewTimer(time.Duration(float64(c.pause) * (0.5 + rand.Float64()/2)))
	defer timer.Stop()
	c.pause = min(2*c.pause, lastPause)
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w: %s", ErrRefused, ctx.Err(), why)
	case <-timer.C:
		return nil
	}
}

// judge returns an error of DynamoDB's where trying again cannot help.
func (c *call) judge(err error) error {
	var condition *types.ConditionalCheckFailedException
	if errors.As(err, &condition) {
		return fmt.Errorf("%w: %w", ErrConditionFailed, err)
	}
	var cancelled *types.TransactionCanceledException
	if errors.As(err, &cancelled) {
		return judgeReasons(cancelled.CancellationReasons, err)
	}
	var invalid smithy.InvalidParamsError
	if errors.As(err, &invalid) {
		return err
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		// Nothing was sent.
		return nil
	}
	var refusal smithy.APIError
	if errors.As(err, &refusal) && busy[refusal.ErrorCode()] {
		return nil
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) && response.HTTPStatusCode() < http.StatusInternalServerError &&
		response.HTTPStatusCode() >= http.StatusBadRequest {
		return err
	}
	c.unknown = true
	return nil
}

func judgeReasons(reasons []types.CancellationReason, err error) error {
	again, condition := false, false
	for _, reason := range reasons {
		code := aws.ToString(reason.Code)
		again = again || busy[code]
		condition = condition || code == conditionFailed
	}
	switch {
	// Where the guard was not looked at, the condition may be that of a cell that the tenant has left.
	case condition && aws.ToString(reasons[0].Code) == "None":
		return fmt.Errorf("%w: %w", ErrConditionFailed, err)
	case again:
		return nil
	default:
		return err
	}
}
