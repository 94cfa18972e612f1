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

// expectFailure makes a call that must fail, and returns its status.
func (c *client) expectFailure(ctx context.Context, request *pb.CreateChatCompletionRequest) (*status.Status, error) {
	_, err := c.chat.CreateChatCompletion(ctx, request)
	if err == nil {
		return nil, fmt.Errorf("%s: the call did not fail", request.GetModel())
	}
	return status.Convert(err), nil
}

// findDetail returns the status' detail of a type, or nil, whose getters return unset values. Details unpacks every type whose
// package is imported.
func findDetail[T any](failure *status.Status) (found T) {
	for _, each := range failure.Details() {
		if typed, ok := each.(T); ok {
			return typed
		}
	}
	return found
}

// retryAfter returns the wait that the failure asks for.
func retryAfter(failure *status.Status) time.Duration {
	return findDetail[*errdetails.RetryInfo](failure).GetRetryDelay().AsDuration()
}

// nameOf spells a code as the gRPC specification does; codes.Code has a spelling of its own.
func nameOf(c codes.Code) string {
	return code.Code(c).String()
}
