package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	cellsv1 "cells.test/client/gen/cells/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Both checks hold an import open: the server cannot finish what the client never finishes sending.

const deadlineSlack = 3 * time.Second

func deadline(c *client) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	stream, err := c.directory.ImportPlacements(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&cellsv1.ImportPlacementsRequest{ValidateOnly: true}); err != nil {
		return err
	}
	// Not CloseAndRecv: that would finish the request.
	err = stream.RecvMsg(new(cellsv1.ImportPlacementsResponse))
	if err == nil {
		return errors.New("the server answered an import that was still open")
	}
	return errors.Join(
		equal("status code", status.Code(err), codes.DeadlineExceeded),
		isTrue(fmt.Sprintf("a deadline of 300 ms takes less than %v (%v)", deadlineSlack, time.Since(start)),
			time.Since(start) < deadlineSlack),
	)
}

// A gRPC client ends a late call by a timer of its own, whatever the server does. So this check speaks to the server in plain
// HTTP/2: the deadline stands in the request's header only, and the status can come from nobody but the server.
func serverDeadline(c *client) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	message, err := proto.Marshal(&cellsv1.ImportPlacementsRequest{ValidateOnly: true})
	if err != nil {
		return err
	}
	body, sender := io.Pipe()
	// Frees the transport, which may still be reading the body after the answer.
	defer sender.Close()
	go func() {
		// A gRPC message: not compressed, its length, itself. The pipe stays open.
		frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
		sender.Write(append(frame, message...))
	}()
	url := "http://" + c.addr + cellsv1.CellDirectory_ImportPlacements_FullMethodName
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	request.Header.Set("Grpc-Timeout", "300m")

	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	start := time.Now()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("the server did not answer: %w", err)
	}
	defer response.Body.Close()
	if _, err := io.ReadAll(response.Body); err != nil {
		return fmt.Errorf("the answer broke off: %w", err)
	}
	elapsed := time.Since(start)
	// A status without a message before it may stand in the headers or in the trailers.
	code := response.Header.Get("Grpc-Status")
	if code == "" {
		code = response.Trailer.Get("Grpc-Status")
	}
	return errors.Join(
		equal("grpc-status", code, fmt.Sprint(int(codes.DeadlineExceeded))),
		isTrue(fmt.Sprintf("the server waits until the deadline of 300 ms (%v)", elapsed), elapsed >= 250*time.Millisecond),
		isTrue(fmt.Sprintf("a deadline of 300 ms takes less than %v (%v)", deadlineSlack, elapsed), elapsed < deadlineSlack),
	)
}
