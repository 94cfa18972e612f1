// The cases of ../CASES.md, with grpc-go: `go run . [CASE …]`. The environment has the bridge's address.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
	"ollmbridge.example/client/kit"
)

const caseTimeout = time.Minute

// line has the keys and values that a case prints.
type line map[string]any

// client has the connection that the cases share.
type client struct {
	conn *grpc.ClientConn
	chat pb.ChatCompletionServiceClient
}

var cases = []struct {
	name  string
	needs string // a variable; if it is unset, the case is skipped
	run   func(*client, context.Context) (line, error)
}{
	{name: "unary", run: (*client).unary},
	{name: "stream", run: (*client).stream},
	{name: "tools", run: (*client).tools},
	{name: "ollm_options", run: (*client).ollmOptions},
	{name: "extra_json", run: (*client).extraJSON},
	{name: "error", run: (*client).failure},
	{name: "large_error", run: (*client).largeError},
	{name: "deadline", run: (*client).deadline},
	{name: "cancel", run: (*client).cancel},
	{name: "retry", run: (*client).retry},
	{name: "tls", needs: "BRIDGE_TLS_ADDRESS", run: (*client).tls},
	{name: "mtls", needs: "BRIDGE_MTLS_ADDRESS", run: (*client).mtls},
	{name: "health", run: (*client).health},
	{name: "large_answer", run: (*client).largeAnswer},
	{name: "accumulate", run: (*client).accumulate},
	{name: "failure", run: (*client).readFailures},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(names []string) error {
	address := cmp.Or(os.Getenv("BRIDGE_ADDRESS"), "127.0.0.1:50051")
	conn, err := kit.Connect(address, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &client{conn: conn, chat: pb.NewChatCompletionServiceClient(conn)}
	for _, each := range cases {
		if len(names) > 0 && !slices.Contains(names, each.name) || each.needs != "" && os.Getenv(each.needs) == "" {
			continue
		}
		if err := c.runCase(each.name, each.run); err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
	}
	return nil
}

func (c *client) runCase(name string, run func(*client, context.Context) (line, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
	defer cancel()
	result, err := run(c, ctx)
	if err != nil {
		return err
	}
	result["case"] = name
	return json.NewEncoder(os.Stdout).Encode(result)
}
