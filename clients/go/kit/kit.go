// Package kit connects to a bridge, joins the chunks of a stream, and reads a failed call. ../../CASES.md has the rules.
package kit

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

const (
	answerBytesMax = 32 << 20 // an answer may have 16 MiB; grpc's own limit is 4 MiB
	retryBytesMax  = 8 << 20  // a request may have 4 MiB; grpc does not retry one above 256 KiB
	serviceConfig  = `{"methodConfig": [{
  "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}`
)

// TLS names PEM files: of the authorities to trust ("": the system's), and of the client's certificate and its key.
type TLS struct{ CA, Cert, Key string }

// Connect opens a connection to a bridge; without files, not over TLS. Later options replace the kit's.
func Connect(address string, files *TLS, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if files != nil {
		config, err := files.load()
		if err != nil {
			return nil, err
		}
		transport = credentials.NewTLS(config)
	}
	return grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(answerBytesMax), grpc.MaxRetryRPCBufferSize(retryBytesMax)),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}, options...)...)
}

func (files *TLS) load() (*tls.Config, error) {
	config := &tls.Config{}
	if files.CA != "" {
		pem, err := os.ReadFile(files.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: expected certificates in PEM, found none", files.CA)
		}
	}
	if files.Cert != "" {
		own, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return config, nil
}

// Failure is what a failed call says. Without the bridge's details, as from a proxy, all but code and message is empty.
type Failure struct {
	Code, Message  string // the code as the gRPC specification spells it
	Reason, Domain string
	Metadata       map[string]string
	RetryAfter     *time.Duration
	Violations     []*errdetails.BadRequest_FieldViolation
	RequestID      string
	Upstream       *pb.UpstreamError
	UpstreamWords  string
}

// ReadFailure returns what the error of a call says.
func ReadFailure(err error) Failure {
	failed := status.Convert(err)
	found := Failure{Code: code.Code(failed.Code()).String(), Message: failed.Message(), Upstream: &pb.UpstreamError{}}
	for _, detail := range failed.Details() {
		switch typed := detail.(type) {
		case *errdetails.ErrorInfo:
			found.Reason, found.Domain, found.Metadata = typed.GetReason(), typed.GetDomain(), typed.GetMetadata()
		case *errdetails.RetryInfo:
			if typed.RetryDelay != nil {
				wait := typed.GetRetryDelay().AsDuration()
				found.RetryAfter = &wait
			}
		case *errdetails.BadRequest:
			found.Violations = typed.GetFieldViolations()
		case *errdetails.RequestInfo:
			found.RequestID = typed.GetRequestId()
		case *pb.UpstreamError:
			found.Upstream = typed
		}
	}
	found.UpstreamWords = cmp.Or(found.Upstream.GetMessage(), found.Upstream.GetBodyExcerpt())
	return found
}
