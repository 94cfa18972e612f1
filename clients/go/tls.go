package main

import (
	"context"
	"fmt"
	"os"
	"time"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
	"ollmbridge.example/client/kit"
)

const refusedTimeout = 5 * time.Second

// tls calls over TLS, with the server's authority and without it.
func (c *client) tls(ctx context.Context) (line, error) {
	address := os.Getenv("BRIDGE_TLS_ADDRESS")
	text, err := askOverTLS(ctx, address, &kit.TLS{CA: os.Getenv("CA_FILE")})
	if err != nil {
		return nil, err
	}
	return line{"text": text, "refused_untrusted": isRefused(ctx, address, &kit.TLS{})}, nil
}

// mtls calls over TLS with a client certificate, and without one.
func (c *client) mtls(ctx context.Context) (line, error) {
	address, ca := os.Getenv("BRIDGE_MTLS_ADDRESS"), os.Getenv("CA_FILE")
	text, err := askOverTLS(ctx, address, &kit.TLS{CA: ca, Cert: os.Getenv("CERT_FILE"), Key: os.Getenv("KEY_FILE")})
	if err != nil {
		return nil, err
	}
	return line{"text": text, "refused_without_certificate": isRefused(ctx, address, &kit.TLS{CA: ca})}, nil
}

// askOverTLS makes a call over TLS, on a connection of its own.
func askOverTLS(ctx context.Context, address string, files *kit.TLS) (string, error) {
	conn, err := kit.Connect(address, files)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	reply, err := pb.NewChatCompletionServiceClient(conn).CreateChatCompletion(ctx, newRequest(model, "Hello"))
	if err != nil {
		return "", err
	}
	return firstText(reply), nil
}

// isRefused returns whether such a call fails.
func isRefused(ctx context.Context, address string, files *kit.TLS) bool {
	ctx, cancel := context.WithTimeout(ctx, refusedTimeout)
	defer cancel()
	_, err := askOverTLS(ctx, address, files)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", address, err)
	}
	return err != nil
}
