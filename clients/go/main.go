// The cases of ../CASES.md, with grpc-go: `go run . [CASE …]`, where the environment says where the bridge is.
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
	"google.golang.org/grpc/credentials/insecure"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

const caseTimeout = time.Minute

// What may be repeated: UNAVAILABLE says that nothing was generated, and RESOURCE_EXHAUSTED comes with the time to wait, which
// grpc-go takes from grpc-retry-pushback-ms.
const serviceConfig = `{
  "methodConfig": [{
    "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.01s",
      "maxBackoff": "0.05s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    }
  }]
}`

// line is what a case prints, by its keys.
type line map[string]any

// client is what the cases share.
type client struct {
	conn *grpc.ClientConn
	chat pb.ChatCompletionServiceClient
}

var cases = []struct {
	name  string
	needs string // a variable without which the case is left out
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
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(names []string) error {
	address := cmp.Or(os.Getenv("BRIDGE_ADDRESS"), "127.0.0.1:50051")
	conn, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &client{conn: conn, chat: pb.NewChatCompletionServiceClient(conn)}
	for _, each := range cases {
		if len(names) > 0 && !slices.Contains(names, each.name) || each.needs != "" && os.Getenv(each.needs) == "" {
			continue
		}
		if err := c.show(each.name, each.run); err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
	}
	return nil
}

func (c *client) show(name string, run func(*client, context.Context) (line, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
	defer cancel()
	seen, err := run(c, ctx)
	if err != nil {
		return err
	}
	seen["case"] = name
	return json.NewEncoder(os.Stdout).Encode(seen)
}
