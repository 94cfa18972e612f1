package main

import (
	"context"
	"fmt"
	"time"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
	"ollmbridge.example/client/kit"
)

// expectFailure makes a call that must fail, and returns what its status says.
func (c *client) expectFailure(ctx context.Context, request *pb.CreateChatCompletionRequest) (kit.Failure, error) {
	_, err := c.chat.CreateChatCompletion(ctx, request)
	if err == nil {
		return kit.Failure{}, fmt.Errorf("%s: the call did not fail", request.GetModel())
	}
	return kit.ReadFailure(err), nil
}

// describe returns what is printed of a failure.
func describe(failure kit.Failure) line {
	return line{
		"code":           failure.Code,
		"message":        failure.Message,
		"reason":         failure.Reason,
		"domain":         failure.Domain,
		"retry_after_s":  seconds(failure.RetryAfter),
		"violations":     violations(failure),
		"request_id":     failure.RequestID,
		"http_status":    failure.Upstream.GetHttpStatus(),
		"upstream_words": failure.UpstreamWords,
	}
}

func violations(failure kit.Failure) []line {
	found := []line{}
	for _, violation := range failure.Violations {
		found = append(found, line{"field": violation.GetField(), "description": violation.GetDescription()})
	}
	return found
}

// seconds returns a wait in seconds, or nil for none.
func seconds(wait *time.Duration) any {
	if wait == nil {
		return nil
	}
	return wait.Seconds()
}
