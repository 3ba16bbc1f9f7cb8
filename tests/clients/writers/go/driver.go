// Does what tests/clients/writers/ asks of examples/writers/go: a line of JSON for each call on standard input, and a line for what came of
// it on standard output. The first line says where DynamoDB is and which cells there are. The directory is a fake that answers what each
// call lists, or a server whose address the first line gives.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"cells.example/guarded"
	cellsv1 "cells.example/guarded/gen/cells/v1"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// Longest line of a call.
const maxLine = 1 << 20

type setup struct {
	Endpoint       string
	Directory      string
	AttemptSeconds float64
	Cells          []json.RawMessage
}

type item map[string]map[string]string

type params struct {
	Item, Key                 item
	ConditionExpression       *string
	UpdateExpression          *string
	ExpressionAttributeNames  map[string]string
	ExpressionAttributeValues item
}

type write struct {
	Action, Table string
	Params        params
	Repeatable    bool
}

type request struct {
	Tenant          string
	DeadlineSeconds float64
	ResolveSeconds  float64
	Routes          []json.RawMessage
	Writes          []write
	Get             *struct {
		Table string
		Key   item
	}
}

type answer struct {
	Outcome string   `json:"outcome"`
	Said    string   `json:"said,omitempty"`
	Item    item     `json:"item"`
	Asked   []uint64 `json:"asked"`
}

// fake is the directory and the registry.
type fake struct {
	cellsv1.CellDirectoryClient
	cellsv1.CellAdminClient
	cells  map[string]*cellsv1.Cell
	routes []json.RawMessage
	asked  []uint64
	takes  time.Duration
}

func (f *fake) GetCell(
	_ context.Context, request *cellsv1.GetCellRequest, _ ...grpc.CallOption,
) (*cellsv1.GetCellResponse, error) {
	return &cellsv1.GetCellResponse{Cell: f.cells[request.GetCellId()]}, nil
}

func (f *fake) Resolve(
	_ context.Context, request *cellsv1.ResolveRequest, _ ...grpc.CallOption,
) (*cellsv1.ResolveResponse, error) {
	time.Sleep(f.takes)
	f.asked = append(f.asked, request.GetMinEpoch())
	if request.GetFallback() != cellsv1.FallbackPolicy_FALLBACK_POLICY_REFUSE {
		panic("a fallback is no route for this recipe")
	}
	if len(f.routes) == 0 {
		return nil, status.Error(codes.Unavailable, "the directory is down")
	}
	route := f.routes[0]
	if len(f.routes) > 1 {
		f.routes = f.routes[1:]
	}
	answer := &cellsv1.ResolveResponse{}
	if err := protojson.Unmarshal(route, answer); err != nil {
		panic(err)
	}
	if answer.GetPlacement().GetEpoch() < request.GetMinEpoch() {
		return nil, status.Error(codes.FailedPrecondition, "the epoch is not reached")
	}
	return answer, nil
}

func values(typed item) guarded.Item {
	if typed == nil {
		return nil
	}
	item := guarded.Item{}
	for name, value := range typed {
		if number, is := value["N"]; is {
			item[name] = &types.AttributeValueMemberN{Value: number}
		} else {
			item[name] = &types.AttributeValueMemberS{Value: value["S"]}
		}
	}
	return item
}

func typed(values guarded.Item) item {
	if values == nil {
		return nil
	}
	typed := item{}
	for name, value := range values {
		switch value := value.(type) {
		case *types.AttributeValueMemberN:
			typed[name] = map[string]string{"N": value.Value}
		case *types.AttributeValueMemberS:
			typed[name] = map[string]string{"S": value.Value}
		}
	}
	return typed
}

func writeOf(asked write) guarded.Write {
	p := asked.Params
	var write guarded.Write
	switch asked.Action {
	case "Put":
		write = guarded.Put(asked.Table, values(p.Item))
		write.Put.ConditionExpression = p.ConditionExpression
		write.Repeatable = p.ConditionExpression == nil
	case "Delete":
		write = guarded.Delete(asked.Table, values(p.Key))
	default:
		write = guarded.Write{Table: asked.Table, Repeatable: asked.Repeatable, Update: &types.Update{
			Key: values(p.Key), UpdateExpression: p.UpdateExpression,
			ExpressionAttributeNames: p.ExpressionAttributeNames, ExpressionAttributeValues: values(p.ExpressionAttributeValues),
		}}
	}
	return write
}

func do(writer *guarded.Writer, asked request) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), seconds(asked.DeadlineSeconds))
	defer cancel()
	if asked.Get != nil {
		item, err := writer.Get(ctx, asked.Tenant, asked.Get.Table, values(asked.Get.Key))
		return answer{Item: typed(item)}, err
	}
	writes := []guarded.Write{}
	for _, write := range asked.Writes {
		writes = append(writes, writeOf(write))
	}
	return answer{}, writer.Write(ctx, asked.Tenant, writes...)
}

func seconds(of float64) time.Duration {
	return time.Duration(of * float64(time.Second))
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, guarded.ErrOutcomeUnknown):
		return "unknown"
	case errors.Is(err, guarded.ErrConditionFailed):
		return "condition failed"
	case errors.Is(err, guarded.ErrRefused):
		return "refused"
	default:
		return "error"
	}
}

func credentials(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	lines.Scan()
	var s setup
	if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
		return err
	}
	f := &fake{cells: map[string]*cellsv1.Cell{}}
	for _, raw := range s.Cells {
		cell := &cellsv1.Cell{}
		if err := protojson.Unmarshal(raw, cell); err != nil {
			return err
		}
		f.cells[cell.GetCellId()] = cell
	}
	config := aws.Config{Region: "eu-west-1", Credentials: aws.CredentialsProviderFunc(credentials), BaseEndpoint: &s.Endpoint}
	client := guarded.Client(config)
	connect := func(*cellsv1.Cell) *dynamodb.Client { return client }
	writer := guarded.New(f, f, connect)
	if s.Directory != "" {
		conn, err := grpc.NewClient(s.Directory, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		if err != nil {
			return err
		}
		defer conn.Close()
		writer = guarded.New(cellsv1.NewCellDirectoryClient(conn), cellsv1.NewCellAdminClient(conn), connect)
	}
	writer.AttemptTimeout = seconds(s.AttemptSeconds)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		f.routes, f.asked, f.takes = asked.Routes, []uint64{}, seconds(asked.ResolveSeconds)
		got, err := do(writer, asked)
		got.Outcome, got.Asked = outcome(err), f.asked
		if err != nil {
			got.Said = err.Error()
		}
		line, err := json.Marshal(got)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return lines.Err()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "driver:", err)
		os.Exit(1)
	}
}
