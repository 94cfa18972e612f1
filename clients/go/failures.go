package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

// failed makes a call that must fail, and gives its status.
func (c *client) failed(ctx context.Context, request *pb.CreateChatCompletionRequest) (*status.Status, error) {
	_, err := c.chat.CreateChatCompletion(ctx, request)
	if err == nil {
		return nil, fmt.Errorf("%s: expected a failure, found an answer", request.GetModel())
	}
	return status.Convert(err), nil
}

// detail gives the status' detail of a type, or nil, whose getters give what is unset. A type whose package is imported is
// unpacked by Details.
func detail[T any](failure *status.Status) (found T) {
	for _, each := range failure.Details() {
		if typed, ok := each.(T); ok {
			return typed
		}
	}
	return found
}

// retryAfter is how long the failure asks to wait.
func retryAfter(failure *status.Status) time.Duration {
	return detail[*errdetails.RetryInfo](failure).GetRetryDelay().AsDuration()
}

// codeName spells a code as the gRPC specification does; codes.Code has a spelling of its own.
func codeName(c codes.Code) string {
	return code.Code(c).String()
}
