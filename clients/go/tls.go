package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

const refusedTimeout = 5 * time.Second

// tls calls over TLS, with the server's authority and without it.
func (c *client) tls(ctx context.Context) (line, error) {
	address := os.Getenv("BRIDGE_TLS_ADDRESS")
	authorities, err := loadAuthorities()
	if err != nil {
		return nil, err
	}
	text, err := askOverTLS(ctx, address, &tls.Config{RootCAs: authorities})
	if err != nil {
		return nil, err
	}
	return line{"text": text, "refused_untrusted": isRefused(ctx, address, &tls.Config{})}, nil
}

// mtls calls over TLS with a client certificate, and without one.
func (c *client) mtls(ctx context.Context) (line, error) {
	address := os.Getenv("BRIDGE_MTLS_ADDRESS")
	authorities, err := loadAuthorities()
	if err != nil {
		return nil, err
	}
	own, err := tls.LoadX509KeyPair(os.Getenv("CERT_FILE"), os.Getenv("KEY_FILE"))
	if err != nil {
		return nil, err
	}
	text, err := askOverTLS(ctx, address, &tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{own}})
	if err != nil {
		return nil, err
	}
	return line{
		"text":                        text,
		"refused_without_certificate": isRefused(ctx, address, &tls.Config{RootCAs: authorities}),
	}, nil
}

func loadAuthorities() (*x509.CertPool, error) {
	pem, err := os.ReadFile(os.Getenv("CA_FILE"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA_FILE: expected certificates in PEM, found none")
	}
	return pool, nil
}

// askOverTLS makes a call over TLS, on a connection of its own.
func askOverTLS(ctx context.Context, address string, config *tls.Config) (string, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
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
func isRefused(ctx context.Context, address string, config *tls.Config) bool {
	ctx, cancel := context.WithTimeout(ctx, refusedTimeout)
	defer cancel()
	_, err := askOverTLS(ctx, address, config)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", address, err)
	}
	return err != nil
}
